import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.errors import ConfigError, ExtraError
from oneshot_medad.results.audit import audit_records
from oneshot_medad.results.capture import NOTICE, capture_picture
from oneshot_medad.results.heatmaps import FORMATS

MADE = {"detector_sha256": "ab" * 32, "threshold_rule": "manual", "versions": {"oneshot-medad": "0.1.0"}}
GREY = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)


@pytest.fixture
def files(tmp_path):
    """One image in a file with a spacing, one in memory, one that cannot be read."""
    Image.fromarray(GREY).save(tmp_path / "a.png")
    heat = np.full((12, 20), -1.0, np.float32)
    heat[2:4, 5:9] = [0.6, 0.9, 0.6, 0.6]
    return Predictions(
        np.array([0.9, 0.2, np.nan]),
        [heat, heat / 4, np.zeros((0, 0), np.float32)],
        0.5,
        [str(tmp_path / "a.png"), "image 1", str(tmp_path / "torn.png")],
        ["", "", "torn"],
        None,
        [(0.5, 2.0), None, None],
        [tmp_path / "a.png", GREY, tmp_path / "torn.png"],
        provenance=MADE,
    )


def test_shown_scores_by_hand(files):
    assert files.shown[0] == pytest.approx(1 / (1 + np.exp(-4 * 0.4)))
    assert files.shown[1] == pytest.approx(1 / (1 + np.exp(4 * 0.3)))
    assert np.isnan(files.shown[2])
    at = Predictions(np.array([0.5, np.nextafter(0.5, 1)]), [], 0.5, ["a", "b"])
    assert at.shown[0] == 0.5
    assert files.to_rows()[0]["shown"] == files.shown[0]


def test_regions_by_hand(files):
    (found,) = files.regions(0)
    assert found.score == pytest.approx(0.9)
    assert found.mean == pytest.approx(0.675)
    assert (found.area_px, found.area_mm2) == (8, 8.0)
    assert found.centroid == (2.5, 6.5)
    assert found.box == (2, 5, 4, 9)
    assert files.regions(1) == files.regions(2) == []
    heat = np.zeros((6, 6), np.float32)
    heat[0, 0] = heat[1, 1] = 0.7  # touch by a corner
    heat[4, 4] = 0.8
    two = Predictions(np.array([1.0]), [heat], 0.5, ["x"]).regions(0)
    assert [(r.area_px, r.area_mm2) for r in two] == [(1, None), (2, None)]


def test_audit_records_say_what_was_decided_and_from_what(files, tmp_path):
    path = files.to_jsonl(tmp_path / "audit.jsonl")
    files.to_jsonl(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[:3] == lines[3:] == audit_records(files)
    first, second, third = lines[:3]
    assert first["input_sha256"] == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    pixels = np.repeat(GREY[None].astype(np.float32) / 255, 3, axis=0)
    assert second["input_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert [line["input_hash_of"] for line in lines[:3]] == ["file", "pixels", None]
    assert [line["decision"] for line in lines[:3]] == ["abnormal", "normal", "not read"]
    assert (third["score"], third["shown"], third["reason"]) == (None, None, "torn")
    assert first["threshold_rule"] == "manual"
    assert first["detector_sha256"] == "ab" * 32
    assert "p_value" not in first
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    assert audit_records(files)[2]["input_sha256"] == hashlib.sha256(b"\x89PNG").hexdigest()


def test_a_detectors_hash_follows_what_its_scores_depend_on(fitted, sample, small, tmp_path):
    made = fitted.predict(sample.images[:1]).provenance
    assert made["detector_sha256"] == fitted.fingerprint_
    assert len(fitted.fingerprint_) == 64
    assert (made["backbone"], made["n_support"], made["threshold_rule"]) == ("tiny", 1, "expected")
    again = AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "a"))
    assert again.fingerprint_ == fitted.fingerprint_
    assert again.set_threshold(0.1).fingerprint_ == fitted.fingerprint_
    other = AnomalyDetector(recipe=small, random_state=1).fit(sample.support)
    assert other.fingerprint_ != fitted.fingerprint_
    records = audit_records(again.calibrate(sample.images[:4], target_fpr=0.25).predict(sample.images[4]))
    assert 0 < records[0]["p_value"] <= 1


def test_heatmaps_come_back_from_every_array_format(files, tmp_path):
    heat = files.heatmaps[0]
    png, _, none = files.save_heatmaps(tmp_path / "h", start=7)
    assert png.name == "00007-a.png"
    assert none is None
    grey = np.asarray(Image.open(png))
    assert grey.dtype == np.uint16
    np.testing.assert_allclose(grey / 65535, 1 / (1 + np.exp(-4 * (heat - 0.5))), atol=1e-5)

    npz, plain, _ = files.save_heatmaps(tmp_path / "h", format="npz")
    with np.load(npz) as held:
        assert np.array_equal(held["heatmap"], heat)
        assert held["heatmap"].dtype == np.float32
        assert (float(held["threshold"]), held["spacing_mm"].tolist()) == (0.5, [0.5, 2.0])
    with np.load(plain) as held:
        assert "spacing_mm" not in held

    nifti, _, _ = files.save_heatmaps(tmp_path / "h", format="nifti")
    volume = nibabel.load(nifti)
    low, high = (float(volume.header[name]) for name in ("cal_min", "cal_max"))
    assert (low + high) / 2 == pytest.approx(files.threshold)
    assert np.array_equal(volume.get_fdata()[:, :, 0].T, heat)
    assert volume.header.get_zooms()[:2] == (2.0, 0.5)  # columns are 2 mm wide, rows 0.5 mm high
    assert volume.header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(volume.affine @ [1, 1, 0, 1], [-2, -0.5, 0, 1])  # to the left and to the back

    with pytest.raises(ConfigError, match="'npz'"):
        files.save_heatmaps(tmp_path / "h", format="mha")


def test_a_missing_extra_is_named_before_anything_is_written(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ExtraError, match=r"oneshot-medad\[dicom\]"):
        files.save_heatmaps(tmp_path / "h", format="dicom")
    assert not (tmp_path / "h").exists()


DICOM = ("CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "JPGExtended.dcm", "liver_1frame.dcm")


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """Predictions on DICOM files and one array, and the captures of them."""
    import pydicom
    from pydicom.data import get_testdata_file

    paths = [Path(get_testdata_file(name, download=False)) for name in DICOM]
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    shapes = [(ds.Rows, ds.Columns) for ds in headers] + [(33, 41)]
    heatmaps = [np.linspace(-1, 2, h * w, dtype=np.float32).reshape(h, w) for h, w in shapes]
    spacings = [tuple(map(float, ds.PixelSpacing)) if "PixelSpacing" in ds else None for ds in headers] + [None]
    names = [*map(str, paths), "image 5"]
    sources = [*paths, np.arange(33 * 41).reshape(33, 41) / (33 * 41)]
    predictions = Predictions(
        np.arange(6) / 5, heatmaps, 0.5, names, [""] * 6, None, spacings, sources, provenance=MADE
    )
    files = predictions.save_heatmaps(tmp_path_factory.mktemp("captures"), start=3, format="dicom")
    return predictions, headers, [pydicom.dcmread(file) for file in files], files


def test_captures_hold_the_picture_and_say_what_they_are(captures):
    predictions, _, found, _ = captures
    for i, ds in enumerate(found):
        assert ds.SOPClassUID.name == "Secondary Capture Image Storage"
        assert np.array_equal(ds.pixel_array, np.asarray(capture_picture(predictions, i)))
        assert ds.BurnedInAnnotation == "YES"
        assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert NOTICE in ds.ImageComments
        assert ds.InstanceNumber == 3 + i + 1
    assert len({ds.SOPInstanceUID for ds in found}) == len(found)
    assert len({ds.SeriesInstanceUID for ds in found}) == len({ds.StudyInstanceUID for ds in found})
    notice = np.asarray(capture_picture(predictions, 5))[-18:]
    assert notice.max() > 200  # something is burnt in below
    assert "abababab" in found[0].DerivationDescription


def test_captures_join_the_study_of_their_source(captures):
    predictions, headers, found, _ = captures
    for source, ds, spacing in zip(headers, found, predictions.spacings, strict=False):
        for name in ("PatientID", "PatientName", "StudyInstanceUID"):
            assert ds[name].value == source[name].value
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID
        assert ds.SOPInstanceUID != source.SOPInstanceUID
        (reference,) = ds.SourceImageSequence
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert ("PixelSpacing" in ds) == (spacing is not None)
        if spacing:
            assert tuple(map(float, ds.PixelSpacing)) == spacing
    alone = found[-1]
    assert alone.PatientID == ""
    assert "SourceImageSequence" not in alone


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_captures_pass_the_standards_checker(captures):
    for file in captures[3]:
        done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert "SCImage" in said
        assert "Error" not in said, said


def test_every_format_has_a_suffix_of_its_own():
    from oneshot_medad.cli.predictions import Format

    assert [form.value for form in Format] == list(FORMATS)
    assert len(set(FORMATS.values())) == len(FORMATS)
