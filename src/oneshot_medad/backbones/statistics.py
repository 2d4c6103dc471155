"""Constants that belong to frozen networks: the scale of what they give, and what they make of one known image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from oneshot_medad.errors import WeightsError

if TYPE_CHECKING:
    from oneshot_medad.backbones.clip import VisionTower
    from oneshot_medad.backbones.medvae import LatentSpace

PROBE_TOLERANCE = 0.002
"""How far a probe may lie from the stored one, as a share of its own size: far above what another processor or a newer
library changes, far below another activation or other weights."""


@torch.no_grad()
def measure(latents: LatentSpace, vision: VisionTower, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of every channel over (B, 3, S, S) images in [0, 1], and the probes.

    Rounded to three digits, so that machines that measure the same networks get the same constants but for a last digit
    here and there. ``latents`` must not standardise yet.
    """
    sums: list[torch.Tensor] = []
    squares: list[torch.Tensor] = []
    count, side = 0, 0
    for images in batches:
        found = [x.double() for x in (latents.encode(images), *vision.raw(images)[0])]
        first, second = (
            [x.mean((0, 2, 3)) * len(x) for x in found],
            [x.square().mean((0, 2, 3)) * len(x) for x in found],
        )
        sums = [a + b for a, b in zip(sums, first, strict=True)] if sums else first
        squares = [a + b for a, b in zip(squares, second, strict=True)] if squares else second
        count, side = count + len(images), images.shape[-1]
    tensors = {}
    for name, total, square in zip(_names(len(sums)), sums, squares, strict=True):
        mean = total / count
        tensors[f"{name}.mean"] = _rounded(mean)
        tensors[f"{name}.std"] = _rounded((square / count - mean**2).clamp(min=1e-8).sqrt())
    return tensors | {"probe.latent": probe_latent(latents, side)} | probe_levels(vision, side)


def _names(count: int) -> list[str]:
    return ["latent", *(f"level{i}" for i in range(count - 1))]


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor([float(f"{v:.3g}") for v in values.tolist()])


def probe_image(side: int) -> torch.Tensor:
    """(1, 3, side, side) in [0, 1]: rings and stripes made by arithmetic alone."""
    x = torch.linspace(-1, 1, side)
    rings = ((x[:, None] ** 2 + x[None] ** 2) * 12).sin()
    stripes = (x[None] * 9 + x[:, None] * 4).sin()
    return (0.5 + 0.25 * rings + 0.25 * stripes).expand(1, 3, -1, -1)


@torch.no_grad()
def probe_latent(latents: LatentSpace, side: int) -> torch.Tensor:
    """(2·C,) mean and standard deviation over places of the raw latent of the probe image."""
    image = probe_image(side).to(latents.mean.device)
    with torch.autocast(image.device.type, enabled=False):  # networks may be loaded in the midst of a fit
        return _summary(latents.encode(image) * latents.std + latents.mean)


@torch.no_grad()
def probe_levels(vision: VisionTower, side: int) -> dict[str, torch.Tensor]:
    """The same (2·C_l,) of each raw feature level, by name."""
    image = probe_image(side).to(vision.pixel_mean.device)
    with torch.autocast(image.device.type, enabled=False):
        levels, _ = vision.raw(image)
    return {f"probe.level{i}": _summary(level) for i, level in enumerate(levels)}


def _summary(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[0].mean((1, 2)), x[0].std((1, 2))]).cpu()


def check_probe(name: str, got: torch.Tensor, wanted: torch.Tensor, where: str) -> None:
    """Refuse networks that make something else of the probe image than they did when they were stored."""
    off = float((got - wanted).norm() / wanted.norm()) if got.shape == wanted.shape else float("inf")
    if not off <= PROBE_TOLERANCE:
        raise WeightsError(
            f"The frozen networks of {where} give another {name} for the probe image than they did when they were "
            f"stored (off by {off:.2%}; wanted at most {PROBE_TOLERANCE:.1%}). Their weights, their activation or the "
            "library that runs them changed: download them again, or install the versions they were stored with."
        )
