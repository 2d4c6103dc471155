"""A DICOM series is a volume: in the order of its positions, with the geometry that NIfTI of the same scan has."""

import csv
import shutil
import zipfile

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_files import write_dicom
from scipy.spatial.transform import Rotation
from series_files import AXIAL, CORONAL, SAGITTAL, SERIES, write_enhanced, write_series

from oneshot_medad import AnomalyDetector, slices
from oneshot_medad.cli import app
from oneshot_medad.errors import ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.files import Series
from oneshot_medad.images.open import open_stack
from oneshot_medad.images.read import read_image
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.volume import assemble

WINDOW = (0, 4000)
SHAPE, ZOOMS = (4, 5, 6), (1.0, 2.0, 3.0)
PRONE = (-1, 0, 0, 0, -1, 0)


def voxels():
    """1000 x + 100 y + z of RAS+ indices."""
    x, y, z = np.indices(SHAPE)
    return (1000 * x + 100 * y + z).astype(np.uint16)


def cut(orientation):
    """The voxels as (N, rows, columns) that a scanner makes, its first position (LPS), spacing and step."""
    lps = voxels()[::-1, ::-1]  # index 0 at the patient's right → x of LPS grows to the left
    directions = np.array([orientation[:3], orientation[3:], np.cross(orientation[:3], orientation[3:])], float)
    axes = np.abs(directions).argmax(axis=1)
    signs = directions[np.arange(3), axes]
    flipped = lps[tuple(slice(None, None, int(sign)) for sign in signs[np.argsort(axes)])]
    start = np.zeros(3)
    for axis, sign in zip(axes, signs, strict=True):
        start[axis] = 0 if sign > 0 else (SHAPE[axis] - 1) * ZOOMS[axis]
    columns, rows, across = axes
    return flipped.transpose(across, rows, columns), start, (ZOOMS[rows], ZOOMS[columns]), ZOOMS[across]


def nifti(path):
    affine = np.diag([*ZOOMS, 1.0])
    affine[:2, 3] = [-(SHAPE[0] - 1) * ZOOMS[0], -(SHAPE[1] - 1) * ZOOMS[1]]  # where LPS indices begin at 0
    nibabel.save(nibabel.Nifti1Image(voxels(), affine), path)
    return path


def pixels(source, window=WINDOW):
    return read_image(source, intensity_range=window).pixels


def scan(folder, orientation=AXIAL, **attributes):
    planes, start, spacing, step = cut(orientation)
    return write_series(folder, planes, orientation=orientation, start=start, spacing=spacing, step=step, **attributes)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, PRONE])
@pytest.mark.parametrize("where", ["folder", "zip", "enhanced"])
def test_a_series_is_the_volume_that_nifti_gives(tmp_path, orientation, where):
    planes, start, spacing, step = cut(orientation)
    paths = write_series(
        tmp_path / "scan", planes, orientation=orientation, start=start, spacing=spacing, step=step, SeriesNumber=7
    )
    place = tmp_path / "scan"
    if where == "zip":
        place = tmp_path / "scan.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for path in paths:
                archive.write(path, f"deep/{path.name}")
    elif where == "enhanced":
        place, order = tmp_path / "scan.dcm", np.roll(np.arange(len(planes))[::-1], 2)
        write_enhanced(place, planes, orientation=orientation, start=start, spacing=spacing, step=step, order=order)
    reference = nifti(tmp_path / "scan.nii")
    for axis, count in zip(("axial", "coronal", "sagittal"), SHAPE[::-1], strict=True):
        ours, theirs = slices(place, axis), slices(reference, axis)
        assert len(ours) == len(theirs) == count
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(pixels(one), pixels(other))
            assert read_image(one, intensity_range=WINDOW).spacing == read_image(other, intensity_range=WINDOW).spacing
    own = {AXIAL: "axial", PRONE: "axial", CORONAL: "coronal", SAGITTAL: "sagittal"}[orientation]
    assert expand(place) == slices(place) == slices(place, own)
    maps = [pixels(source)[0].numpy() for source in slices(place)]
    (volume,) = assemble(slices(place), np.arange(len(maps), dtype=float), maps, Limits(0.5))
    (expected,) = assemble(slices(reference, own), np.arange(len(maps), dtype=float), maps, Limits(0.5))
    ours, theirs = (
        nibabel.as_closest_canonical(nibabel.Nifti1Image(found.heatmap, found.affine)) for found in (volume, expected)
    )
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
    assert np.allclose(ours.affine, theirs.affine)


def test_files_lie_in_order_of_their_position_whatever_they_are_called(tmp_path):
    paths = scan(tmp_path / "scan")
    found = expand(tmp_path / "scan")
    assert [str(source) for source in found] == list(map(str, paths))  # by name and by instance number they would not
    assert sorted(map(str, paths)) != list(map(str, paths))
    assert expand(tmp_path / "scan" / "*") == found
    assert [(source.axis, source.index) for source in found] == [("axial", i) for i in range(6)]
    listed = expand(sorted(paths))  # a list keeps its order, and each file the place that it has in the volume
    assert [str(source) for source in listed] == sorted(map(str, paths))
    assert sorted(listed, key=lambda source: source.index) == found
    (alone,) = expand(paths[2])
    assert alone == paths[2]
    assert torch.equal(pixels(alone), pixels(found[2]))


def test_chosen_slices_by_their_address(tmp_path):
    scan(tmp_path / "scan")
    reference = nifti(tmp_path / "scan.nii")
    for place in (tmp_path / "scan", reference):
        assert expand(f"{place}[axial 2:5]") == slices(place, "axial", range(2, 5))
        assert expand(f"{place}[axial 1::2]") == slices(place, "axial", [1, 3, 5])
        assert expand(f"{place}[coronal]") == slices(place, "coronal")
        assert expand(f"{place}[coronal :2]") == slices(place, "coronal", range(2))
        assert expand(f"{place}[sagittal 3]") == slices(place, "sagittal", [3])
        with pytest.raises(ImageError, match="wanted 0 to 5"):
            expand(f"{place}[axial 7:9]")
    assert expand([f"{reference}[axial 2:5]", f"{reference}[axial 0]"]) == slices(reference, "axial", [2, 3, 4, 0])


def test_several_series_have_names_of_their_own(tmp_path):
    scan(tmp_path / "scan", SeriesNumber=2)
    scan(tmp_path / "scan", SeriesNumber=3, SeriesInstanceUID=SERIES + ".3")
    scan(tmp_path / "scan", SeriesNumber=3, SeriesInstanceUID=SERIES + ".4")
    shutil.rmtree(tmp_path / "scan")
    first = scan(tmp_path / "scan")
    for number, uid in ((3, ".3"), (4, ".4"), (4, ".5")):
        for path in scan(tmp_path / "other", SeriesNumber=number, SeriesInstanceUID=SERIES + uid):
            path.rename(tmp_path / "scan" / f"{path.name}{uid}")
    names = list(dict.fromkeys(str(source.path) for source in expand(tmp_path / "scan")))
    assert names == [
        f"{tmp_path}/scan{behind}"
        for behind in ("[series 2]", "[series 3]", f"[series {SERIES}.4]", f"[series {SERIES}.5]")
    ]
    assert [str(source) for source in expand(f"{names[0]}[axial 1:3]")] == list(map(str, first[1:3]))
    assert len(expand(names[2])) == 6
    with pytest.raises(ImageFileError, match=r"4 DICOM volumes.*series 2.*wanted one"):
        slices(tmp_path / "scan")
    with pytest.raises(ImageFileError, match=r"0 DICOM volumes \[series 9\]"):
        slices(f"{tmp_path}/scan[series 9]")


def test_missing_images_leave_gaps(tmp_path):
    paths = scan(tmp_path / "scan")
    paths[2].unlink()
    found = expand(tmp_path / "scan")
    assert [source.index for source in found] == [0, 1, 3, 4, 5]
    assert torch.equal(pixels(found[2]), pixels(paths[3]))
    with pytest.raises(ImageError, match=r"axial 2, whose image is missing"):
        pixels(slices(tmp_path / "scan", "axial", [2])[0])
    with pytest.raises(ImageError, match=r"without its images at axial 2.*Take axial"):
        pixels(slices(tmp_path / "scan", "coronal")[0])
    (volume,) = assemble(found, np.ones(5), [np.ones((5, 4), np.float32)] * 5, Limits(0.5))
    assert volume.heatmap.shape == (4, 5, 6)


def test_copies_are_taken_once(tmp_path):
    paths = scan(tmp_path / "scan")
    shutil.copy(paths[3], tmp_path / "scan" / "again")
    found = expand(tmp_path / "scan")
    assert len(found) == 6
    assert found.left_out == {"copy": 1}


def test_volumes_of_one_series_are_told_apart(tmp_path):
    for number in (1, 2):
        paths = scan(tmp_path / "other", AcquisitionNumber=number, each=lambda i: {"TriggerTime": 10 * i})
        for path in paths:
            (tmp_path / "scan").mkdir(exist_ok=True)
            path.rename(tmp_path / "scan" / f"{path.name}.{number}")
    found = expand(tmp_path / "scan")
    names = list(dict.fromkeys(str(source.path) for source in found))
    assert names == [f"{tmp_path}/scan[series 2 part {part}]" for part in (1, 2)]
    assert [source.index for source in found] == [*range(6), *range(6)]
    assert expand(f"{names[1]}[axial 0:2]") == found[6:8]


def test_what_nothing_tells_apart_is_taken_one_by_one(tmp_path):
    scan(tmp_path / "scan")
    for path in scan(tmp_path / "other"):
        path.rename(tmp_path / "scan" / f"{path.name}b")
    with pytest.warns(UserWarning, match=r"2 images at the position.*one by one"):
        found = expand(tmp_path / "scan")
    assert len(found) == 12
    assert not any(hasattr(source, "axis") for source in found)
    with pytest.raises(ImageFileError, match=r"0 DICOM volumes.*2 images at the position"):
        slices(tmp_path / "scan")


def test_uneven_distances_are_no_volume(tmp_path):
    planes, *_ = cut(AXIAL)
    places = [0, 3, 7.1, 9.2, 20, 21]
    write_series(tmp_path / "scan", planes, each=lambda i: {"ImagePositionPatient": [0, 0, places[i]]})
    with pytest.warns(UserWarning, match=r"6 images 1 to 10\.8 mm apart"):
        assert len(expand(tmp_path / "scan")) == 6


def test_rounded_positions_are_a_volume(tmp_path):
    planes = np.repeat(cut(AXIAL)[0], 20, axis=0)
    write_series(tmp_path / "scan", planes, each=lambda i: {"ImagePositionPatient": [0, 0, round(0.625 * i, 1)]})
    found = expand(tmp_path / "scan")
    assert [source.index for source in found] == list(range(120))
    assert read_image(slices(tmp_path / "scan", "coronal")[0], "", WINDOW).spacing == pytest.approx(
        (0.625, 1.0), rel=1e-3
    )


def test_orientations_of_one_series_are_volumes_of_their_own(tmp_path):
    for orientation in (AXIAL, SAGITTAL):
        for path in scan(tmp_path / "other", orientation):
            (tmp_path / "scan").mkdir(exist_ok=True)
            path.rename(tmp_path / "scan" / f"{path.name}{orientation}")
    volumes = {source.path for source in expand(tmp_path / "scan")}
    assert sorted((volume.axis, len(volume.planes)) for volume in volumes) == [("axial", 6), ("sagittal", 4)]


def test_a_tilted_gantry_shears_the_affine(tmp_path):
    planes, *_ = cut(AXIAL)
    write_series(tmp_path / "scan", planes, step=(0, 1.0, 3.0))
    found = expand(tmp_path / "scan")
    (volume,) = assemble(found, np.ones(6), [np.ones((5, 4), np.float32)] * 6, Limits(0.5))
    assert np.allclose(volume.affine, [[-1, 0, 0, 0], [0, -2, -1, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    written = nibabel.load(volume.save(tmp_path / "heat.nii.gz"))
    assert np.allclose(written.affine, volume.affine)


def test_localizers_of_others_are_left_out(tmp_path):
    scan(tmp_path / "scan")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": SERIES + ".9"}
    for path in scan(tmp_path / "other", SAGITTAL, **scout):
        path.rename(tmp_path / "scan" / f"{path.name}s")
    found = expand(tmp_path / "scan")
    assert len(found) == 6
    assert found.left_out == {"localizer": 4}
    scan(tmp_path / "scouts", **scout)
    assert len(expand(tmp_path / "scouts")) == 6  # all there is


def test_one_window_for_cuts_through_images_of_several(tmp_path):
    scan(tmp_path / "scan", each=lambda i: {"WindowCenter": 1000 + i, "WindowWidth": 2000})
    assert read_image(slices(tmp_path / "scan")[0]).pixels.max() > 0
    with pytest.raises(ImageTypeError, match=r"different windows.*intensity_range"):
        read_image(slices(tmp_path / "scan", "coronal")[0])
    scan(tmp_path / "same", WindowCenter=2000, WindowWidth=4000)
    assert read_image(slices(tmp_path / "same", "coronal")[0]).pixels.max() > 0


def test_images_without_a_position_stay_what_they_are(tmp_path):
    for number in range(3):
        write_dicom(tmp_path / f"{number}.dcm", np.arange(20, dtype=np.uint8).reshape(4, 5), SeriesInstanceUID=SERIES)
    assert expand(tmp_path) == sorted(tmp_path.iterdir())


def test_a_file_that_goes_missing_says_so(tmp_path):
    paths = scan(tmp_path / "scan")
    found = expand(tmp_path / "scan")
    paths[4].unlink()
    with pytest.raises(ImageFileError, match="no file"):
        read_image(found[0])
    assert isinstance(found[0].path, Series)
    assert open_stack(found[0].path.files[0]).axes == {"frame": 1}


def test_fit_on_a_volume_leaves_blank_slices_out(small, sample, tmp_path):
    planes = np.stack([np.zeros_like(sample.support), sample.support, sample.images[0]]).astype(np.uint16)
    write_series(tmp_path / "scan", planes)
    detector = AnomalyDetector(recipe=small, random_state=0, intensity_range=(0, 255))
    assert detector.fit(tmp_path / "scan").n_support_ == 2
    assert detector.fit(f"{tmp_path}/scan[axial 1:2]").n_support_ == 1
    predictions = detector.predict(tmp_path / "scan")
    assert predictions.positions == [None, 0.5, 1.0]  # the first is blank
    with pytest.raises(ImageError, match="constant"):
        detector.fit(f"{tmp_path}/scan[axial 0]")


def test_a_list_of_files_is_a_volume_on_the_command_line_too(fitted, stub, tmp_path, monkeypatch):
    paths = scan(tmp_path / "scan", WindowCenter=2000, WindowWidth=4000)
    saved = fitted.save_pretrained(tmp_path / "detector")
    names = list(map(str, sorted(paths)))  # as a shell gives scan/*
    with pytest.raises(SystemExit) as done:
        app(["predict", str(saved), *names, "--out", str(tmp_path / "out"), "--format", "dicom"])
    assert done.value.code == 0
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert [row["name"] for row in rows] == list(map(str, paths))
    captures = [pydicom.dcmread(tmp_path / "out" / row["heatmap"]) for row in rows if row["heatmap"]]
    assert [ds.InstanceNumber for ds in captures] == sorted(ds.InstanceNumber for ds in captures)
    (volume,) = csv.DictReader((tmp_path / "out/volumes.csv").open())
    assert volume["name"] == str(tmp_path / "scan")
    kinds = sorted(path.name for path in (tmp_path / "out/volumes").iterdir())
    assert kinds[:2] == ["00000-scan.map.dcm", "00000-scan.nii.gz"]


def test_directions_that_differ_in_the_last_digit_are_the_same(tmp_path):
    each = {0: [1, 0.005, 0, 0, 1, 0], 1: [1, 0.0049999, 0, 0, 1, 0]}
    scan(tmp_path / "scan", each=lambda i: {"ImageOrientationPatient": each[i % 2], "PixelSpacing": [2, 1 + 1e-5 * i]})
    assert len({source.path for source in expand(tmp_path / "scan")}) == 1


def test_what_differs_from_slice_to_slice_tells_no_volumes_apart(tmp_path):
    for number in (1, 2):
        about = {"EchoTime": 10 * number, "each": lambda i: {"AcquisitionNumber": i + 1}}
        for path in scan(tmp_path / "other", **about):
            (tmp_path / "scan").mkdir(exist_ok=True)
            path.rename(tmp_path / "scan" / f"{path.name}.{number}")
    volumes = {source.path for source in expand(tmp_path / "scan")}
    assert sorted(volume.part for volume in volumes) == [1, 2]
    assert all(len(volume.planes) == 6 for volume in volumes)


def test_directions_that_mean_nothing_are_no_volume(tmp_path):
    scan(tmp_path / "scan")
    shutil.rmtree(tmp_path / "scan")
    planes, *_ = cut(AXIAL)
    none = {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}
    write_series(tmp_path / "scan", planes, each=lambda i: none)
    with pytest.warns(UserWarning, match="one by one"):
        assert len(expand(tmp_path / "scan")) == 6


def test_places_of_a_series_are_found_from_anywhere(tmp_path, monkeypatch):
    paths = scan(tmp_path / "scan")
    monkeypatch.chdir(tmp_path)
    (volume,) = {source.path for source in expand(["scan/" + path.name for path in paths])}
    assert str(volume) == "scan"
    monkeypatch.chdir(tmp_path / "scan")
    assert {str(source.path) for source in expand([path.name for path in paths])} == {"."}
    mixed = expand([paths[0], *[path.name for path in paths[1:]]])
    assert len({source.path for source in mixed}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_oblique_series_lie_where_highdicom_puts_them(tmp_path, seed):
    turn = Rotation.random(random_state=seed).as_matrix()
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 4000, (7, 9, 11)).astype(np.uint16)
    about = {"orientation": (*turn[:, 0], *turn[:, 1]), "start": rng.normal(0, 50, 3)}
    paths = write_series(tmp_path / "scan", planes, spacing=(1.5, 0.7), step=2.5, **about)
    found = slices(tmp_path / "scan")
    (volume,) = assemble(found, np.ones(7), [pixels(source)[0].numpy() * 4000 for source in found], Limits(0.5))
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in paths])
    at = np.stack(np.meshgrid(*map(np.arange, volume.heatmap.shape), indexing="ij"), -1).reshape(-1, 3)
    lps = nibabel.affines.apply_affine(volume.affine, at) * [-1, -1, 1]
    index = theirs.map_reference_to_indices(lps, round_output=True).astype(int)
    assert np.allclose(theirs.array[tuple(index.T)], volume.heatmap.ravel(), atol=0.01)
