"""What kind of image is it: a description in which modalities and anatomies lie apart, and how alike two images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from oneshot_medad.nn.adapters import pooled

CLOSEST = 40
"""Images of the cohort by which it is judged how much an image resembles anything at all."""


@dataclass(frozen=True)
class Kinds:
    """A linear map of pooled features, learned from a pool of collections, and a cohort of its images.

    The map shrinks what differs within collections (within-class covariance normalisation, Hatch & Stolcke 2006). An
    image that resembles many others of the pool must resemble its reference more than one that resembles none (adaptive
    score normalisation, Karam et al. 2011; both come from speaker recognition).

    Attributes
    ----------
    mean, projection
        (F,) and (F, D): a description is (pooled − mean) · projection, as a unit vector.
    cohort
        (N, D) descriptions of images of the pool.
    """

    mean: torch.Tensor
    projection: torch.Tensor
    cohort: torch.Tensor

    def describe(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D) unit vectors of (B, F) pooled features."""
        return F.normalize((images - self.mean.to(images)) @ self.projection.to(images), dim=1)

    def of_pooled(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D + 1) kind of (B, F) pooled features: the description, and its mean similarity to the closest cohort."""
        described = self.describe(images)
        alike = described @ self.cohort.to(described).T
        usual = alike.topk(min(CLOSEST, len(self.cohort)), dim=1).values.mean(dim=1, keepdim=True)
        return torch.cat([described, usual], dim=1)

    def __call__(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, D + 1) kind of (B, C_l, h_l, w_l) features."""
        return self.of_pooled(pooled(features))


def plain_kind(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The kind of (B, C_l, h_l, w_l) features where nothing was learned: (B, F + 1), without a cohort."""
    described = F.normalize(pooled(features), dim=1)
    return torch.cat([described, described.new_zeros(len(described), 1)], dim=1)


def similarity(kinds: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """(B, V) how alike images and references are in kind: cosines, less half of what is usual for each.

    Examples
    --------
    >>> similarity(torch.tensor([[1.0, 0.0, 0.4]]), torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.2]]))
    tensor([[ 0.5000, -0.3000]])
    """
    # in double precision: products with few references round by where in its batch an image stands
    cosines = kinds[:, :-1].double() @ references[:, :-1].T.double()
    return cosines.to(kinds) - 0.5 * (kinds[:, -1:] + references[:, -1:].T)
