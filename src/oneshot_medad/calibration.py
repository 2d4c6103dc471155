"""Thresholds, and what a set of normal images supports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad.errors import ConfigError

if TYPE_CHECKING:
    import torch

RULES = {
    "images": "It is the one for single images: no volumes were calibrated on. A volume has many slices, so a normal "
    "one exceeds it more often than a normal image does.",
    "expected": "The threshold is where nine of ten further normal images are expected to stay below, by experience "
    "with other collections. It is a starting point, not a promised false-positive rate.",
    "normals": "It was set on further normal images so that on average at most a chosen share of new normal images is "
    "flagged, as far as they come from the same population, scanner and protocol.",
    "sensitivity": "It was set on labelled images so that on average at least a chosen share of further abnormal "
    "images is flagged, as far as they come from the same population, diseases and stages included.",
    "labels": "It was set on labelled images for the highest sum of sensitivity and specificity on them.",
    "manual": "It was set by hand.",
    "none": "The threshold was not calibrated: it is where the probabilities of normal and abnormal are equal.",
}
"""How a threshold can have been found, in words."""

STEEPNESS = 4.0
"""Of the shown scale, which so spends most of itself on the raw scale's unit: median normal view to threshold."""


def shown(values: np.ndarray, threshold: float) -> np.ndarray:
    """Scores or heatmaps on the scale that people are shown: 0 to 1, with the threshold at exactly 0.5.

    The raw scale is fixed at fit, and so is this one: what looks bright never depends on the image or its neighbours.

    Parameters
    ----------
    values
        Raw scores of any shape; NaN stays NaN.
    threshold
        On the raw scale.

    Examples
    --------
    >>> shown(np.array([-10.0, 0.4, 1.4]), 0.4).round(3).tolist()
    [0.0, 0.5, 0.982]
    """
    from scipy.special import expit

    return np.asarray(expit(STEEPNESS * (values - threshold)))


def p_values(scores: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(N,) conformal p-values of scores against n normal ones, from 1 / (n + 1) to 1.

    Examples
    --------
    >>> p_values(np.array([0.1, 2.5]), np.array([0.0, 1.0, 2.0])).tolist()
    [0.75, 0.25]
    """
    return (1 + (normal[None] >= scores[:, None]).sum(axis=1)) / (len(normal) + 1)


def percentiles(scores: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(N,) percent of the normal scores that lie below each score."""
    return 100 * (normal[None] < scores[:, None]).mean(axis=1)


BY_HAND: dict[str, Any] = {
    "rule": "manual",
    "uncertain_from": None,
    "target_fpr": None,
    "uncertain_fpr": None,
    "target_sensitivity": None,
}
"""What a threshold that nothing was asked of has in ``calibration.json``."""


def normal_scores(calibration: Mapping[str, Any]) -> np.ndarray | None:
    """(n,) sorted scores of the normal images calibrated on; None before."""
    scores = calibration["normal_scores"]
    return np.array(scores, dtype=float) if scores else None


def uncalibrated(threshold: float, rule: str, n_support: int, least_similarity: float | None = None) -> dict[str, Any]:
    """Content of ``calibration.json`` before `AnomalyDetector.calibrate` has seen anything.

    Parameters
    ----------
    threshold, rule, n_support
        Score above which an image is flagged, how it was found (one of `RULES`), and the number of images fitted on.
    least_similarity
        Similarity to the normal images below which an image is not judged; None judges every image.
    """
    return {
        **BY_HAND,
        "threshold": threshold,
        "rule": rule,
        "n_support": n_support,
        "normal_scores": [],
        "abnormal_scores": [],
        "images": [],
        "volumes": None,
        "least_similarity": least_similarity,
    }


def expected_threshold(normal: torch.Tensor) -> float:
    """1, or the highest held-out normal view if that scores more.

    Views of one image vary less than patients do. The scale of a fit is made so that nine of ten further normal images
    are expected below 1, by experience with other collections: a starting point, not a promised false-positive rate.

    Parameters
    ----------
    normal
        (N,) fused image scores of views that took no part in training.
    """
    return max(1.0, float(normal.max()))


def normal_threshold(normal: np.ndarray, target_fpr: float) -> float:
    """Threshold that a further normal image exceeds with a probability of at most ``target_fpr``.

    Split conformal prediction (Vovk et al. 2005): the ⌈(n + 1)(1 − target_fpr)⌉-th smallest of the n scores. It holds
    if the further image comes from the same population, scanner and protocol as the n.

    Parameters
    ----------
    normal
        (n,) scores of normal images that took no part in the fit.
    target_fpr
        In (0, 1), and not below 1 / (n + 1): n images support no finer rate.

    Raises
    ------
    ConfigError
        A rate outside (0, 1), or finer than the images support.
    """
    if not 0 < target_fpr < 1:
        raise ConfigError(f"Got target_fpr={target_fpr!r}; wanted a rate in (0, 1).")
    n = len(normal)
    rank = int(np.ceil((n + 1) * (1 - target_fpr) - 1e-9))
    if rank > n:
        needed = int(np.ceil(1 / target_fpr - 1e-9)) - 1
        raise ConfigError(
            f"Got target_fpr={target_fpr:g} with {n} normal images, which support rates from 1/{n + 1} on. Calibrate "
            f"on at least {needed} normal images, or ask for a higher rate."
        )
    return float(np.sort(normal)[rank - 1])


def false_positives(normal: np.ndarray, threshold: float, confidence: float = 0.95) -> tuple[float, float]:
    """Share of further normal images above a threshold that is one of n normal scores: expected, and upper bound.

    If the threshold is the k-th smallest of the n, the share of the population above it is a draw from the
    distribution Beta(n + 1 − k, k), whatever the population (Vovk 2012): its mean, and the quantile at ``confidence``.

    Parameters
    ----------
    normal
        (n,) scores.
    threshold
        One of them.
    confidence
        Share of draws of n images for which the bound holds.

    Examples
    --------
    >>> [tuple(round(share, 3) for share in false_positives(np.arange(n), n - 1)) for n in (19, 59)]
    [(0.05, 0.146), (0.017, 0.05)]
    """
    from scipy.special import betaincinv

    n, k = len(normal), int((normal <= threshold).sum())
    return (n + 1 - k) / (n + 1), float(betaincinv(n + 1 - k, k, confidence)) if k else 1.0


def stated(calibration: dict[str, Any]) -> dict[str, Any]:
    """What cards, reports and `AnomalyDetector.calibration_` say of a calibration.

    Parameters
    ----------
    calibration
        Content of ``calibration.json``.

    Returns
    -------
    What `AnomalyDetector.calibration_` lists; the rates and bounds are those of `false_positives`.
    """
    normal = np.array(calibration["normal_scores"], dtype=float)
    ends = {"threshold": ("expected_fpr", "fpr_bound"), "uncertain_from": ("expected_uncertain", "uncertain_bound")}
    abnormal = np.array(calibration["abnormal_scores"], dtype=float)
    found = {k: calibration[k] for k in ("threshold", *BY_HAND)}
    found |= {"n_normal": len(normal), "n_abnormal": len(abnormal), "images": list(calibration["images"])}
    for end, names in ends.items():
        known = calibration["rule"] == "normals" and calibration[end] is not None and len(normal)
        found |= dict(zip(names, false_positives(normal, calibration[end]) if known else (None, None), strict=True))
    found |= {"expected_sensitivity": None, "sensitivity_bound": None}
    if calibration["rule"] == "sensitivity":
        missed = false_positives(-abnormal, -float(abnormal[abnormal > calibration["threshold"]].min()))
        found |= {"expected_sensitivity": 1 - missed[0], "sensitivity_bound": 1 - missed[1]}
    return found


def promises(found: dict[str, Any], what: str = "image") -> list[str]:
    """What `stated` expects of further images or volumes, in sentences; none where no promise set the threshold.

    Examples
    --------
    >>> found = stated({**uncalibrated(18.0, "normals", 1), "normal_scores": list(range(19)), "target_fpr": 0.05})
    >>> said, asked = promises(found)[0].split("; ")
    >>> said
    '19 normal images promise that 5 % of further ones are flagged on average, and at most 14.6 % with 95 % confidence'
    >>> asked
    'at most 5 % was asked for.'
    """
    sentences = []
    for word, rate, ends in (
        ("flagged", "target_fpr", ("expected_fpr", "fpr_bound")),
        ("flagged or called uncertain", "uncertain_fpr", ("expected_uncertain", "uncertain_bound")),
    ):
        expected, bound = (found[name] for name in ends)
        if expected is not None:
            asked = f"; at most {_percent(found[rate])} was asked for" if found[rate] else ""  # older ones do not say
            sentences.append(
                f"{found['n_normal']} normal {what}s promise that {_percent(expected)} of further ones are {word} on "
                f"average, and at most {_percent(bound)} with 95 % confidence{asked}."
            )
    if found["expected_sensitivity"] is not None:
        sentences.append(
            f"{found['n_abnormal']} abnormal {what}s promise that {_percent(found['expected_sensitivity'])} of further "
            f"ones like them are flagged on average, and at least {_percent(found['sensitivity_bound'])} with 95 % "
            f"confidence; at least {_percent(found['target_sensitivity'])} was asked for."
        )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def finest_rate(n: int, what: str = "image") -> str:
    """What ``n`` normal images support, in words: no p-value lies below it, and no ``target_fpr`` can.

    Examples
    --------
    >>> finest_rate(19)
    '19 normal images support no finer rate than 1/20 = 0.05'
    """
    return f"{n} normal {what}{'s' * (n != 1)} support{'s' * (n == 1)} no finer rate than 1/{n + 1} = {1 / (n + 1):.3g}"


def lowest_similarity(similarities: np.ndarray, rate: float) -> float:
    """Similarity that a further image of the same kind falls below with a probability of at most ``rate``.

    The conformal counterpart of `normal_threshold` at the lower end; a rate that is too fine for the n images gives the
    lowest of them.

    Parameters
    ----------
    similarities
        (n,) of images of the detector's own kind, normal or not.
    rate
        In (0, 1).
    """
    rank = max(1, int(np.floor((len(similarities) + 1) * rate + 1e-9)))
    return float(np.sort(similarities)[rank - 1])


def labelled_threshold(scores: np.ndarray, labels: Sequence[int]) -> float:
    """Threshold with the highest sum of sensitivity and specificity (Youden 1950), midway between two scores.

    Parameters
    ----------
    scores
        (n,) image scores.
    labels
        (n,) 0 for normal, 1 for abnormal; both must occur.

    Raises
    ------
    ConfigError
        Labels of another length or other values, or of one class only.
    """
    truth = np.asarray(labels)
    if truth.shape != scores.shape or set(truth.tolist()) != {0, 1}:
        raise ConfigError(f"Got {truth.size} labels {sorted(set(truth.tolist()))[:5]}; wanted {len(scores)}, 0 and 1.")
    values = np.unique(scores)
    cuts = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2])
    gain = [(scores[truth == 1] > cut).mean() - (scores[truth == 0] > cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(gain))])
