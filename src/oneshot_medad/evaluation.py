"""How good a detector is, measured on labelled images it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

Labels = Sequence[int] | np.ndarray
Scores = Sequence[float] | np.ndarray

MEASURES = {
    "image_auroc": "image AUROC",
    "image_ap": "image average precision",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO (limit 0.3)",
    "sensitivity": "sensitivity at the threshold",
    "specificity": "specificity at the threshold",
}
"""Names of what `summary` measures, as cards and reports write them."""


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve: how often an abnormal image scores higher than a normal one.

    Parameters
    ----------
    labels
        0 for normal, 1 for abnormal; both must occur.
    scores
        Higher is more abnormal.

    Examples
    --------
    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_binary(labels), np.asarray(scores, dtype=float)))


def average_precision(labels: Labels, scores: Scores) -> float:
    """Area under the precision-recall curve; its chance level is the share of abnormal images.

    Examples
    --------
    >>> average_precision([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9])
    1.0
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(_binary(labels), np.asarray(scores, dtype=float)))


def pixel_auroc(masks: Sequence[np.ndarray], heatmaps: Sequence[np.ndarray]) -> float:
    """AUROC over all pixels of all images.

    Parameters
    ----------
    masks
        (H, W) per image, true on the lesion; all false for normal images.
    heatmaps
        (H, W) per image.
    """
    _same_grids(masks, heatmaps)
    return auroc(np.concatenate([m.ravel() for m in masks]) > 0, np.concatenate([h.ravel() for h in heatmaps]))


def aupro(masks: Sequence[np.ndarray], heatmaps: Sequence[np.ndarray], limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate of ``limit``, divided by ``limit``.

    Every connected lesion counts the same whatever its size (Bergmann et al. 2021).

    Parameters
    ----------
    masks, heatmaps
        As for `pixel_auroc`.
    limit
        Largest false-positive rate over the pixels outside all lesions.

    Examples
    --------
    >>> mask = np.zeros((8, 8), bool); mask[2:4, 2:4] = True
    >>> aupro([mask], [mask.astype(float)])
    1.0
    """
    from skimage.measure import label

    _same_grids(masks, heatmaps)
    rates = np.linspace(0, limit, 301)
    outside = np.sort(np.concatenate([h[~np.asarray(m, bool)] for m, h in zip(masks, heatmaps, strict=True)]))[::-1]
    # the highest threshold that lets at most that share of normal pixels through
    thresholds = outside[np.minimum((rates * len(outside)).astype(int), len(outside) - 1)]
    overlaps = []
    for mask, heatmap in zip(masks, heatmaps, strict=True):
        regions = label(np.asarray(mask, bool))
        for region in range(1, regions.max() + 1):
            inside = np.sort(heatmap[regions == region])
            overlaps.append(1 - np.searchsorted(inside, thresholds, side="right") / len(inside))
    if not overlaps:
        raise ValueError("Got masks without a lesion; wanted at least one true pixel.")
    curve = np.mean(overlaps, axis=0)
    return float(((curve[1:] + curve[:-1]) / 2).mean())


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: Labels,
    scores: Scores,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    random_state: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric of labels and scores.

    It knows no scores but those given: from few images it is too narrow, and a point where a metric is at its end.
    `auroc_interval` and `rate_interval` are not.

    Parameters
    ----------
    metric
        For example `auroc`.
    labels, scores
        As the metric takes them.
    groups
        Patient of each image: whole patients are resampled together. None resamples images.
    level
        Coverage.
    n_resamples, random_state
        Number of resamples and their seed; resamples with one label only are left out.

    Examples
    --------
    >>> low, high = bootstrap_interval(auroc, [0] * 20 + [1] * 20, list(range(40)))
    >>> low, high
    (1.0, 1.0)
    """
    truth, values = _binary(labels), np.asarray(scores, dtype=float)
    rng = np.random.default_rng(random_state)
    names = (
        np.arange(len(truth)) if groups is None else np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    )
    members = [np.flatnonzero(names == g) for g in np.unique(names)]
    found = []
    for _ in range(n_resamples):
        rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        if truth[rows].min() != truth[rows].max():
            found.append(metric(truth[rows], values[rows]))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rate_interval(rate: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934): as wide as n observations ask for, also at 0 and 1.

    Parameters
    ----------
    rate
        Observed share.
    n
        Independent observations.
    level
        Coverage, at least.

    Examples
    --------
    >>> [round(end, 3) for end in rate_interval(1.0, 4)]
    [0.398, 1.0]
    """
    from scipy.special import betaincinv

    k, tail = rate * n, (1 - level) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def auroc_interval(value: float, n_normal: int, n_abnormal: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC from the numbers of images alone, wide for few of them, also where all were separated.

    The AUROCs whose standard error by Hanley and McNeil lets ``value`` happen: method 5 of Newcombe (2006, Statistics
    in Medicine 25:559).

    Parameters
    ----------
    value
        Observed AUROC.
    n_normal, n_abnormal
        Independent images, or patients, of each kind.
    level
        Coverage.

    Examples
    --------
    >>> [round(end, 3) for end in auroc_interval(1.0, 2, 2)]
    [0.386, 1.0]
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    z = ndtri((1 + level) / 2)
    extra = (n_normal + n_abnormal) / 2 - 1

    def outside(area: float) -> float:
        factor = 1 + extra * ((1 - area) / (2 - area) + area / (1 + area))
        return (value - area) ** 2 - z**2 * area * (1 - area) * factor / (n_normal * n_abnormal)

    # the ends themselves are roots that say nothing
    low = brentq(outside, 0, min(value, 1 - 1e-9)) if value > 0 else 0.0
    high = brentq(outside, max(value, 1e-9), 1) if value < 1 else 1.0
    return float(low), float(high)


def summary(
    scores: Scores,
    flags: np.ndarray,
    labels: Labels,
    heatmaps: Sequence[np.ndarray] | None = None,
    masks: Sequence[np.ndarray] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """Every measure of one evaluation with its counts, and intervals for those of images.

    Parameters
    ----------
    scores, flags, labels
        (N,) score, decision and truth of each image. Masked flags are images that cannot be judged: they count as
        missed if they are abnormal, as false alarms if they are normal, and their scores like all others.
    heatmaps, masks
        (H, W) per image; without masks nothing is said about pixels.
    groups
        Patient of each image.

    Returns
    -------
    Measures by the names of `MEASURES`, with two 95 % intervals each. ``…_interval`` follows from the numbers of
    images, or of patients with ``groups``, and never vanishes: `auroc_interval`; for rates `rate_interval`; for the
    average precision too, over the abnormal ones (Boyd et al. 2013, with exact in place of asymptotic ends).
    ``…_bootstrap`` is `bootstrap_interval`, which follows the scores, and which too few images make too narrow.
    ``n_normal``, ``n_abnormal`` and ``n_cannot_judge`` are counts of images.
    """
    truth = _binary(labels)
    if len(truth) != len(scores):
        raise ValueError(f"Got {len(truth)} labels for {len(scores)} images; wanted as many.")
    if groups is not None and len(groups) != len(truth):
        raise ValueError(f"Got {len(groups)} groups for {len(truth)} images; wanted as many.")
    right = np.ma.filled(np.ma.asarray(flags) == (truth == 1), False).astype(float)
    units = np.arange(len(truth)) if groups is None else np.asarray(groups, dtype=str)
    normal, abnormal = (len(set(units[truth == label].tolist())) for label in (0, 1))
    measures: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], Scores, Callable[[float], tuple]]] = {
        "image_auroc": (auroc, scores, lambda found: auroc_interval(found, normal, abnormal)),
        "image_ap": (average_precision, scores, lambda found: rate_interval(found, abnormal)),
        "sensitivity": (lambda y, s: float(s[y == 1].mean()), right, lambda found: rate_interval(found, abnormal)),
        "specificity": (lambda y, s: float(s[y == 0].mean()), right, lambda found: rate_interval(found, normal)),
    }
    found: dict[str, Any] = {
        "n_normal": int((truth == 0).sum()),
        "n_abnormal": int(truth.sum()),
        "n_cannot_judge": int(np.ma.getmaskarray(flags).sum()),
    }
    for name, (measure, values, interval) in measures.items():
        found[name] = measure(truth, np.asarray(values, dtype=float))
        found[f"{name}_interval"] = list(interval(found[name]))
        found[f"{name}_bootstrap"] = list(bootstrap_interval(measure, truth, values, groups))
    if masks is not None and heatmaps is not None:
        found |= {"pixel_auroc": pixel_auroc(masks, heatmaps), "aupro": aupro(masks, heatmaps)}
    return found


def _binary(labels: Labels) -> np.ndarray:
    truth = np.asarray(labels).astype(int)
    if set(truth.tolist()) != {0, 1}:
        raise ValueError(f"Got labels {sorted(set(truth.tolist()))}; wanted both 0 (normal) and 1 (abnormal).")
    return truth


def _same_grids(masks: Sequence[np.ndarray], heatmaps: Sequence[np.ndarray]) -> None:
    if len(masks) != len(heatmaps):
        raise ValueError(f"Got {len(masks)} masks and {len(heatmaps)} heatmaps; wanted as many.")
    for i, (mask, heatmap) in enumerate(zip(masks, heatmaps, strict=True)):
        if mask.shape != heatmap.shape:
            raise ValueError(f"Got mask {i} of shape {mask.shape} and heatmap of {heatmap.shape}; wanted one grid.")
