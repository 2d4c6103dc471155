import copy
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.calibration import lowest_similarity
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.explain import coloured
from oneshot_medad.results.pictures import STRIP


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
    # the same four images in one batch: another size of a batch may move the last digit
    found = AnomalyDetector.from_pretrained(detector.save_pretrained(tmp_path / "band")).predict(sample.images[:4])
    assert (found.threshold, found.uncertain_from) == (scores[3], scores[1])  # ⌈5 · 0.8⌉ = 4th and ⌈5 · 0.4⌉ = 2nd
    lowest = detector.predict(sample.images[:4]).similarities.min()
    assert found.least_similarity == fitted.predict(sample.support).least_similarity < lowest  # not stricter
    everything = detector.calibrate(sample.images, sample.labels).predict(sample.images)
    assert everything.least_similarity == everything.similarities.min()  # of 8, of both kinds, at a rate of 5 %
    assert found.verdicts.count("uncertain") == 2
    assert detector.set_threshold(0.5).predict(sample.images[:1]).uncertain_from is None


def test_explain_redraws_what_the_heatmap_colours_and_nothing_else(fitted, sample):
    i = sample.labels.argmax()
    image, mask = sample.images[i][:, :200], sample.masks[i][:, :200]  # not square
    detector = copy.copy(fitted)
    threshold = float(fitted.predict(image).scores[0]) - 0.1
    found = detector.set_threshold(threshold).explain(image)
    predictions = detector.predict(image)
    assert found.score == predictions.scores[0]
    assert found.verdict == predictions.verdicts[0] == "abnormal"
    assert np.array_equal(found.heatmap, predictions.heatmaps[0])
    assert np.array_equal(found.image[..., 0], image)
    assert found.normal.shape == (*image.shape, 3)
    assert found.difference.shape == image.shape
    assert 0.02 < found.difference.max() <= 1
    far = ~binary_dilation(coloured(found.heatmap, threshold), iterations=30)
    assert far.any()
    assert np.array_equal(found.normal[far], found.image[far])
    changed = found.difference > 0.01
    assert changed[mask].mean() > 2 * changed[~mask].mean()
    assert found.picture().size == (4 * image.shape[1], image.shape[0] + STRIP)
    titles = np.asarray(found.picture())[:STRIP].reshape(STRIP, 4, -1)
    assert (titles.max(axis=(0, 2)) > 200).all()  # every panel has one
    calm = detector.set_threshold(50.0).explain(image)
    assert np.array_equal(calm.normal, calm.image)
    assert calm.difference.max() == 0
    with pytest.raises(ImageError, match="2 images"):
        fitted.explain(sample.images[:2])


def test_explain_without_references_takes_the_nearest_tissue(sample, small):
    recipe = replace(small, context=False, branches={"clip": 1.0}, mirror=False)
    detector = AnomalyDetector(recipe=recipe, random_state=0).fit(sample.support).set_threshold(-50.0)
    assert detector.explain(sample.images[0]).normal.shape == (*sample.images[0].shape, 3)
