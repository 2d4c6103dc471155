"""Which threshold to take: for a false-positive rate, for a sensitivity, and what either costs of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from oneshot_medad.calibration import BY_HAND, false_positives, labelled_threshold, normal_threshold, stated
from oneshot_medad.errors import ConfigError
from oneshot_medad.evaluation import rate_interval

RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""False-positive rates that the table asks for, as far as the normal images support them."""


def sensitive_threshold(abnormal: np.ndarray, target_sensitivity: float) -> float:
    """Threshold that a further abnormal image exceeds with a probability of at least ``target_sensitivity``.

    The conformal counterpart of `calibration.normal_threshold`: just below the ⌊(m + 1)(1 − target)⌋-th smallest of the
    m scores. It holds if the further image comes from the same population as the m, diseases and stages included.

    Parameters
    ----------
    abnormal
        (m,) scores of abnormal images.
    target_sensitivity
        In (0, 1), and not above m / (m + 1): m images support no higher one.

    Raises
    ------
    ConfigError
        A sensitivity outside (0, 1), or higher than the images support.

    Examples
    --------
    >>> bool(2 < sensitive_threshold(np.arange(1.0, 40.0), 0.95) + 1e-9)
    True
    """
    check_wishes(True, 0.5, None, target_sensitivity)
    m = len(abnormal)
    rank = int(np.floor((m + 1) * (1 - target_sensitivity) + 1e-9))
    if rank < 1:
        needed = int(np.ceil(1 / (1 - target_sensitivity) - 1e-9)) - 1
        raise ConfigError(
            f"Got target_sensitivity={target_sensitivity:g} with {m} abnormal images, which support sensitivities up "
            f"to {m}/{m + 1}. Calibrate on at least {needed} abnormal images, or ask for a lower one."
        )
    return float(np.nextafter(np.sort(abnormal)[rank - 1], -np.inf))


def check_wishes(
    labelled: bool, target_fpr: float, uncertain_fpr: float | None, target_sensitivity: float | None
) -> None:
    """Refuse wishes that exclude each other, before anything is scored."""
    if uncertain_fpr is not None and (labelled or not target_fpr < uncertain_fpr):
        raise ConfigError(
            f"Got uncertain_fpr={uncertain_fpr!r}; wanted a rate above target_fpr={target_fpr:g}, without labels."
        )
    if target_sensitivity is not None and not labelled:
        raise ConfigError(f"Got target_sensitivity={target_sensitivity!r} without labels; wanted abnormal images too.")
    if target_sensitivity is not None and not 0 < target_sensitivity < 1:
        raise ConfigError(f"Got target_sensitivity={target_sensitivity!r}; wanted a share in (0, 1).")


def choose(
    scores: np.ndarray,
    labels: Sequence[int] | None,
    target_fpr: float,
    uncertain_fpr: float | None,
    target_sensitivity: float | None,
) -> dict[str, Any]:
    """A threshold and what it was asked for, as ``calibration.json`` has it.

    Parameters
    ----------
    scores
        (n,) of images or volumes.
    labels
        (n,) 0 for normal, 1 for abnormal; None takes all for normal.
    target_fpr, uncertain_fpr, target_sensitivity
        As for `AnomalyDetector.calibrate`.

    Raises
    ------
    ConfigError
        Wishes that exclude each other, or that the scores do not support.
    """
    check_wishes(labels is not None, target_fpr, uncertain_fpr, target_sensitivity)
    found: dict[str, Any] = {**BY_HAND}
    if labels is None:
        found |= {"rule": "normals", "threshold": normal_threshold(scores, target_fpr), "target_fpr": float(target_fpr)}
        if uncertain_fpr is not None:
            found |= {"uncertain_from": normal_threshold(scores, uncertain_fpr), "uncertain_fpr": float(uncertain_fpr)}
        return {**found, "normal_scores": np.sort(scores).tolist(), "abnormal_scores": []}
    best, truth = labelled_threshold(scores, labels), np.asarray(labels)
    normal, abnormal = np.sort(scores[truth == 0]), np.sort(scores[truth == 1])
    if target_sensitivity is None:
        found |= {"rule": "labels", "threshold": best}
    else:
        found |= {"rule": "sensitivity", "threshold": sensitive_threshold(abnormal, target_sensitivity)}
        found["target_sensitivity"] = float(target_sensitivity)
    return {**found, "normal_scores": normal.tolist(), "abnormal_scores": abnormal.tolist()}


def operating_points(normal: Sequence[float], abnormal: Sequence[float]) -> list[dict[str, Any]]:
    """What false-positive rate buys what sensitivity, with 95 % intervals.

    Thresholds come from the normal scores alone, so the sensitivities are those of abnormal images that had no part in
    them.

    Parameters
    ----------
    normal, abnormal
        Scores of normal and abnormal images.

    Returns
    -------
    One dictionary for each of `RATES` that the normal scores support: ``target_fpr``, ``threshold``, ``expected_fpr``
    and ``fpr_bound`` of further normal images (`calibration.false_positives`), ``sensitivity`` and
    ``sensitivity_interval``. None without abnormal scores.

    Examples
    --------
    >>> (point,) = operating_points([0.0, 1.0], [0.5, 2.0, 3.0])
    >>> point["threshold"], round(point["expected_fpr"], 3), round(point["sensitivity"], 3)
    (1.0, 0.333, 0.667)
    """
    known, found = np.asarray(normal, dtype=float), np.asarray(abnormal, dtype=float)
    points = []
    for rate in RATES if len(found) else ():
        if rate < 1 / (len(known) + 1):
            continue
        threshold = normal_threshold(known, rate)
        expected, bound = false_positives(known, threshold)
        sensitivity = float((found > threshold).mean())
        points.append(
            {
                "target_fpr": rate,
                "threshold": threshold,
                "expected_fpr": expected,
                "fpr_bound": bound,
                "sensitivity": sensitivity,
                "sensitivity_interval": list(rate_interval(sensitivity, len(found))),
            }
        )
    return points


def with_points(calibration: dict[str, Any]) -> dict[str, Any]:
    """`calibration.stated` of a calibration, and its `operating_points`."""
    points = operating_points(calibration["normal_scores"], calibration["abnormal_scores"])
    return {**stated(calibration), "operating_points": points}


def points_text(points: Sequence[dict[str, Any]]) -> str:
    """`operating_points` as a small table; empty without any.

    Examples
    --------
    >>> print(points_text(operating_points([0.0, 1.0], [0.5, 2.0, 3.0])))
    false positives   at most (95 %)   sensitivity     95 % interval   threshold
             33.3 %           77.6 %        66.7 %    9.43 to 99.2 %       1.000
    """
    if not points:
        return ""
    lines = ["false positives   at most (95 %)   sensitivity     95 % interval   threshold"]
    for point in points:
        low, high = (100 * end for end in point["sensitivity_interval"])
        false, most, true = (100 * point[name] for name in ("expected_fpr", "fpr_bound", "sensitivity"))
        interval = f"{low:.3g} to {high:.3g} %"
        lines.append(f"{false:13.3g} % {most:14.3g} % {true:11.3g} % {interval:>17} {point['threshold']:11.3f}")
    return "\n".join(lines)
