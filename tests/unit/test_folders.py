"""What lies in folders, archives and patterns: images are found, all else is counted by kind."""

import gzip
import os
import tarfile
import zipfile

import nibabel
import numpy as np
import pytest
from dicom_files import PACKAGED, write_dicom
from PIL import Image

from oneshot_medad.errors import ImageFileError
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
SEG, RTDOSE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GREY).save(path, "PNG" if not path.suffix or path.suffix == ".jfif" else None)
    return path


def names(found, root):
    return [str(source).replace(f"{root}{os.sep}", "").replace(os.sep, "/") for source in found]


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "p/a.png", "p/s/a.png", "p/s/t/z.png"):
        picture(tmp_path / "tree" / name)
    return tmp_path / "tree"


def test_folders_at_any_depth(tree):
    found = expand(tree)
    assert (names(found, tree), found.left_out) == (["b.png"], {"folder": 1})
    found = expand(tree, recursive=True)
    assert (names(found, tree), found.left_out) == (["b.png", "p/a.png", "p/s/a.png", "p/s/t/z.png"], {})
    assert expand([str(tree / "p")], recursive=True) == found[1:]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.png", ["b.png", "p/a.png", "p/s/a.png", "p/s/t/z.png"]),
        ("**", ["b.png", "p/a.png", "p/s/a.png", "p/s/t/z.png"]),
        ("**/a.png", ["p/a.png", "p/s/a.png"]),
        ("p/**/a.png", ["p/a.png", "p/s/a.png"]),
        ("**/s", ["p/s/a.png"]),
        ("**/", ["b.png", "p/a.png", "p/s/a.png", "p/s/t/z.png"]),
        ("**/[ps]*", ["p/a.png", "p/s/a.png"]),
        ("*", ["b.png", "p/a.png"]),
        ("*/*.png", ["p/a.png"]),
        ("?.png", ["b.png"]),
    ],
)
def test_patterns(tree, pattern, expected):
    assert names(expand(f"{tree}/{pattern}"), tree) == expected
    assert names(expand(tree / pattern), tree) == expected


def test_patterns_pass_over_what_folders_do(tree):
    (tree / "notes.txt").write_text("no image")
    write_dicom(tree / "seg", GREY, SOPClassUID=SEG, Modality="SEG")
    found = expand(f"{tree}/*")
    assert names(found, tree) == ["b.png", "p/a.png"]
    assert found.left_out == {".txt": 1, "SEG": 1, "folder": 1}
    with pytest.raises(ImageFileError, match=r"pattern.*no image file.*1 left out \(\.txt\)"):
        expand(f"{tree}/*.txt")


def test_brackets_in_names_are_no_pattern(tmp_path):
    names_ = ["run[1]/a.png", "run[1]/b[2].png", "run1/a.png", "a[frame 3].png"]
    for name in names_:
        picture(tmp_path / name)
    assert names(expand(f"{tmp_path}/run[1]/*.png"), tmp_path) == ["run[1]/a.png", "run[1]/b[2].png"]
    assert names(expand(tmp_path / "run[1]"), tmp_path) == ["run[1]/a.png", "run[1]/b[2].png"]
    assert names(expand(tmp_path / "run[1]" / "b[2].png"), tmp_path) == ["run[1]/b[2].png"]
    assert names(expand(f"{tmp_path}/run[12]/a.png"), tmp_path) == ["run1/a.png"]
    assert read_image(tmp_path / "a[frame 3].png").size == (20, 30)


def test_a_folder_of_folders_says_so(tree):
    (tree / "b.png").unlink()
    with pytest.raises(
        ImageFileError, match=r"without image files.*1 left out \(folder\).*recursive=True \(--recursive\)"
    ):
        expand(tree)


def test_links_are_followed_once(tree):
    (tree / "p" / "up").symlink_to(tree)
    (tree / "gone.png").symlink_to(tree / "nowhere.png")
    found = expand(tree, recursive=True)
    assert names(found, tree) == ["b.png", "p/a.png", "p/s/a.png", "p/s/t/z.png"]
    assert found.left_out == {"broken link": 1}


@pytest.fixture
def mixed(tmp_path):
    """Everything that may lie beside images."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    picture(folder / "a.png")
    picture(folder / "photo.jfif")
    picture(folder / "no_suffix")
    data = write_dicom(folder / "scan", GREY).read_bytes()
    (folder / "packed.dcm.gz").write_bytes(gzip.compress(data))
    (folder / "bare.bin").write_bytes(data[132:])
    nibabel.save(nibabel.Nifti1Pair(GREY.T[::-1, ::-1, None], np.eye(4)), folder / "pair.hdr")
    for name in ("notes.txt", "more.TXT", "volume.nrrd", "array.npy", "README", "1.2.840.10008"):
        (folder / name).write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    with tarfile.open(folder / "scans.tar.gz", "w:gz") as archive:
        archive.add(folder / "a.png")
    with zipfile.ZipFile(folder / "scans.zip", "w") as archive:
        archive.write(folder / "a.png", "a.png")
    write_dicom(folder / "seg.dcm", GREY, SOPClassUID=SEG, Modality="SEG")
    write_dicom(folder / "seg2.dcm", GREY, SOPClassUID=SEG, Modality="SEG")
    write_dicom(folder / "dose", GREY, SOPClassUID=RTDOSE, Modality="RTDOSE")
    (folder / "report.dcm").write_bytes((PACKAGED / "test-SR.dcm").read_bytes())
    return folder


IMAGES = ["a.png", "bare.bin", "no_suffix", "packed.dcm.gz", "pair.hdr[axial 0]", "photo.jfif", "scan"]
BESIDE = {".txt": 2, ".nrrd": 1, ".npy": 1, "no suffix": 2, ".tar.gz": 1, ".zip": 1, "SEG": 2, "RTDOSE": 1, "SR": 1}


def test_all_else_is_counted_by_kind(mixed):
    found = expand(mixed)
    assert names(found, mixed) == IMAGES
    assert found.left_out == {**BESIDE, "folder": 1}
    for source in found:
        np.testing.assert_allclose(read_image(source, intensity_range=(0, 255)).pixels[0], GREY / 255, atol=1e-6)
    assert expand(found).left_out == found.left_out  # a list that was expanded keeps its count


def test_archives_count_too(mixed, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(mixed.rglob("*")):
            archive.write(path, path.relative_to(mixed))
        archive.writestr("__MACOSX/._a.png", "no image")
    found = expand(tmp_path / "all.zip")
    assert names(found, tmp_path / "all.zip") == IMAGES
    assert found.left_out == BESIDE
    for source in found:
        np.testing.assert_allclose(read_image(source, intensity_range=(0, 255)).pixels[0], GREY / 255, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_discs(tmp_path, packed):
    disc = tmp_path / "disc"
    for name in ("IMAGES/S1/I0001", "IMAGES/S1/I0002", "IMAGES/S2/I0001"):
        (disc / name).parent.mkdir(parents=True, exist_ok=True)
        write_dicom(disc / name, GREY)
    (disc / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    picture(disc / "VIEWER" / "logo.png")
    (disc / "autorun.inf").write_text("[autorun]")
    root = disc
    if packed:
        root = tmp_path / "disc.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for path in disc.rglob("*"):
                archive.write(path, path.relative_to(disc))
    found = expand(root)
    assert names(found, root) == ["IMAGES/S1/I0001", "IMAGES/S1/I0002", "IMAGES/S2/I0001"]
    assert found.left_out == {".png": 1, ".inf": 1}
    if not packed:
        assert expand(disc / "DICOMDIR") == found
        picture(tmp_path / "beside.png")
        assert len(expand(tmp_path, recursive=True)) == 4


def test_the_packaged_disc():
    found = expand(PACKAGED / "dicomdirtests")
    assert len(found) == 79  # of 81, two are localizers
    assert len(expand(PACKAGED / "dicomdirtests" / "DICOMDIR")) == 79  # of 81, two are localizers


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"\x93NUMPY", r"NumPy file \(\.npy\).*numpy\.load"),
        ("a.nrrd", b"NRRD0004", r"volume of another format \(\.nrrd\).*\.nii\.gz"),
        ("a.mha", b"ObjectType = Image", r"\.mha.*SimpleITK"),
        ("a.mgz", gzip.compress(b"\0\0\0\1"), r"\.mgz.*\.nii\.gz"),
        ("a.img", bytes(400), r"half of a pair \(\.img\).*\.hdr"),
        ("a.tar.gz", gzip.compress(bytes(600)), r"\.tar\.gz.*Unpack"),
        ("a.heic", b"\0\0\0\x18ftypheic", r"picture of another format \(\.heic\).*PNG"),
        ("a.mp4", b"\0\0\0\x18ftypmp42", r"film \(\.mp4\).*frames"),
        ("a.mat", b"MATLAB 5.0", r"container of arrays \(\.mat\)"),
        ("a.xyz", b"what is this", "no image of a known format"),
        ("b.png", b"NRRD0004\n", r"volume of another format \(\.png\).*\.nii\.gz"),
        ("c", b"\x89HDF\r\n", "container of arrays"),
        ("d.jpg", b"\0\0\0\x0cjP  ", "picture of another format"),
        ("e.bin", b"PK\3\4", "something compressed"),
        ("a", b"", "no image of a known format"),
        ("a.hdr", (348).to_bytes(4, "little") + bytes(344), "ANALYZE 7.5, which does not tell left from right"),
        ("a.dcm", b"no image", "no 'DICM'"),
        ("a.tif", b"no image", "not a TIFF"),
        ("a.nii", b"no image", r"a\.nii"),
    ],
)
def test_kinds_that_are_not_read_are_called_by_their_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    (source,) = expand(tmp_path / name)
    with pytest.raises(ImageFileError, match=message) as caught:
        read_image(source)
    if "no image of a known format" in str(caught.value):
        assert all(kind in str(caught.value) for kind in ("DICOM", "NIfTI", "PNG", "TIFF", "zip"))


def test_left_out_files_stand_with_predictions(fitted, sample, tmp_path):
    Image.fromarray(sample.images[0]).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    predictions = fitted.predict(tmp_path)
    assert predictions.left_out == {".txt": 1}
    assert str(predictions).endswith("1 left out (.txt).")
    assert "1 left out (.txt)" in predictions.to_html(tmp_path / "report.html").read_text()
    (tmp_path / "below").mkdir()
    Image.fromarray(sample.images[1]).save(tmp_path / "below" / "b.png")
    assert len(fitted.predict(tmp_path, recursive=True)) == 2
    assert fitted.predict(sample.images[:1]).left_out == {}
