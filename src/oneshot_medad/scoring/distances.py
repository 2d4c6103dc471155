"""What differs from the references, without anything learned: nearby features, and the subspace they span."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.nn.adapters import highest
from oneshot_medad.nn.matching import Match, References, as_rows

VARIANCE = 0.97
"""Share of the variance of normal features inside their subspace."""
WIDE = 0.05
"""Share of a map whose mean is one half of an image's score; the mean of all of it is the other."""
LEAST = 1e-3


class Subspace(nn.Module):
    """Distance to the subspace of normal features at each level (SubspaceAD, Lendering et al. 2026).

    Attributes
    ----------
    mean{l}, minor{l}
        (C_l,) and (n_l, C_l): the centre, and the directions that normal features hardly use.
    spread
        (L,) mean squared distance per channel of normal features that took no part.
    """

    spread: torch.Tensor

    def __init__(self, means: Sequence[torch.Tensor], minors: Sequence[torch.Tensor], spread: torch.Tensor) -> None:
        super().__init__()
        for level, (mean, minor) in enumerate(zip(means, minors, strict=True)):
            self.register_buffer(f"mean{level}", mean)
            self.register_buffer(f"minor{level}", minor)
        self.register_buffer("spread", spread)

    @classmethod
    def of(cls, views: Sequence[torch.Tensor], turned: Sequence[torch.Tensor], owner: torch.Tensor) -> Subspace:
        """Fit on (V, C_l, h_l, w_l) features of normal views and of turned ones; ``owner`` (V,) tells their images.

        The spread is that of one half of the images from the other, or of views if there is one image.
        """
        means, minors, spread = [], [], []
        images = owner.unique()
        half = owner < images[len(images) // 2] if len(images) > 1 else torch.arange(len(owner)) % 2 == 0
        for level, more in zip(views, turned, strict=True):
            mean, minor = _minor(torch.cat([as_rows(level), as_rows(more)]))
            means.append(mean)
            minors.append(minor)
            apart = [_residual(level[~part], *_minor(as_rows(level[part]))).mean() for part in (half, ~half)]
            spread.append((sum(apart) / 2).clamp(min=LEAST))  # type: ignore[union-attr]
        return cls(means, minors, torch.stack(spread))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(B, h_l, w_l) squared distances of each level, in units of the spread."""
        return [
            _residual(f, self.get_buffer(f"mean{i}"), self.get_buffer(f"minor{i}")) / self.spread[i]
            for i, f in enumerate(features)
        ]


def _minor(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of (N, C) rows, and the directions of `VARIANCE`'s rest; at least one."""
    mean = rows.mean(dim=0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))  # ascending
    rest = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum().clamp(min=1e-12)
    count = max(1, int((rest <= 1 - VARIANCE).sum()))
    return mean, vectors[:, :count].T.contiguous()


def _residual(features: torch.Tensor, mean: torch.Tensor, minor: torch.Tensor) -> torch.Tensor:
    b, c, h, w = features.shape
    return ((as_rows(features) - mean) @ minor.T).square().sum(dim=1).reshape(b, h, w) / c


def distance_map(
    matches: Sequence[Match], references: References, beyond: Sequence[torch.Tensor], n_images: torch.Tensor | int
) -> torch.Tensor:
    """How far each place lies from normal, in units of the references' own spread.

    The mean over levels of the distance to the closest feature near the same place and of that to the subspace, which
    counts as one more reference: several patients show what varies better than directions do.

    Parameters
    ----------
    matches
        Of each level.
    references
        What was compared with.
    beyond
        What `Subspace` gives.
    n_images
        Number of normal images.

    Returns
    -------
    (B, h, w) on the grid of the finest level; about 1 where all is normal.
    """
    size = matches[0].distance.shape[-2:]
    total = matches[0].distance.new_zeros(matches[0].distance.shape[1:])
    for level, (found, far) in enumerate(zip(matches, beyond, strict=True)):
        near = found.distance[1] / references.spread[level, 1]
        mixed = (n_images * near + far) / (n_images + 1)
        total += F.interpolate(mixed[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return total / len(matches)


def distance_score(maps: torch.Tensor) -> torch.Tensor:
    """(B,) logarithm of the geometric mean of the highest places' mean and of the whole (B, h, w) map's."""
    return 0.5 * (highest(maps, WIDE).clamp(min=LEAST).log() + maps.mean(dim=(1, 2)).clamp(min=LEAST).log())
