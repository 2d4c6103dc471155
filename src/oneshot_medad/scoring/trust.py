"""How much plain distances count beside what was learned from a pool: it depends on how far from the pool an image is.

A head knows the lesions of the collections it was trained on and of their kin. On collections that were left out of its
training the best weight of the distances was the higher, the less their images looked like those left in.
"""

from __future__ import annotations

import math

import torch

NEAR, FAR = 0.8, 0.5
"""Similarity to the pool from which an image counts as one of it, and below which it counts as unlike all of it."""
LEAST, MOST = 0.2, 2.0
"""Factors on the weight of the distances there."""
CLOSEST = 5
"""Number of the pool's images whose similarity is averaged."""


def reach(gists: torch.Tensor, pool: torch.Tensor | None) -> float:
    """Mean similarity of (K, G) unit vectors to the closest of the pool's (N, G); 0 where no pool is known."""
    if pool is None or not len(pool):
        return 0.0
    return float((gists @ pool.to(gists).T).topk(min(CLOSEST, len(pool)), dim=1).values.mean())


def trust_in_distance(similarity: float) -> float:
    """Factor on the weight of the distances: `MOST` far from the pool, `LEAST` near it, geometric in between.

    Examples
    --------
    >>> [round(trust_in_distance(s), 2) for s in (0.4, 0.65, 0.9)]
    [2.0, 0.63, 0.2]
    """
    within = min(1.0, max(0.0, (similarity - FAR) / (NEAR - FAR)))
    return math.exp((1 - within) * math.log(MOST) + within * math.log(LEAST))
