import numpy as np
import pytest
from scipy.stats import binom, norm

from oneshot_medad.evaluation import (
    aupro,
    auroc,
    auroc_interval,
    average_precision,
    bootstrap_interval,
    pixel_auroc,
    rate_interval,
    summary,
)


def two_lesions():
    mask = np.zeros((40, 40), bool)
    mask[2:4, 2:4] = True  # 4 pixels
    mask[20:30, 20:30] = True  # 100 pixels
    return mask


def test_aupro_counts_regions_not_pixels():
    mask = two_lesions()
    only_large = np.where(mask, 1.0, 0.0)
    only_large[:10] = 0
    assert aupro([mask], [only_large]) == pytest.approx(0.5)
    assert pixel_auroc([mask], [only_large]) == pytest.approx((100 + 4 * 0.5) / 104)


def test_aupro_integrates_up_to_the_limit():
    """The lesion is found once 10 % of the normal pixels pass: (limit − 0.1) / limit is left."""
    mask = np.zeros((10, 110), bool)
    mask[:, :10] = True
    heatmap = np.tile(np.linspace(1, 0, 110), (10, 1)) * ~mask
    heatmap[mask] = np.quantile(heatmap[~mask], 0.9)
    assert aupro([mask], [heatmap]) == pytest.approx(2 / 3, abs=0.02)
    assert aupro([mask], [heatmap], limit=0.2) == pytest.approx(1 / 2, abs=0.03)


def test_random_heatmaps_are_at_chance():
    rng = np.random.default_rng(0)
    masks = [two_lesions() for _ in range(30)]
    noise = [rng.random((40, 40)) for _ in masks]
    assert pixel_auroc(masks, noise) == pytest.approx(0.5, abs=0.02)
    assert aupro(masks, noise) == pytest.approx(0.15, abs=0.03)


def test_image_metrics_and_their_errors():
    assert auroc([0, 1], [0.5, 0.5]) == 0.5
    assert average_precision([0, 1, 0], [0.1, 0.9, 0.2]) == 1
    for bad in ([1, 1], [0, 0], [0, 2]):
        with pytest.raises(ValueError, match="wanted both"):
            auroc(bad, [0.2, 0.3])
    with pytest.raises(ValueError, match="one grid"):
        aupro([np.zeros((3, 3))], [np.zeros((4, 4))])
    with pytest.raises(ValueError, match="without a lesion"):
        aupro([np.zeros((3, 3), bool)], [np.zeros((3, 3))])


def test_intervals_by_patient_are_wider_when_patients_repeat():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 10)
    labels = patients % 2
    scores = labels + np.repeat(rng.normal(0, 1.5, 20), 10) + rng.normal(0, 0.1, 200)
    by_image = bootstrap_interval(auroc, labels, scores, n_resamples=200)
    by_patient = bootstrap_interval(auroc, labels, scores, patients, n_resamples=200)
    assert by_image[0] < auroc(labels, scores) < by_image[1]
    assert by_patient[1] - by_patient[0] > 1.5 * (by_image[1] - by_image[0])


@pytest.mark.parametrize("n", [1, 4, 20, 400])
def test_intervals_of_rates_are_exact(n):
    assert rate_interval(1.0, n) == pytest.approx((0.025 ** (1 / n), 1))  # pⁿ = 2.5 %
    assert rate_interval(0.0, n) == pytest.approx((0, 1 - 0.025 ** (1 / n)))
    low, high = rate_interval(0.5, 2 * n)
    assert binom.sf(n - 1, 2 * n, low) == pytest.approx(0.025)
    assert binom.cdf(n, 2 * n, high) == pytest.approx(0.025)


def test_intervals_of_an_auroc_cover_it_and_never_vanish():
    rng = np.random.default_rng(0)
    for n_normal, n_abnormal, shift in ((2, 2, 2.0), (5, 5, 3.0), (3, 20, 1.5), (30, 30, 0.8)):
        truth, covered = norm.cdf(shift / np.sqrt(2)), 0
        for _ in range(400):
            scores = np.concatenate([rng.normal(size=n_normal), rng.normal(shift, size=n_abnormal)])
            low, high = auroc_interval(auroc([0] * n_normal + [1] * n_abnormal, scores), n_normal, n_abnormal)
            assert 0 <= low < high <= 1
            covered += low <= truth <= high
        assert covered / 400 > 0.92
    assert auroc_interval(1.0, 2, 2)[0] < 0.5  # four images cannot exclude chance
    assert auroc_interval(0.0, 7, 9) == pytest.approx(tuple(1 - end for end in auroc_interval(1.0, 7, 9))[::-1])
    low, high = auroc_interval(0.9, 1000, 1000)
    assert high - low == pytest.approx(0.0283, abs=5e-4)  # Hanley and McNeil 1982, whose standard error is 0.0071


def test_a_summary_of_few_images_says_so_and_counts_patients():
    flags = np.ma.array([False, False, True, True], mask=[False, False, False, True])
    found = summary([0.1, 0.2, 0.8, 0.9], flags, [0, 0, 1, 1])
    assert (found["image_auroc"], found["image_ap"], found["specificity"]) == (1, 1, 1)
    assert (found["sensitivity"], found["n_cannot_judge"]) == (0.5, 1)  # not judged is not found
    assert summary([0.1, 0.2, 0.8, 0.9], ~flags, [0, 1, 1, 0])["specificity"] == 0  # nor is it let through
    assert found["image_auroc_interval"] == list(auroc_interval(1, 2, 2))
    assert found["specificity_interval"] == found["image_ap_interval"] == list(rate_interval(1, 2))
    assert found["sensitivity_interval"] == list(rate_interval(0.5, 2))
    assert found["image_auroc_bootstrap"] == [1, 1]
    scores, labels = np.arange(40), np.repeat([0, 1], 20)
    patients = np.repeat(np.arange(4), 10)
    by_patient = summary(scores, scores >= 20, labels, groups=patients)
    assert by_patient["image_auroc_interval"] == list(auroc_interval(1, 2, 2))
    assert by_patient["sensitivity_interval"] == list(rate_interval(1, 2))
    with pytest.raises(ValueError, match="3 groups for 40"):
        summary(scores, scores >= 20, labels, groups=[1, 2, 3])
