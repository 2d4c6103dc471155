"""Stored tensors as parts of a scorer, or what does not fit about them."""

from __future__ import annotations

import torch

from oneshot_medad.nn.matching import References
from oneshot_medad.scoring.distances import Subspace
from oneshot_medad.training.joint import Shapes


def expect(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
    """A tensor of a shape, of which None may be anything but 0."""
    found = tuple(tensors[name].shape) if name in tensors else "missing"
    fits = len(found) == len(shape) and all(g == w or (w is None and g) for g, w in zip(found, shape, strict=True))
    if not fits:
        raise ValueError(f"{name} is {found}; wanted {tuple('any' if n is None else n for n in shape)}, not empty")
    return tensors[name].float()


def loose(tensors: dict[str, torch.Tensor], name: str, n_axes: int) -> torch.Tensor:
    """A tensor of so many axes, which may be empty."""
    if name not in tensors or tensors[name].dim() != n_axes:
        raise ValueError(
            f"{name} is {tuple(tensors[name].shape) if name in tensors else 'missing'}; wanted {n_axes} axes"
        )
    return tensors[name].float()


def stored_references(tensors: dict[str, torch.Tensor], prefix: str, shapes: Shapes) -> References:
    """What is compared with: vision features, or with the prefix ``latent_`` projected latents."""
    count = None
    levels = []
    for i, (width, side) in enumerate(shapes.levels):
        levels.append(expect(tensors, f"{prefix}reference{i}", (count, width, side, side)))
        count = len(levels[0])
    spread = expect(tensors, f"{prefix}spread", (len(levels), 2))
    return References(levels, spread, expect(tensors, "positions", (count,)) if "positions" in tensors else None)


def stored_subspace(tensors: dict[str, torch.Tensor], shapes: Shapes) -> Subspace:
    """Of the normal views' features."""
    widths = [width for width, _ in shapes.levels]
    return Subspace(
        [expect(tensors, f"subspace.mean{i}", (width,)) for i, width in enumerate(widths)],
        [expect(tensors, f"subspace.minor{i}", (None, width)) for i, width in enumerate(widths)],
        expect(tensors, "subspace.spread", (len(widths),)),
    )
