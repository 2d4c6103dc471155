import gzip
import zipfile

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import PACKAGED, write_dicom
from PIL import Image

from oneshot_medad import slices
from oneshot_medad.errors import ImageError, ImageFileError
from oneshot_medad.images import files
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    Image.fromarray(GREY).save(folder / "b.png")
    Image.fromarray(GREY[::-1]).save(folder / "deep" / "c.tif")
    write_dicom(folder / "a.dcm", np.stack([GREY, 255 - GREY]))
    write_dicom(folder / "1.2.3", GREY)
    nibabel.save(nibabel.Nifti1Image(GREY.T[::-1, ::-1, None], np.eye(4)), folder / "v.nii")
    (folder / "v2.nii.gz").write_bytes(gzip.compress((folder / "v.nii").read_bytes()))
    (folder / "notes.txt").write_text("no image")
    (folder / "__MACOSX" / "._b.png").write_text("no image")
    return folder


def pack(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
    return path


def test_members_are_what_the_files_are(folder, tmp_path):
    archive = pack(folder, tmp_path / "scans.zip")
    sources = expand(archive)
    names = ["1.2.3", "a.dcm[frame 0]", "a.dcm[frame 1]", "b.png", "deep/c.tif", "v.nii[axial 0]", "v2.nii.gz[axial 0]"]
    assert [str(source) for source in sources] == [f"{archive}/{name}" for name in names]
    expected = [GREY, GREY, 255 - GREY, GREY, GREY[::-1], GREY, GREY]
    for source, pixels in zip(sources, expected, strict=True):
        found = read_image(source, intensity_range=(0, 255))
        assert found.name == str(source)
        torch.testing.assert_close(found.pixels[0], torch.from_numpy(pixels.copy()) / 255)
    assert [str(s) for s in expand(folder)] == [f"{folder}/{name}" for name in names if not name.startswith("deep")]
    assert expand(str(tmp_path / "*.zip")) == sources
    with pytest.raises(ImageFileError, match="archive of 6 image files"):
        read_image(archive)
    assert slices(sources[1].path, indices=[1]) == [sources[2]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scans", "scans.zip"]  # nothing was unpacked


def test_an_archive_is_opened_once(folder, tmp_path, monkeypatch):
    opened = []
    original = files.ZipFile
    monkeypatch.setattr(files, "ZipFile", lambda path: opened.append(path) or original(path))
    for source in expand(pack(folder, tmp_path / "scans.zip")):
        read_image(source, intensity_range=(0, 255))
    assert len(opened) == 1


def test_members_that_cannot_be_read_do_not_hide_the_others(fitted, sample, folder, tmp_path):
    path = tmp_path / "x.zip"
    Image.fromarray(sample.images[0]).save(folder / "good.png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("broken.dcm", (PACKAGED / "MR_truncated.dcm").read_bytes())
        archive.writestr("empty.png", b"")
        archive.write(folder / "good.png", "good.png")
        archive.writestr("wrong.png", GREY.tobytes())
    data = bytearray(path.read_bytes())
    at = data.index(GREY.tobytes()[:40])
    data[at] ^= 1  # the checksum no longer fits
    path.write_bytes(data)
    predictions = fitted.predict(path, on_error="record")
    assert predictions.names == [f"{path}/{name}" for name in ("broken.dcm", "empty.png", "good.png", "wrong.png")]
    assert [bool(reason) for reason in predictions.reasons] == [True, True, False, True]
    assert "Bad CRC-32" in predictions.reasons[3]
    assert predictions.scores[2] == pytest.approx(fitted.predict(sample.images[0]).scores[0], abs=1e-5)


def test_encrypted_members_say_so(folder, tmp_path):
    path = pack(folder, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    sources = expand(path)
    assert f"{path}/b.png" in map(str, sources)
    for source in sources:
        with pytest.raises(ImageFileError, match="encrypted"):
            read_image(source, intensity_range=(0, 255))


def test_archives_that_cannot_be_read(folder, tmp_path):
    path = pack(folder, tmp_path / "x.zip")
    whole = path.read_bytes()
    for length in (0, 30, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        (source,) = expand(path)
        with pytest.raises(ImageFileError, match=r"x\.zip.*(zip|central directory)"):
            read_image(source)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no image")
    with pytest.raises(ImageFileError, match="without image files"):
        expand(path)


def test_members_that_unpack_to_too_much_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBER", 100)
    sources = expand(pack(folder, tmp_path / "x.zip"))
    with pytest.raises(ImageError, match=r"b\.png.* wanted at most 100"):
        read_image(next(s for s in sources if str(s).endswith("b.png")))
