"""How much plain distances count beside what was learned from a pool: it depends on what the normal images are.

A head knows the lesions of the collections it was trained on and of their kin. On collections of patients that were
left out of its training, distances deserve twice to three times the weight that they deserve on those left in; on
goods, whose defects differ more from each other than diseases do, four times that.
"""

from __future__ import annotations

import math

import torch

KNOWN, NEW = 0.75, 0.45
"""Similarity to the pool's patients from which a collection counts as one of theirs, and below which as a new one."""
LEAST, MOST = 0.375, 4.0
"""Factors on the weight of the distances for known patients and for goods; for new patients it is 1."""
WIDTH = 0.05
"""Difference of two similarities that tells patients from goods."""
CLOSEST = 5
"""Number of the pool's images whose similarity is averaged."""


def reach(kinds: torch.Tensor, pool: torch.Tensor | None) -> float:
    """Mean cosine of the descriptions in (K, D + 1) kinds to the closest of the pool's (N, D); 0 without a pool."""
    if pool is None or not len(pool):
        return 0.0
    return float((kinds[:, :-1] @ pool.to(kinds).T).topk(min(CLOSEST, len(pool)), dim=1).values.mean())


def trust_in_distance(patients: float, goods: float = 0.0) -> float:
    """Factor on the weight of the distances from the similarities to the pool's patients and to its goods.

    Examples
    --------
    >>> [round(trust_in_distance(*s), 2) for s in ((0.9, 0.2), (0.6, 0.2), (0.4, 0.2), (0.3, 0.6))]
    [0.38, 0.61, 1.03, 3.99]
    """
    known = min(1.0, max(0.0, (patients - NEW) / (KNOWN - NEW)))
    good = 1 / (1 + math.exp((patients - goods) / WIDTH))
    return math.exp((1 - good) * known * math.log(LEAST) + good * math.log(MOST))
