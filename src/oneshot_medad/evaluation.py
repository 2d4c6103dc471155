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
        (N,) score, decision and truth of each image.
    heatmaps, masks
        (H, W) per image; without masks nothing is said about pixels.
    groups
        Patient of each image.
    """
    truth = _binary(labels)
    if len(truth) != len(scores):
        raise ValueError(f"Got {len(truth)} labels for {len(scores)} images; wanted as many.")
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "image_auroc": auroc,
        "image_ap": average_precision,
        "sensitivity": lambda y, s: float(np.mean(s[y == 1] > 0)),
        "specificity": lambda y, s: float(np.mean(s[y == 0] <= 0)),
    }
    found: dict[str, Any] = {"n_normal": int((truth == 0).sum()), "n_abnormal": int(truth.sum())}
    for name, measure in measures.items():
        values = np.asarray(flags if name in ("sensitivity", "specificity") else scores, dtype=float)
        found[name] = measure(truth, values)
        found[f"{name}_interval"] = list(bootstrap_interval(measure, truth, values, groups))
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
