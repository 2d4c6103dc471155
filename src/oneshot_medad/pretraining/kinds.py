"""The stage that learns what tells kinds of images apart, from which a detector knows what it cannot judge."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from oneshot_medad.backbones.kinds import Kinds, similarity

DIMENSIONS, SHRINKAGE = 256, 0.1
"""Size of a description, and how far the covariance within collections is drawn towards the same in all directions."""
COHORT = 20
"""Images of each collection in the cohort."""
N_FOLDS = 5
FALSE_REFUSALS = 0.05
"""Share of images of the reference's own collection that may be called unlike it."""


def learn_kinds(collections: Mapping[str, torch.Tensor]) -> Kinds:
    """The map and cohort of (N, F) pooled features of each collection."""
    values = list(collections.values())
    everything = torch.cat(values)
    mean, scale = everything.mean(dim=0), everything.std(dim=0) + 1e-3
    directions = torch.linalg.svd((everything - mean) / scale, full_matrices=False).Vh[:DIMENSIONS].T
    within = torch.stack([((v - v.mean(dim=0)) / scale @ directions).T.cov(correction=0) for v in values]).mean(dim=0)
    size = within.diagonal().mean()
    within = (1 - SHRINKAGE) * within + SHRINKAGE * size * torch.eye(len(within))
    projection = directions / scale[:, None] @ torch.linalg.cholesky(torch.linalg.inv(within))
    kinds = Kinds(mean, projection, projection.new_zeros(0, projection.shape[1]))
    return Kinds(mean, projection, torch.cat([kinds.describe(v[:COHORT]) for v in values]))


def least_similarity(collections: Mapping[str, torch.Tensor]) -> float:
    """Similarity that all but `FALSE_REFUSALS` of pairs within a collection reach, if it was not learned from.

    Every collection counts the same; each fifth of them is measured by what the others teach (a lone one by itself).
    """
    names, found = list(collections), []
    for fold in range(min(N_FOLDS, len(names))):
        left_out = names[fold::N_FOLDS]
        others = {name: v for name, v in collections.items() if name not in left_out}
        kinds = learn_kinds(others or collections)
        for name in left_out:
            own = kinds.of_pooled(collections[name])
            pairs = similarity(own, own)[~torch.eye(len(own), dtype=torch.bool)]
            if len(pairs):
                found.append(pairs.quantile(torch.linspace(0, 1, 201)))
    return float(torch.cat(found).quantile(FALSE_REFUSALS))
