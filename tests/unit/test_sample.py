import numpy as np
import pytest

from oneshot_medad import AnomalyDetector
from oneshot_medad.datasets import load_sample
from oneshot_medad.evaluation import auroc
from oneshot_medad.results.pictures import contact_sheet, overlay


def test_sample_is_seeded_labelled_and_masked():
    one, same, other = (load_sample(3, 4, random_state=s) for s in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one.images, same.images, strict=True))
    assert not np.array_equal(one.images[0], other.images[0])
    assert one.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert {name.split("-")[1] for name in one.names[3:]} == {"bright", "dark", "textured", "mass"}
    for image, mask, label in zip(one.images, one.masks, one.labels, strict=True):
        assert image.dtype == np.uint8
        assert mask.shape == image.shape
        assert mask.any() == bool(label)


@pytest.mark.slow
def test_one_normal_image_is_enough_on_the_sample():
    """Mean over three draws of sample and fit; 24 images each, so a single draw moves by several hundredths."""
    found = []
    for seed in (0, 1, 2):
        sample = load_sample(random_state=seed)
        predictions = AnomalyDetector(random_state=seed).fit(sample.support).predict(sample.images)
        found.append(auroc(sample.labels, predictions.scores))
    assert np.mean(found) >= 0.85, found


def test_pictures_have_the_promised_sizes(sample):
    heatmap = np.linspace(-1, 2, sample.images[5].size).reshape(sample.images[5].shape)
    picture = overlay(sample.images[5], heatmap, 0.5, sample.masks[5])
    assert picture.size == (3 * 246, 246)
    plain = np.asarray(overlay(sample.images[5], np.full(heatmap.shape, -1.0), 0.5))
    assert np.array_equal(plain[:, :246], plain[:, 492:])  # a calm heatmap leaves the image as it is
    assert contact_sheet([picture] * 3, ["a", "b", "c"]).size == (6 * 246, 2 * (246 + 18))
