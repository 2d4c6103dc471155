import numpy as np
import pytest

from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.calibration import lowest_similarity
from oneshot_medad.errors import ConfigError, ImageError


def predictions(**changes):
    scores = np.array([0.1, 0.4, 0.6, 0.9, np.nan])
    heatmaps = [np.zeros((2, 2), np.float32)] * 4 + [np.zeros((0, 0), np.float32)]
    return Predictions(scores, heatmaps, 0.5, list("abcde"), [""] * 4 + ["torn"], **changes)


def test_verdicts_in_order_of_precedence():
    assert predictions().verdicts == ["normal", "normal", "abnormal", "abnormal", "not read"]
    alike = np.array([0.9, 0.9, 0.9, 0.2, np.nan])
    found = predictions(uncertain_from=0.3, similarities=alike, least_similarity=0.5)
    assert found.verdicts == ["normal", "uncertain", "abnormal", "cannot judge", "not read"]
    assert [row["verdict"] for row in found.to_rows()] == found.verdicts
    assert predictions(similarities=alike).verdicts[3] == "abnormal"  # no limit, no refusal
    assert "cannot judge" in str(found)


@pytest.mark.parametrize(("rate", "wanted"), [(0.05, 1), (0.1, 1), (0.2, 2), (0.5, 5)])
def test_lowest_similarity_is_the_conformal_rank(rate, wanted):
    assert lowest_similarity(np.arange(9, 0, -1.0), rate) == wanted  # ⌊10 · rate⌋-th smallest of 1 … 9, at least one


def test_an_image_of_another_kind_is_not_judged(fitted, sample):
    rows, columns = np.mgrid[:200, :200]
    stripes = (127 + 120 * np.sin(rows / 3) * np.sin(columns / 5)).astype(np.uint8)
    found = fitted.predict([*sample.images[:4], stripes])
    assert found.verdicts[-1] == "cannot judge"
    assert "cannot judge" not in found.verdicts[:-1]
    assert found.similarities[:-1].min() > found.least_similarity > found.similarities[-1]


def test_the_reject_band_lies_between_two_rates_and_is_saved(fitted, sample, tmp_path):
    detector = AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "fitted"))
    with pytest.raises(ConfigError, match="uncertain_fpr"):
        detector.calibrate(sample.images[:4], target_fpr=0.25, uncertain_fpr=0.2)
    with pytest.raises(ConfigError, match="without labels"):
        detector.calibrate(sample.images, sample.labels, uncertain_fpr=0.2)
    detector.calibrate(sample.images[:4], target_fpr=0.2, uncertain_fpr=0.6)
    scores = np.sort(detector.predict(sample.images[:4]).scores)
    found = AnomalyDetector.from_pretrained(detector.save_pretrained(tmp_path / "band")).predict(sample.images)
    assert (found.threshold, found.uncertain_from) == (scores[3], scores[1])  # ⌈5 · 0.8⌉ = 4th and ⌈5 · 0.4⌉ = 2nd
    lowest = detector.predict(sample.images[:4]).similarities.min()
    assert found.least_similarity == fitted.predict(sample.support).least_similarity < lowest  # not stricter
    everything = detector.calibrate(sample.images, sample.labels).predict(sample.images)
    assert everything.least_similarity == everything.similarities.min()  # of 8, of both kinds, at a rate of 5 %
    assert found.verdicts[:4].count("uncertain") == 2
    assert detector.set_threshold(0.5).predict(sample.images[:1]).uncertain_from is None


def test_explain_shows_what_the_network_takes_for_normal(fitted, sample):
    image = sample.images[sample.labels.argmax()][:, :200]  # not square
    found = fitted.explain(image)
    predictions = fitted.predict(image)
    assert found.score == predictions.scores[0]
    assert found.verdict == predictions.verdicts[0]
    assert np.array_equal(found.heatmap, predictions.heatmaps[0])
    assert np.array_equal(found.image[..., 0], image)
    assert found.normal.shape == (*image.shape, 3)
    assert found.difference.shape == image.shape
    assert 0 < found.difference.max() <= 1
    # a drawing of this very image: closer to it than to another one
    apart = np.abs(found.normal.astype(int) - found.image).mean()
    assert apart < np.abs(found.normal.astype(int) - sample.images[0][:, :200, None]).mean()
    assert found.picture().size == (4 * image.shape[1], image.shape[0])
    with pytest.raises(ImageError, match="2 images"):
        fitted.explain(sample.images[:2])
