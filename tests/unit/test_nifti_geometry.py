"""Axes, units and kinds of NIfTI files: what the header says, and nothing else."""

import gzip
import shutil
import struct
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.testing import data_path

from oneshot_medad import AnomalyDetector, slices
from oneshot_medad.errors import ImageFileError, ImageTypeError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.volume import assemble

DATA = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
AXIAL, CORONAL, SAGITTAL = ("axial", "coronal", "sagittal")


def save(path, data=DATA, affine=None, kind=nibabel.Nifti1Image, **header):
    image = kind(data, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def values(source, window=(0, 59)):
    return (read_image(source, intensity_range=window).pixels[0] * (window[1] - window[0]) + window[0]).round().int()


@pytest.mark.parametrize(
    ("shape", "sizes", "axis"),
    [
        ((1, 20, 24), (1, 1, 1), SAGITTAL),
        ((20, 1, 24), (1, 1, 1), CORONAL),
        ((20, 24, 1), (1, 1, 1), AXIAL),
        ((1, 20, 24), (1, 1, 9), SAGITTAL),  # one slice, whatever the voxels
        ((20, 1, 1), (1, 1, 1), AXIAL),
        ((20, 24, 9), (0.5, 0.5, 5), AXIAL),
        ((20, 9, 24), (0.5, 5, 0.5), CORONAL),
        ((9, 20, 24), (5, 0.5, 0.5), SAGITTAL),
        ((9, 20, 24), (5, 0.5, 0.7), SAGITTAL),
        ((20, 20, 20), (1, 1, 1), AXIAL),
        ((20, 20, 20), (1.2, 0.94, 0.94), AXIAL),  # about cubes
        ((20, 20, 20), (3, 3, 1), AXIAL),  # two coarse axes
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_slices_are_those_that_were_acquired(tmp_path, shape, sizes, axis, turned):
    data, affine = np.zeros(shape, np.int16), np.diag([*sizes, 1.0])
    if turned:  # the file runs to posterior, superior, right
        data, affine = data.transpose(1, 2, 0)[::-1], affine[:, [1, 2, 0, 3]] * [-1, 1, 1, 1]
    found = expand(save(tmp_path / "a.nii", data, affine))
    assert {source.axis for source in found} == {axis}
    assert len(found) == shape[(SAGITTAL, CORONAL, AXIAL).index(axis)]
    assert slices(tmp_path / "a.nii") == found
    assert slices(tmp_path / "a.nii", AXIAL)[0].axis == AXIAL  # one that is named is taken


def test_one_sagittal_slice(tmp_path):
    data = np.arange(480, dtype=np.int16).reshape(24, 20, 1)  # to anterior, superior, right
    path = save(tmp_path / "a.nii.gz", data, np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]))
    (source,) = expand(path)
    assert np.array_equal(values(source, (0, 479)), data[::-1, ::-1, 0].T)
    (volume,) = assemble([source], np.ones(1), [values(source, (0, 479)).numpy()], Limits(0.5))
    assert np.array_equal(volume.heatmap, data)


def rotation(degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


@pytest.mark.parametrize("degrees", [0, 20, 44, 46, 70, 90, 135, 180])
def test_oblique_stacks_are_taken_along_their_own_axis(tmp_path, degrees):
    data = np.arange(20 * 24 * 6, dtype=np.int16).reshape(20, 24, 6)
    path = save(tmp_path / "a.nii", data, rotation(degrees) @ np.diag([0.5, 0.5, 4, 1]))
    found = expand(path)
    assert len(found) == 6  # never across the stack
    assert sorted(values(s, (0, 2879)).sum().item() for s in found) == sorted(data.sum((0, 1)).tolist())
    assert read_image(found[0], intensity_range=(0, 2879)).spacing == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("unit", "factor"), [("micron", 0.001), ("mm", 1), ("meter", 1000), ("unknown", 1), (1, 1000), (5, None), (7, None)]
)
def test_units_are_those_of_the_header(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(DATA, np.diag([20, 30, 40, 1.0]))
    if isinstance(unit, str):
        image.header.set_xyzt_units(unit, "sec")
    else:
        image.header["xyzt_units"] = unit | 16  # the unit of time above
    nibabel.save(image, tmp_path / "a.nii")
    found = read_image(slices(tmp_path / "a.nii")[0], intensity_range=(0, 60))
    assert found.spacing == (None if factor is None else pytest.approx((30 * factor, 20 * factor)))
    assert found.aspect == pytest.approx(1.5)


def test_true_proportions(tmp_path):
    data = np.zeros((64, 64, 12), np.int16) + np.arange(1, 13, dtype=np.int16) * 80
    save(tmp_path / "a.nii", data, np.diag([0.5, 0.5, 5, 1]))
    seen = AnomalyDetector(intensity_range=(0, 1000)).preview(f"{tmp_path}/a.nii[coronal 30]") > 0
    assert seen.any((1, 2)).sum() == 256
    assert seen.any((0, 2)).sum() == pytest.approx(256 * 32 / 60, abs=1)


def with_sform(path, *rows):
    data = bytearray(path.read_bytes())
    data[252:256], data[280:328] = struct.pack("<2h", 0, 1), struct.pack("<12f", *np.ravel(rows))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("rows", "axis", "size"),
    [
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], AXIAL, (4, 3)),
        ([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 7]], AXIAL, (4, 3)),
        ([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]], CORONAL, (4, 3)),
        ([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], SAGITTAL, (4, 3)),
    ],
)
def test_a_direction_that_one_slice_does_not_need(tmp_path, rows, axis, size):
    data = np.arange(12, dtype=np.int16).reshape(3, 4, 1)
    (source,) = expand(with_sform(save(tmp_path / "a.nii", data), *rows))
    assert source.axis == axis
    found = read_image(source, intensity_range=(0, 11))
    assert (found.size, found.spacing) == (size, (1, 1))
    (volume,) = assemble([source], np.ones(1), [values(source, (0, 11)).numpy()], Limits(0.5))
    assert np.array_equal(volume.heatmap, data)
    assert np.linalg.det(volume.affine) != 0
    volume.save(tmp_path / "heat.nii")


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],  # of five slices
        [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 0, 0, 0], [0, np.nan, 0, 0], [0, 0, 1, 0]],
        [[1, 0, 0, 0], [0, np.inf, 0, 0], [0, 0, 1, 0]],
    ],
)
def test_affines_that_say_nothing_are_named(tmp_path, rows):
    with pytest.raises(ImageFileError, match=r"affine \[\[.*three directions"):
        slices(with_sform(save(tmp_path / "a.nii"), *rows))


def test_without_any_orientation_nibabels_reading_holds(tmp_path):
    path = save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)  # no qform, no sform
    path.write_bytes(data)
    image = nibabel.as_closest_canonical(nibabel.load(path))
    expected = np.rot90(image.get_fdata()[..., 2])[:, ::-1]
    assert np.array_equal(values(slices(path)[2]), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8"])
def test_versions_orders_and_types(tmp_path, order, kind, dtype):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(dtype)
    nibabel.save(kind(DATA.astype(dtype), np.eye(4), header), tmp_path / "a.nii")
    assert values(slices(tmp_path / "a.nii")[2]).tolist() == DATA[::-1, ::-1, 2].T.tolist()


@pytest.mark.parametrize(
    ("slope", "inter", "factor", "shift"),
    [(0, 5, 1, 0), (np.nan, 5, 1, 0), (2, 0, 2, 0), (0.5, -7, 0.5, -7), (-1, 59, -1, 59)],
)
def test_slopes(tmp_path, slope, inter, factor, shift):
    path = save(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[112:120] = struct.pack("<2f", slope, inter)
    path.write_bytes(data)
    found = read_image(slices(path)[2], intensity_range=(-200, 200)).pixels[0].numpy() * 400 - 200
    np.testing.assert_allclose(found, (DATA[..., 2] * factor + shift)[::-1, ::-1].T, atol=1e-4)


def test_colour_with_opacity(tmp_path):
    rgba = np.zeros((4, 5, 2), [(name, "u1") for name in "RGBA"])
    rgba["R"], rgba["G"], rgba["A"] = 200, np.arange(4)[:, None, None] * 60, np.arange(5)[:, None] * 60
    nibabel.save(nibabel.Nifti1Image(rgba, np.eye(4)), tmp_path / "a.nii")
    found = read_image(slices(tmp_path / "a.nii")[0]).pixels.numpy()
    for channel, name in enumerate("RGB"):
        expected = (rgba[name][..., 0] / 255 * (rgba["A"][..., 0] / 255))[::-1, ::-1].T
        np.testing.assert_allclose(found[channel], expected, atol=1e-6)


def every_name(folder):
    """One volume under names that hide or tell what it is."""
    plain = save(folder / "plain.nii").read_bytes()
    (folder / "a.nii").write_bytes(gzip.compress(plain))
    (folder / "b.nii.gz").write_bytes(plain)
    (folder / "c.gz").write_bytes(gzip.compress(plain))
    (folder / "d").write_bytes(plain)
    (folder / "e.dcm").write_bytes(plain)
    for kind, name in ((nibabel.Nifti1Pair, "f"), (nibabel.Nifti2Pair, "g")):
        save(folder / f"{name}.hdr", kind=kind)
    for part in ("hdr", "img"):
        (folder / f"h.{part}.gz").write_bytes(gzip.compress((folder / f"f.{part}").read_bytes()))
        shutil.copy(folder / f"f.{part}", folder / f"I.{part.upper()}")


def test_names_do_not_matter(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    every_name(folder)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/{path.name}")
    for root in (folder, tmp_path / "all.zip"):
        found = expand(root)
        files = list(dict.fromkeys(Path(str(source.path)).name for source in found))
        wanted = ["I.HDR", "a.nii", "b.nii.gz", "c.gz", "d", "e.dcm", "f.hdr", "g.hdr", "h.hdr.gz", "plain.nii"]
        assert files == wanted
        assert len(found) == 5 * len(files)
        assert found.left_out == {}
        for source in found:
            assert values(source).tolist() == DATA[::-1, ::-1, source.index].T.tolist(), source
    with pytest.raises(ImageFileError, match=r"half of a pair.*\.hdr"):
        read_image(folder / "f.img")
    (folder / "f.img").unlink()
    with pytest.raises(ImageFileError, match=r"f\.(hdr|img)"):  # noqa: PT012
        for source in slices(folder / "f.hdr"):
            read_image(source, intensity_range=(0, 59))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("analyze.hdr", "ANALYZE"),
        ("example4d.nii.gz", "four_to_three"),
        ("row_major.dconn.nii", "Cifti2Image"),
        ("nifti1.hdr", "nifti1"),
        ("small.mnc", r"\.mnc.*\.nii\.gz"),
        ("test.mgz", r"\.mgz.*\.nii\.gz"),
        ("T1.PAR", r"\.par"),
        ("scaled+tlrc.BRIK", r"\.brik"),
        ("example4d+orig.BRIK.gz", r"\.brik\.gz"),
    ],
)
def test_packaged_files_that_are_not_read(name, message):
    (source,) = expand(Path(data_path) / name)[:1]
    with pytest.raises(ImageFileError, match=message):
        read_image(source, intensity_range=(0, 1))


def test_types_that_are_not_read(tmp_path):
    save(tmp_path / "a.nii", DATA.astype(np.complex64))
    with pytest.raises(ImageTypeError, match="complex64"):
        slices(tmp_path / "a.nii")
