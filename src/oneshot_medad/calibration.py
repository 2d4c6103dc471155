"""Thresholds, and what a set of normal images supports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from oneshot_medad.errors import ConfigError


def synthetic_threshold(normal: torch.Tensor, lesion: torch.Tensor) -> float:
    """Midway between the highest held-out normal view and the median held-out synthetic anomaly.

    Views of one image vary less than patients do, so the highest one is no upper bound for real normals; half the way
    to the synthetic anomalies is a margin, not a promised false-positive rate.

    Parameters
    ----------
    normal, lesion
        (N,) fused image scores of views that took no part in training.
    """
    return float((normal.max() + torch.maximum(lesion.median(), normal.max())) / 2)


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
