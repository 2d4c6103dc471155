"""How much plain distances count beside what was learned from a pool: it depends on how far from the pool an image is.

Measured on collections that a head had not seen: there a weight of 8 on the logarithm of the distances is best,
whatever the collection; on further images of collections it had seen, 1 to 2.
"""

from __future__ import annotations

import torch

WITHIN, BEYOND = 0.9, 0.8
"""Similarity to the pool from which a collection counts as seen, and below which it counts as new."""
LEAST = 0.2
"""Share of its weight that the distance keeps within the pool."""
CLOSEST = 5
"""Number of the pool's images whose similarity is averaged."""


def reach(gists: torch.Tensor, pool: torch.Tensor | None) -> float:
    """Mean similarity of (K, G) unit vectors to the closest of the pool's (N, G); 0 where no pool is known."""
    if pool is None or not len(pool):
        return 0.0
    return float((gists @ pool.to(gists).T).topk(min(CLOSEST, len(pool)), dim=1).values.mean())


def trust_in_distance(similarity: float) -> float:
    """Factor on the weight of the distances: 1 beyond the pool, `LEAST` within, linear in between.

    Examples
    --------
    >>> [round(trust_in_distance(s), 2) for s in (0.5, 0.85, 0.95)]
    [1.0, 0.6, 0.2]
    """
    within = min(1.0, max(0.0, (similarity - BEYOND) / (WITHIN - BEYOND)))
    return 1 - (1 - LEAST) * within
