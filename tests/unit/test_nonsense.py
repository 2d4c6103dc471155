"""Images that promise nothing are refused or warned about: fitted on, copied, of another kind, saturated."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from oneshot_medad import AnomalyDetector, _predicting
from oneshot_medad.calibration import false_positives, promises, stated
from oneshot_medad.datasets import load_sample
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.images.read import MedicalImage
from oneshot_medad.images.sanity import saturated


@pytest.fixture
def detector(fitted):
    return copy.copy(fitted)


@pytest.fixture(scope="module")
def many():
    return load_sample(n_normal=19, n_abnormal=2)


@pytest.fixture(scope="module")
def stripes():
    rows, columns = np.mgrid[:200, :200]
    return (127 + 120 * np.sin(rows / 3) * np.sin(columns / 5)).astype(np.uint8)


def formats(image, folder):
    """One picture in every form that keeps its pixels."""
    import nibabel
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    for suffix in ("png", "bmp", "tif"):
        Image.fromarray(image).save(folder / f"copy.{suffix}")
    Image.fromarray(image.astype(np.uint16) * 257).save(folder / "copy16.png")
    Image.fromarray(np.stack([image] * 3, axis=-1)).save(folder / "colour.png")
    volume = nibabel.Nifti1Image(np.ascontiguousarray(image.T[::-1, ::-1, None]), np.eye(4))
    volume.header["cal_max"] = 255
    nibabel.save(volume, folder / "copy.nii.gz")
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *image.shape, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = image.tobytes()
    ds.save_as(folder / "copy.dcm", enforce_file_format=True)
    return [*sorted(folder.iterdir()), Image.fromarray(image), torch.from_numpy(image), image / 255]


# --- calibrate -----------------------------------------------------------------------------------------------------


def test_the_image_fitted_on_is_refused_in_every_form(detector, sample, many, tmp_path):
    before = detector.calibration_
    for same in [sample.support, *formats(sample.support, tmp_path)]:
        with pytest.raises(ImageError, match="fitted on; wanted other images"):
            detector.calibrate([*many.images[:18], same])
        with pytest.raises(ImageError, match="fitted on"):
            detector.evaluate([many.images[-1], same], [1, 0])
    assert detector.calibration_ == before
    again = AnomalyDetector.from_pretrained(detector.save_pretrained(tmp_path / "detector"))
    with pytest.raises(ImageError, match="fitted on"):
        again.calibrate([*many.images[:18], sample.support])


def test_copies_of_one_image_are_refused_whatever_their_names(detector, many, tmp_path):
    before = detector.calibration_
    with pytest.raises(ImageError, match=r"copies of other images \(image 1 = image 0, .* and 15 more\)"):
        detector.calibrate([many.images[0]] * 19)
    for same in formats(many.images[3], tmp_path):
        with pytest.raises(ImageError, match="image 3"):
            detector.calibrate([*many.images[:18], same])
    with pytest.raises(ImageError, match="copies"):
        detector.calibrate([*many.images[:4], many.images[0]], [0, 0, 0, 1, 1])
    assert detector.calibration_ == before


def test_recompressed_and_rescaled_copies_are_warned_about(detector, many, tmp_path):
    Image.fromarray(many.images[2]).save(tmp_path / "copy.jpg", quality=60)
    Image.fromarray(many.images[1]).resize((123, 123)).save(tmp_path / "small.png")
    images = [*many.images[:3], *sorted(tmp_path.iterdir())]
    with pytest.warns(
        UserWarning, match=r"look like copies of others \(.*small\.png ~ image 1, .*copy\.jpg ~ image 2\)"
    ):
        detector.calibrate(images, target_fpr=0.2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Got ")
        detector.calibrate(many.images[:4], target_fpr=0.2)


def test_images_of_another_kind_are_refused_unless_they_are_asked_for(detector, many, stripes):
    before = detector.calibration_
    with pytest.raises(ImageError, match=r"image 4, which this detector cannot judge.*accept_unlike=True"):
        detector.calibrate([*many.images[:4], stripes], target_fpr=0.2)
    assert detector.calibration_ == before
    detector.calibrate([*many.images[:4], stripes], target_fpr=0.2, accept_unlike=True)
    assert detector.predict(stripes).verdicts != ["cannot judge"]


def test_calibrating_again_on_the_same_images_is_no_error(detector, many):
    images = many.images[:5]
    least = float(np.median(detector.calibrate(images, target_fpr=0.5).predict(images).similarities))
    detector._fitted = detector._fitted.recalibrated(least_similarity=least)  # as of another backbone
    assert "cannot judge" in detector.predict(images).verdicts
    assert detector.calibrate(images, target_fpr=0.2).calibration_["target_fpr"] == 0.2


def test_every_image_is_read_once(detector, many, monkeypatch):
    read, one = [], _predicting.read_one
    monkeypatch.setattr(_predicting, "read_one", lambda *given: read.append(given[1]) or one(*given))
    detector.calibrate(many.images[:9], target_fpr=0.2)
    assert read == list(range(9))
    read.clear()
    detector.evaluate(many.images[-4:], many.labels[-4:])
    assert read == list(range(4))


def test_folders_are_searched_to_any_depth_where_asked(detector, many, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for i, place in enumerate(("x", "a/x", "a/b/x", "a/b/y")):
        Image.fromarray(many.images[-4:][i]).save(tmp_path / f"{place}.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    labels = [int(label) for label in (many.labels[-2], many.labels[-1], many.labels[-3], many.labels[-4])]
    measured = detector.evaluate(tmp_path, labels, recursive=True)  # a/b/x, a/b/y, a/x, x
    assert (measured["n_normal"], measured["n_abnormal"]) == (2, 2)
    with pytest.raises(ValueError, match="4 labels for 1 images"):
        detector.evaluate(tmp_path, labels)
    with pytest.raises(ConfigError, match="at least 4"):
        detector.calibrate(tmp_path, target_fpr=0.2)
    assert detector.calibrate(tmp_path, target_fpr=0.2, recursive=True).calibration_["n_normal"] == 4


# --- what a calibration promises -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "rank", "expected", "bound"),
    [(19, 19, 1 / 20, 1 - 0.05 ** (1 / 19)), (59, 59, 1 / 60, 1 - 0.05 ** (1 / 59)), (59, 57, 3 / 60, None)],
)
def test_the_beta_law_by_hand(n, rank, expected, bound):
    found = false_positives(np.arange(n), rank - 1)
    assert found[0] == pytest.approx(expected)
    if bound:  # of the highest score, P(share above > b) = (1 − b)ⁿ
        assert found[1] == pytest.approx(bound)
    # and by simulation: uniform scores, whose share above t is 1 − t
    drawn = np.sort(np.random.default_rng(0).random((4000, n)), axis=1)[:, rank - 1]
    assert np.mean(1 - drawn) == pytest.approx(found[0], rel=0.05)
    assert np.mean(1 - drawn <= found[1]) == pytest.approx(0.95, abs=0.012)


def test_what_is_promised_is_stored_and_said_everywhere(detector, many, tmp_path):
    detector.calibrate(many.images[:19], target_fpr=0.05, uncertain_fpr=0.2)
    said = detector.calibration_
    assert (said["target_fpr"], said["uncertain_fpr"], said["n_normal"]) == (0.05, 0.2, 19)
    assert len(set(said["images"])) == 19
    assert said["expected_fpr"] == pytest.approx(0.05)
    assert said["fpr_bound"] == pytest.approx(0.146, abs=5e-4)
    assert said["expected_uncertain"] == pytest.approx(0.2)
    stored = json.loads((detector.save_pretrained(tmp_path / "d") / "calibration.json").read_text())
    assert (stored["target_fpr"], stored["uncertain_fpr"], stored["images"]) == (0.05, 0.2, said["images"])
    again = AnomalyDetector.from_pretrained(tmp_path / "d")
    assert again.calibration_ == said
    page = again.predict(many.images[-2:]).to_html(tmp_path / "report.html").read_text()
    for text in ((tmp_path / "d" / "README.md").read_text(), again.describe(), page):
        assert "19 normal images promise that 5 % of further ones are flagged on average" in text
        assert "14.6 %" in text
        assert "flagged or called uncertain" in text
        assert "at most 5 % was asked for" in text
        assert "at most 20 % was asked for" in text
        assert all(image[:12] in text for image in said["images"])
    assert again.set_threshold(0.3).calibration_["target_fpr"] is None
    assert promises(again.calibration_) == []
    assert len(again.calibration_["images"]) == 19  # p-values still come from them
    assert again.calibrate(many.images, many.labels).calibration_["expected_fpr"] is None


def test_calibrations_of_older_versions_still_load(detector, many, tmp_path):
    folder = detector.calibrate(many.images[:19]).save_pretrained(tmp_path / "d")
    values = json.loads((folder / "calibration.json").read_text())
    for name in ("target_fpr", "uncertain_fpr", "images"):
        del values[name]
    (folder / "calibration.json").write_text(json.dumps(values))
    again = AnomalyDetector.from_pretrained(folder)
    assert again.calibration_["images"] == []
    assert again.calibration_["expected_fpr"] == pytest.approx(0.05)
    assert "Calibrated on 19 images, 19 of them normal" in (again.save_pretrained(folder) / "README.md").read_text()


def test_a_calibration_on_very_many_images_can_be_read_back(detector, tmp_path):
    scores = np.random.default_rng(0).normal(size=20_000)
    found = {"normal_scores": np.sort(scores).tolist(), "images": [f"{i:064x}" for i in range(20_000)]}
    detector._fitted = detector._fitted.recalibrated(**found)
    again = AnomalyDetector.from_pretrained(detector.save_pretrained(tmp_path / "d"))
    assert stated(again._fitted.calibration)["n_normal"] == 20_000


# --- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluating_on_the_calibration_or_on_copies_warns(detector, many):
    detector.calibrate(many.images[:10], target_fpr=0.1)
    with pytest.warns(UserWarning, match="image 0, which the threshold was calibrated on"):
        detector.evaluate([many.images[0], many.images[-1]], [0, 1])
    with pytest.warns(UserWarning, match="image 1 = image 0"):
        detector.evaluate([many.images[-1], many.images[-1], many.images[12]], [1, 1, 0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Got ")
        measured = detector.evaluate(many.images[-4:], many.labels[-4:])
    for name in ("image_auroc", "image_ap", "sensitivity", "specificity"):
        low, high = measured[f"{name}_interval"]
        assert high - low > 0.4
        assert low <= measured[name] <= high
        assert len(measured[f"{name}_bootstrap"]) == 2


def test_a_fit_on_copies_warns(sample, small):
    with pytest.warns(UserWarning, match="image 1 = image 0"):
        detector = AnomalyDetector(recipe=small, random_state=0).fit([sample.support, sample.support])
    assert detector.n_support_ == 2
    with pytest.raises(ConfigError, match="2 images labelled abnormal"):
        detector.fit(sample.images[:2], [1, 1])


# --- saturation ----------------------------------------------------------------------------------------------------


def share(white, black, between):
    """An image of 1000 pixels with these shares in per mille."""
    pixels = np.concatenate([np.ones(white), np.zeros(black), np.linspace(0.1, 0.9, between)]).reshape(25, 40)
    return MedicalImage(torch.from_numpy(pixels.astype(np.float32)).expand(3, -1, -1), "x")


@pytest.mark.parametrize(
    ("white", "black", "between", "odd"),
    [
        (0, 880, 120, False),  # a black background is usual
        (100, 700, 200, False),
        (450, 100, 450, False),
        (600, 0, 400, True),  # more white than anything in between
        (300, 500, 200, True),  # over-exposed on a black background
        (100, 890, 10, True),  # a silhouette
        (500, 500, 0, True),  # a mask
        (0, 950, 50, True),  # a window that misses the tissue
    ],
)
def test_what_counts_as_saturated(white, black, between, odd):
    said = saturated(share(white, black, between))
    assert (said is not None) == odd
    if odd:
        assert f"{white / 10:.0f}% of its pixels are white and {black / 10:.0f}% black" in said


def test_saturated_images_are_warned_about_by_fit_calibrate_and_predict(detector, small, sample):
    burnt = np.where(sample.support < 40, 0, np.clip(sample.support.astype(int) * 6, 0, 255)).astype(np.uint8)
    with pytest.warns(UserWarning, match="image 0, which is saturated.*intensity_range"):
        AnomalyDetector(recipe=small, random_state=0).fit(burnt)
    with pytest.warns(UserWarning, match=r"image 1, which is saturated.*So are 1 more of 3 images\."):
        detector.predict([sample.images[0], burnt, burnt[::-1]])
    with pytest.warns(UserWarning, match="saturated"):
        detector.calibrate([*sample.images[:3], burnt], target_fpr=0.25, accept_unlike=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Got ")
        detector.predict(sample.images)


def test_faint_images_are_warned_about_by_predict_and_calibrate(detector, many, sample):
    """12 bits in 16, as exports often have it."""
    dark = [image.astype(np.uint16) * 16 for image in many.images[:4]]
    with pytest.warns(UserWarning, match=r"image 1, which uses \d\.\d% .*So are 1 more of 3 images\."):
        detector.predict([sample.images[0], *dark[:2]])
    with pytest.warns(UserWarning, match=r"uses \d\.\d% .*So are 3 more of 4 images"):
        detector.calibrate(dark, target_fpr=0.25, accept_unlike=True)


def test_the_empty_ends_of_a_volume_are_no_saturation_but_a_wrong_window_is(detector, sample, tmp_path):
    import nibabel

    end = np.zeros((246, 246), np.uint8)
    end[100:110, 100:110] = 90
    for name, planes, window in (("right", [end, *sample.images[:3]], (0, 255)), ("wrong", sample.images, (30, 31))):
        nibabel.save(nibabel.Nifti1Image(np.stack(planes, -1), np.diag([2, 2, 3, 1])), tmp_path / f"{name}.nii")
        detector.intensity_range = window
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            detector.predict(tmp_path / f"{name}.nii")
        assert any("saturated" in str(w.message) for w in found) == (name == "wrong")
