import copy
import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from nibabel.testing import data_path

from oneshot_medad import slices
from oneshot_medad.errors import ConfigError, ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images import nifti
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.volume import assemble

SHAPE, ZOOMS = (4, 5, 6), (1.0, 2.0, 3.0)
CODES = ["".join(c) for order in itertools.permutations(("LR", "PA", "IS")) for c in itertools.product(*order)]
"""All 48 ways in which a file's axes can run."""


def ras():
    """1000 x + 100 y + z, where x runs to the right, y to the front and z up."""
    x, y, z = np.indices(SHAPE)
    return (1000 * x + 100 * y + z).astype(np.int16)


def write(path, codes="RAS", data=None, **header):
    volume, affine = ras() if data is None else data, np.diag([*ZOOMS, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    image = nibabel.Nifti1Image(apply_orientation(volume, turn), affine @ inv_ornt_aff(turn, SHAPE))
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def values(source, window=(0, 4000)):
    return (read_image(source, intensity_range=window).pixels[0] * (window[1] - window[0]) + window[0]).round().int()


@pytest.mark.parametrize("codes", CODES)
def test_slices_look_the_same_however_the_file_runs(tmp_path, codes):
    path = write(tmp_path / "v.nii", codes)
    axial, coronal, sagittal = (slices(path, axis) for axis in ("axial", "coronal", "sagittal"))
    assert (len(axial), len(coronal), len(sagittal)) == (6, 5, 4)
    assert expand(path) == axial
    # patient's right on the left of the picture; front, or top of the head, up
    assert values(axial[2]).tolist() == [[1000 * x + 100 * y + 2 for x in (3, 2, 1, 0)] for y in (4, 3, 2, 1, 0)]
    assert values(coronal[1]).tolist() == [[1000 * x + 100 + z for x in (3, 2, 1, 0)] for z in (5, 4, 3, 2, 1, 0)]
    # from the side: front on the left, top of the head up
    assert values(sagittal[3]).tolist() == [[3000 + 100 * y + z for y in (4, 3, 2, 1, 0)] for z in (5, 4, 3, 2, 1, 0)]
    spacings = [read_image(s[0], intensity_range=(0, 4000)).spacing for s in (axial, coronal, sagittal)]
    assert spacings == [(2.0, 1.0), (3.0, 1.0), (3.0, 2.0)]


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_heatmaps_return_to_the_files_own_grid(tmp_path, codes, axis):
    path = write(tmp_path / "v.nii.gz", codes)
    sources = slices(path, axis)
    heatmaps = [values(source).numpy().astype(np.float32) for source in sources]
    (volume,) = assemble(sources, np.arange(len(sources), dtype=float), heatmaps, Limits(0.5))
    stored = nibabel.load(path)
    assert np.array_equal(volume.heatmap, np.asarray(stored.dataobj))
    assert volume.heatmap.dtype == np.float32
    assert volume.score == len(sources) - 2  # mean of the three highest of 0, 1, 2, …
    written = nibabel.load(volume.save(tmp_path / "heat.nii.gz"))
    assert np.array_equal(written.affine, stored.affine)
    assert np.array_equal(written.get_fdata(), stored.get_fdata())


def test_slices_without_score_stay_zero(tmp_path):
    path = write(tmp_path / "v.nii")
    sources = slices(path, indices=[1, 4])
    (volume,) = assemble(sources, np.array([0.5, np.nan]), [np.ones((5, 4), np.float32), np.zeros((0, 0))], Limits(0.5))
    assert volume.score == 0.5
    assert volume.heatmap.sum(axis=(0, 1)).tolist() == [0, 20, 0, 0, 0, 0]
    with pytest.raises(ConfigError, match=r"heat\.png.*\.nii"):
        volume.save(tmp_path / "heat.png")


def test_a_range_must_be_stated_and_cuts_what_lies_outside(tmp_path):
    path = write(tmp_path / "v.nii")
    with pytest.raises(ImageTypeError, match=r"v\.nii\[axial 0\].*intensity_range"):
        read_image(expand(path)[0])
    assert set(values(expand(path)[0], (1100, 2100)).unique().tolist()) == {1100, 1200, 1300, 1400, 2000, 2100}
    stated = write(tmp_path / "c.nii", cal_min=1100, cal_max=2100)
    assert torch.equal(read_image(expand(stated)[0]).pixels, read_image(expand(path)[0], "", (1100, 2100)).pixels)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(ras(), np.eye(4))
    image.header.set_slope_inter(0.25, -300)
    nibabel.save(image, tmp_path / "s.nii")
    assert nibabel.load(tmp_path / "s.nii").get_fdata()[1, 2, 3] == 1203 / 4 - 300
    found = read_image(slices(tmp_path / "s.nii")[2], intensity_range=(-300, 700)).pixels[0] * 4000
    assert found.round().int()[0].tolist() == [3402, 2402, 1402, 402]  # 4 x (stored / 4 - 300 + 300)


def test_colour_and_flat_volumes(tmp_path):
    rgb = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"], rgb["B"] = 255, np.arange(4)[:, None, None]
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    pixels = read_image(slices(tmp_path / "rgb.nii")[0]).pixels
    assert (pixels[:, 0] * 255).round().tolist() == [[255] * 4, [0] * 4, [3, 2, 1, 0]]
    nibabel.save(nibabel.Nifti1Image(ras()[:, :, 0], np.eye(4)), tmp_path / "flat.nii")
    (source,) = expand(tmp_path / "flat.nii")
    assert values(source)[0].tolist() == [3400, 2400, 1400, 400]
    (volume,) = assemble([source], np.ones(1), [np.ones((5, 4), np.float32)], Limits(0.5))
    assert volume.heatmap.shape == (4, 5, 1)
    nibabel.save(nibabel.Nifti1Image(ras()[..., None], np.eye(4)), tmp_path / "four.nii")
    assert len(expand(tmp_path / "four.nii")) == 6


def test_a_volume_is_opened_once(tmp_path, monkeypatch):
    path = write(tmp_path / "v.nii.gz")
    opened = []
    load = nifti._load
    monkeypatch.setattr(nifti, "_load", lambda file: opened.append(file) or load(file))
    for source in expand(path):
        read_image(source, intensity_range=(0, 4000))
    assert opened == [path]
    write(path, data=ras()[::-1])  # another content under the same name is noticed
    assert values(expand(path)[0])[0].tolist() == [400, 1400, 2400, 3400]


def test_names_are_addresses(tmp_path, fitted, sample):
    path = write(tmp_path / "v.nii")
    chosen = slices(path, "coronal", range(2, 4))
    assert [str(s) for s in chosen] == [f"{path}[coronal 2]", f"{path}[coronal 3]"]
    assert expand([str(s) for s in chosen]) == chosen
    assert torch.equal(values(str(chosen[0])), values(chosen[0]))
    for wrong, message in (("axial 6", "0 to 5"), ("frame 0", "wanted one of 'axial'")):
        with pytest.raises(ImageError, match=message):
            read_image(f"{path}[{wrong}]")


def test_packaged_volumes():
    path = Path(data_path) / "anatomical.nii"
    sources = expand(path)
    image = nibabel.as_closest_canonical(nibabel.load(path))
    assert len(sources) == image.shape[2] == 25
    plane = image.get_fdata()[:, :, 12]
    low, high = float(plane.min()), float(plane.max())
    expected = np.rot90(plane)[:, ::-1]  # turned upright, then the patient's right to the left
    found = read_image(sources[12], intensity_range=(low, high)).pixels[0]
    np.testing.assert_allclose(found, (expected - low) / (high - low), atol=1e-6)
    for series in ("functional.nii", "example_nifti2.nii.gz"):
        with pytest.raises(ImageFileError, match="four_to_three"):
            slices(Path(data_path) / series)


def test_both_versions_of_the_format_are_read(tmp_path):
    nibabel.save(nibabel.Nifti2Image(ras(), np.eye(4)), tmp_path / "two.nii.gz")
    assert values(expand(tmp_path / "two.nii.gz")[0])[0].tolist() == [3400, 2400, 1400, 400]


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_files_that_cannot_be_read(tmp_path, name):
    data = write(tmp_path / name).read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 20):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(ImageFileError, match=name):  # noqa: PT012
            for source in expand(tmp_path / name):
                read_image(source, intensity_range=(0, 4000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 5, 6, 2), np.int16), "four_to_three"),
        (np.zeros((4,), np.int16), "shape"),
        (np.zeros((4, 5, 6), np.complex64), "complex64"),
    ],
)
def test_volumes_that_cannot_be_used(tmp_path, data, message):
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii")
    (source,) = expand(tmp_path / "v.nii")
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_a_small_file_that_claims_much_is_refused(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(ImageFileError, match="unpacks to"):
        slices(tmp_path / "v.nii.gz")


def test_infinite_voxels_are_refused(tmp_path):
    data = ras().astype(np.float32)
    data[0, 0, 0], data[0, 0, 1] = np.inf, np.nan
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "v.nii")
    for source in slices(tmp_path / "v.nii", indices=[0, 1]):
        with pytest.raises(ImageError, match=r"v\.nii\[axial .\]: Got NaN or infinite"):
            read_image(source, intensity_range=(0, 4000))


@pytest.fixture
def head(tmp_path, sample):
    """Two slices with content between two empty ones, in 8 bits, 1.5 mm wide."""
    planes = np.stack([np.zeros_like(sample.support), *sample.images[:2], np.zeros_like(sample.support)])
    volume = planes.transpose(2, 1, 0)[::-1, ::-1]  # so that slices look like the images
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.5, 1.5, 3, 1])), tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def test_a_volume_is_predicted_whole(fitted, sample, head):
    detector = copy.copy(fitted)
    detector.intensity_range = (0, 255)
    predictions = detector.predict(head)  # blank slices do not end it
    np.testing.assert_allclose(predictions.scores[1:3], fitted.predict(sample.images[:2]).scores, atol=1e-5)
    assert np.isnan(predictions.scores[[0, 3]]).all()
    assert predictions.reasons == ["blank slice", "", "", "blank slice"]
    assert predictions.names[1] == f"{head}[axial 1]"
    assert predictions.spacings[1] == (1.5, 1.5)
    assert np.array_equal(predictions.image(1)[..., 0], sample.images[0])
    (volume,) = predictions.volumes()
    assert volume.name == str(head)
    assert volume.score == pytest.approx(predictions.scores[1:3].mean())
    assert np.array_equal(volume.heatmap[::-1, ::-1, 2].T, predictions.heatmaps[2])
    assert fitted.predict(sample.images[:1]).volumes() == []


def test_blank_slices_elsewhere(fitted, head):
    detector = copy.copy(fitted)
    detector.intensity_range = (0, 255)
    with pytest.raises(ImageError, match=r"2 blank slices .*axial 0"):
        detector.evaluate(head, [0, 0, 1, 1])
    with pytest.raises(ImageError, match=r"axial 0.*constant"):
        detector.fit(f"{head}[axial 0]")  # beside others it is left out
    scores = detector.predict(head).scores[1:3]
    assert detector.calibrate(head, target_fpr=0.5).calibration_scores_.tolist() == sorted(scores)
    labelled = detector.calibrate(head, [0, 0, 1, 1])
    assert labelled.calibration_scores_.tolist() == [scores[0]]
