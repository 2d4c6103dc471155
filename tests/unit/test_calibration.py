import sys

import numpy as np
import pytest

from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.calibration import labelled_threshold, normal_threshold
from oneshot_medad.errors import ConfigError, ExtraError, ImageFileError, NotFittedError


def test_the_conformal_threshold_by_hand():
    normal = np.arange(1.0, 20.0)  # 19 scores
    assert normal_threshold(normal, 0.05) == 19  # ceil(20 * 0.95) = 19th smallest
    assert normal_threshold(normal, 0.10) == 18
    assert normal_threshold(normal, 0.5) == 10
    with pytest.raises(ConfigError, match=r"1/20 on.*at least 24"):
        normal_threshold(normal, 0.04)
    with pytest.raises(ConfigError, match="in \\(0, 1\\)"):
        normal_threshold(normal, 1.0)


def test_the_conformal_threshold_keeps_its_promise():
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(2000):
        scores = rng.standard_normal(40)
        flagged.append((scores[39:] > normal_threshold(scores[:39], 0.1)).mean())
    assert np.mean(flagged) < 0.1 + 3 * np.sqrt(0.09 / 2000)
    assert np.mean(flagged) > 0.06  # and is not merely careful


def test_the_labelled_threshold_separates_what_can_be_separated():
    scores = np.array([0.1, 0.4, 0.3, 0.9, 0.8])
    assert labelled_threshold(scores, [0, 0, 0, 1, 1]) == pytest.approx(0.6)
    for labels in ([0, 0], [1, 1, 1, 1, 1], [0, 1, 2, 0, 1]):
        with pytest.raises(ConfigError, match="wanted 5"):
            labelled_threshold(scores, labels)


def test_p_values_and_percentiles_by_hand():
    normal = np.array([1.0, 2.0, 3.0, 4.0])
    found = Predictions(np.array([0.0, 2.5, 9.0, np.nan]), [], 3.5, list("abcd"), ["", "", "", "torn"], normal)
    assert found.p_values[:3].tolist() == [1.0, 0.6, 0.2]
    assert found.percentiles[:3].tolist() == [0, 50, 100]
    assert np.isnan(found.p_values[3])
    assert found.flags.tolist() == [False, False, True, None]
    assert "torn" in str(found)
    assert "p-values: 4 normal images support no finer rate than 1/5 = 0.2." in str(found)


def test_calibrate_moves_the_threshold_and_survives_saving(fitted, sample, small, tmp_path):
    detector = AnomalyDetector(recipe=small, random_state=0).fit(sample.support)
    before = detector.predict(sample.images)
    assert before.p_values is None
    normals = [x for x, label in zip(sample.images, sample.labels, strict=True) if not label]
    with pytest.raises(ConfigError, match="at least 19"):
        detector.calibrate(normals, target_fpr=0.05)
    assert detector.threshold_ == before.threshold
    detector.calibrate(normals, target_fpr=0.25)
    after = detector.predict(sample.images)
    assert np.array_equal(after.scores, before.scores)
    assert detector.threshold_ == np.sort(before.scores[sample.labels == 0])[3]
    assert after.p_values.min() >= 1 / 5
    again = AnomalyDetector.from_pretrained(detector.save_pretrained(tmp_path / "calibrated"))
    assert again.threshold_ == detector.threshold_
    assert np.array_equal(again.predict(sample.images).p_values, after.p_values)
    assert "same population" in (tmp_path / "calibrated" / "README.md").read_text()
    detector.calibrate(sample.images, sample.labels)
    assert detector._fitted.calibration["rule"] == "labels"
    assert detector.set_threshold(0.3).predict(sample.images[:1]).threshold == 0.3
    with pytest.raises(ConfigError, match="finite"):
        detector.set_threshold(float("nan"))
    with pytest.raises(NotFittedError):
        AnomalyDetector().set_threshold(1.0)


def test_another_threshold_forgets_what_was_measured_at_the_old_one(fitted, sample, tmp_path):
    detector = AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "a"))
    measured = detector.evaluate(sample.images, sample.labels)
    detector.set_threshold(0.3)
    assert detector.evaluation_["image_auroc"] == measured["image_auroc"]
    ends = ("", "_interval", "_bootstrap")
    forgotten = {name + end for name in ("sensitivity", "specificity") for end in ends}
    assert {k for k in measured if k not in detector.evaluation_} == forgotten
    card = (detector.save_pretrained(tmp_path / "b") / "README.md").read_text()
    assert "image AUROC" in card
    assert "sensitivity" not in card.lower()
    assert AnomalyDetector.from_pretrained(tmp_path / "b").evaluation_ == detector.evaluation_


def test_bad_images_can_be_recorded(fitted, sample, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    images = [sample.images[0], tmp_path / "broken.png", np.full((8, 8), 3, np.uint8), sample.images[1]]
    with pytest.raises(ImageFileError):
        fitted.predict(images)
    found = fitted.predict(images, on_error="record")
    expected = fitted.predict([sample.images[0], sample.images[1]])
    assert found.scores[[0, 3]] == pytest.approx(expected.scores, abs=1e-5)
    assert np.isnan(found.scores[1:3]).all()
    assert "broken.png" in found.reasons[1]
    assert "constant" in found.reasons[2]
    assert found.heatmaps[1].shape == (0, 0)
    assert np.isnan(fitted.predict(images[1:2], on_error="record").scores).all()
    with pytest.raises(ConfigError, match="'record'"):
        fitted.predict(images, on_error="ignore")


def test_rows_and_files(fitted, sample, tmp_path):
    import pandas

    found = fitted.predict(sample.images[:3])
    frame = pandas.read_csv(found.to_csv(tmp_path / "scores.csv"))
    assert frame["score"].to_numpy() == pytest.approx(found.scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ExtraError, match="parquet"):
            found.to_parquet(tmp_path / "scores.parquet")
    assert list(frame.columns) == ["name", "verdict", "score", "shown", "flag", "similarity", "reason", "threshold"]


def test_parquet_holds_the_rows(fitted, sample, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas

    found = fitted.predict(sample.images[:3])
    pandas.testing.assert_frame_equal(pandas.read_parquet(found.to_parquet(tmp_path / "x.parquet")), found.to_frame())
