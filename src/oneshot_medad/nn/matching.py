"""Normal counterparts of every place of an image: the closest feature of the references, anywhere and nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

REACH = 0.1
"""How far from its own place a nearby counterpart may lie, as a share of the side; of a slice, of its volume."""
LEAST_NEAR = 3
"""References that a slice is compared with even if they lie farther away."""
CHUNK = 256
"""Places that are compared at once; more fall out of the processor's cache."""
GROUP = 128
"""Columns that are searched for the smallest value at once."""
UNKNOWN = (0.3, 0.5)
"""Spread of a single reference that nothing else can be compared with."""


@dataclass(frozen=True)
class Match:
    """What one level of B images finds among the references.

    Attributes
    ----------
    rows
        (2, B, h, w) number of the closest row of the references, anywhere and nearby.
    distance
        (2, B, h, w) squared distances to them, divided by the number of channels.
    """

    rows: torch.Tensor
    distance: torch.Tensor

    @classmethod
    def join(cls, parts: Sequence[Match]) -> Match:
        """One of all images in order."""
        return cls(torch.cat([p.rows for p in parts], dim=1), torch.cat([p.distance for p in parts], dim=1))

    def __getitem__(self, index: torch.Tensor | slice) -> Match:
        return Match(self.rows[:, index], self.distance[:, index])

    def to(self, device: torch.device) -> Match:
        """The same on another device."""
        return Match(self.rows.to(device), self.distance.to(device))


@dataclass(frozen=True)
class References:
    """Normal features that others are compared with, and how much they differ among themselves.

    Attributes
    ----------
    levels
        (K, C_l, h_l, w_l) features at each level.
    spread
        (L, 2) mean distance of each reference to the others, anywhere and nearby, as in `Match`; of slices of volumes
        to those near their own position.
    positions
        (K,) where along its volume each lies, from 0 to 1; None where not all are slices of volumes.
    """

    levels: list[torch.Tensor]
    spread: torch.Tensor
    positions: torch.Tensor | None = None

    @classmethod
    def of(cls, levels: Sequence[torch.Tensor], positions: torch.Tensor | None = None) -> References:
        """Measure the spread of (K, C_l, h_l, w_l) features, each image left out of the comparison with itself."""
        found = []
        for level in levels:
            if len(level) < 2:
                found.append(torch.tensor(UNKNOWN, device=level.device))
                continue
            each = []
            for k in range(len(level)):
                others, left_out = level, k
                if positions is not None:
                    kept = _near(positions, float(positions[k]), LEAST_NEAR + 1)
                    others, left_out = level[kept], int((kept == k).nonzero())
                each.append(match(level[k : k + 1], others, left_out=left_out).distance)
            found.append(torch.cat(each, dim=1).mean(dim=(1, 2, 3)).clamp(min=1e-3))
        return cls(list(levels), torch.stack(found), positions)

    def near(self, position: float, apart: bool = False) -> References:
        """Those that a slice at ``position`` is compared with; all of them where a position is not known (NaN).

        ``apart`` leaves out those at just this position, as a view of one of them must be judged if it stands for a
        slice of another volume; if there are no others, none is left out.
        """
        if self.positions is None or position != position:
            return self
        others = (self.positions != position).nonzero()[:, 0]
        if not apart or not len(others):
            others = torch.arange(len(self.positions), device=self.positions.device)
        kept = others[_near(self.positions[others], position, LEAST_NEAR)]
        return References([level[kept] for level in self.levels], self.spread, self.positions[kept])

    def to(self, device: torch.device) -> References:
        """The same on another device."""
        positions = self.positions.to(device) if self.positions is not None else None
        return References([level.to(device) for level in self.levels], self.spread.to(device), positions)


def _near(positions: torch.Tensor, position: float, least: int) -> torch.Tensor:
    """Which of (K,) positions lie in reach of one, the ``least`` closest in any case."""
    away = (positions - position).abs()
    limit = away.sort().values[min(least, len(away)) - 1].clamp(min=REACH)
    return (away <= limit).nonzero()[:, 0]


def as_rows(features: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) features as (B·h·w, C) rows."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)


@lru_cache(maxsize=16)
def _nearby(h: int, w: int) -> torch.Tensor:
    """(h·w, n) places around each place; at the border some twice."""
    reach = max(1, round(REACH * max(h, w)))
    steps = torch.arange(-reach, reach + 1)
    y, x = ((torch.arange(n)[:, None] + steps).clamp(0, n - 1) for n in (h, w))
    return (y[:, None, :, None] * w + x[None, :, None, :]).reshape(h * w, -1)


def _least(distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest value of each row of (n, m) and where it stands.

    Only the search for the place is slow, so it looks into one group of columns: the one with the smallest value.
    """
    n, m = distance.shape
    if m % GROUP:
        least, row = distance.min(dim=1)
        return least, row
    groups = distance.view(n, m // GROUP, GROUP)
    least, group = groups.amin(dim=2).min(dim=1)
    inside = groups.gather(1, group[:, None, None].expand(n, 1, GROUP))[:, 0].min(dim=1).indices
    return least, group * GROUP + inside


@torch.no_grad()
def match(
    features: torch.Tensor, reference: torch.Tensor, left_out: int | None = None, hidden: torch.Tensor | None = None
) -> Match:
    """The closest counterparts of every place.

    Parameters
    ----------
    features
        (B, C, h, w) of the images.
    reference
        (K, C, h, w) of the references.
    left_out
        Number of a reference to pass over.
    hidden
        (K·h·w,) rows to pass over.
    """
    b, c, h, w = features.shape
    places, count = h * w, len(reference)
    rows = as_rows(reference)
    half = 0.5 * rows.square().sum(dim=1)
    if left_out is not None:
        half[left_out * places : (left_out + 1) * places] = torch.inf
    if hidden is not None:
        half = half.masked_fill(hidden, 1e5)
    around = _nearby(h, w).to(features.device)
    offsets = (torch.arange(count, device=features.device) * places)[:, None]
    across = rows.T.contiguous()
    found: list[list[torch.Tensor]] = [[], [], [], []]
    for image in as_rows(features).split(places):
        for start in range(0, places, CHUNK):
            x = image[start : start + CHUNK]
            # |a − b|² = |a|² + 2·(|b|²/2 − a·b)
            distance = torch.addmm(half, x, across, alpha=-1)
            near = (around[start : start + CHUNK, None, :] + offsets).flatten(1)
            square = x.square().sum(dim=1)
            least, row = _least(distance)
            least_near, place = distance.gather(1, near).min(dim=1)
            values = (row, near.gather(1, place[:, None])[:, 0], square + 2 * least, square + 2 * least_near)
            for kept, value in zip(found, values, strict=True):
                kept.append(value)
    anywhere, near_row, least, least_near = (torch.cat(kept).reshape(b, h, w) for kept in found)
    distance = torch.stack([least, least_near]).clamp(min=0.0, max=1e4 * c) / c
    return Match(torch.stack([anywhere, near_row]), distance)
