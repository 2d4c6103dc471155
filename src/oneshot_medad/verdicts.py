"""One decision an image, made by its score; flags, regions, pictures, tables and counts follow from it.

The score is a summary of the heatmap, so a single place can exceed the threshold in an image whose score does not. The
image is decided first: only then are places named, and only those beyond the limit that the score has passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from oneshot_medad.images.read import BLANK

NORMAL, UNCERTAIN, ABNORMAL = "normal", "uncertain", "abnormal"
CANNOT_JUDGE, NOT_READ = "cannot judge", "not read"
JUDGED = (NORMAL, UNCERTAIN, ABNORMAL)
"""Verdicts of images that something can be said about."""

OUTSIDE = "outside the references"
"""Beginning of the reason why a slice cannot be judged that lies elsewhere in its volume than all fitted on."""
MARGIN = 0.05
"""How far beyond the references a slice may lie, as a share of its volume: fields of view differ."""

ROUNDING = 1e-5
"""By how much a similarity may differ between calls; the image that set the limit must not fall below it."""


def decide(
    score: float,
    threshold: float,
    uncertain_from: float | None,
    similarity: float,
    least_similarity: float | None,
    outside: bool = False,
) -> str:
    """The verdict on one image; parameters are those of `Predictions`.

    Examples
    --------
    >>> [decide(s, 0.5, 0.3, 0.9, 0.6) for s in (0.1, 0.4, 0.6, float("nan"))], decide(0.9, 0.5, 0.3, 0.2, 0.6)
    (['normal', 'uncertain', 'abnormal', 'not read'], 'cannot judge')
    """
    if np.isnan(score):
        return NOT_READ
    if outside or (least_similarity is not None and similarity < least_similarity - ROUNDING):
        return CANNOT_JUDGE
    if score > threshold:
        return ABNORMAL
    return UNCERTAIN if uncertain_from is not None and score > uncertain_from else NORMAL


def beyond(position: float | None, span: tuple[float, float] | None) -> str:
    """Why a slice cannot be judged by where it lies; empty if it can.

    Parameters
    ----------
    position
        Along its volume, from 0 to 1; None where it is not known.
    span
        Positions of the first and the last slice fitted on; None where these are not known.

    Examples
    --------
    >>> beyond(0.9, (0.2, 0.6)), beyond(0.62, (0.2, 0.6)), beyond(None, (0.2, 0.6))
    ('outside the references: at 90 % of its volume, they cover 20 % to 60 %', '', '')
    """
    if position is None or span is None or span[0] - MARGIN <= position <= span[1] + MARGIN:
        return ""
    return f"{OUTSIDE}: at {position:.0%} of its volume, they cover {span[0]:.0%} to {span[1]:.0%}".replace("%", " %")


def places_from(verdict: str, threshold: float, uncertain_from: float | None) -> float:
    """What a place of the heatmap must exceed to be named: the limit that the image's score has passed.

    Infinity where the score has passed none, or where nothing can be said.
    """
    if verdict == UNCERTAIN and uncertain_from is not None:
        return uncertain_from
    return threshold if verdict == ABNORMAL else float("inf")


def held_back(heatmap: np.ndarray, verdict: str, threshold: float) -> np.ndarray:
    """A raw heatmap as it may be shown: not beyond the threshold unless the image is, and empty without a judgement.

    Examples
    --------
    >>> heatmap = np.array([[0.1, 0.9]])
    >>> held_back(heatmap, "normal", 0.5).tolist(), held_back(heatmap, "abnormal", 0.5).tolist()
    ([[0.1, 0.5]], [[0.1, 0.9]])
    """
    if verdict not in JUDGED:
        return np.zeros((0, 0), heatmap.dtype)
    # rounding the threshold to the heatmap's type must not lift it
    return heatmap if verdict == ABNORMAL else np.minimum(heatmap, _at_most(threshold, heatmap.dtype))


def _at_most(value: float, dtype: np.dtype) -> np.ndarray:
    """The largest number of a type that is not above ``value``."""
    rounded = np.asarray(value).astype(dtype)
    return np.nextafter(rounded, dtype.type(-np.inf)) if float(rounded) > value else rounded


def count(said: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many images got which verdict, the same for the command line and the report.

    Parameters
    ----------
    said
        Verdict and reason of every image. Blank slices are counted by themselves: they are no failures.

    Returns
    -------
    ``images``, which is the sum of all others: ``flagged``, ``uncertain``, ``normal``, ``cannot_judge``, ``blank`` and
    ``failed``.

    Examples
    --------
    >>> count([("normal", ""), ("abnormal", ""), ("not read", "blank slice"), ("not read", "torn")])["failed"]
    1
    """
    found = Counter((verdict, verdict == NOT_READ and reason == BLANK) for verdict, reason in said)
    return {
        "images": sum(found.values()),
        "flagged": found[ABNORMAL, False],
        "uncertain": found[UNCERTAIN, False],
        "normal": found[NORMAL, False],
        "cannot_judge": found[CANNOT_JUDGE, False],
        "blank": found[NOT_READ, True],
        "failed": found[NOT_READ, False],
    }
