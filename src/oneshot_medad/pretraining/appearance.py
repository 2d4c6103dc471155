"""What differs between modalities and sites and is no lesion: drawn once for all images of an episode."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def change_appearance(
    images: torch.Tensor, masks: torch.Tensor, rng: np.random.Generator, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Orientation, window, gamma, polarity, shading, texture, colour, sharpness and speckle.

    Texture changes by a random convolution (Xu et al. 2021).

    Parameters
    ----------
    images, masks
        (N, 3, S, S) in [0, 1] and (M, S, S) of one episode.
    rng, generator
        Sources of all randomness.
    """
    size = images.shape[-2:]
    if rng.random() < 0.3:
        turns = int(rng.integers(4))
        images, masks = torch.rot90(images, turns, (2, 3)), torch.rot90(masks, turns, (1, 2))
    if rng.random() < 0.4:
        images = images.clamp(0, 1) ** float(np.exp(rng.uniform(-0.7, 0.7)))
    if rng.random() < 0.3:
        low, high = rng.uniform(-0.2, 0.25), rng.uniform(0.7, 1.1)
        images = ((images - low) / (high - low)).clamp(0, 1)
    if rng.random() < 0.12:
        images = 1 - images
    if rng.random() < 0.2:
        slope = torch.randn(1, 1, 3, 3, generator=generator)
        shade = F.interpolate(slope, size, mode="bicubic", align_corners=True)
        images = (images * (rng.uniform(0.1, 0.4) * shade).exp()).clamp(0, 1)
    if rng.random() < 0.25:
        images = _convolved(images, int(rng.choice([1, 3, 5])), rng.uniform(0.2, 0.9), generator)
    if rng.random() < 0.3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if rng.random() < 0.2:
        coarse = int(rng.integers(3 * size[0] // 8, 3 * size[0] // 4))
        images = F.interpolate(images, (coarse, coarse), mode="bilinear", antialias=True)
        images = F.interpolate(images, size, mode="bilinear")
    if rng.random() < 0.2:
        speckle = torch.randn(1, 1, *size, generator=generator)
        images = (images * (1 + rng.uniform(0.02, 0.15) * speckle)).clamp(0, 1)
    return images, masks


def _convolved(images: torch.Tensor, side: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Images mixed with what a random convolution makes of them, with the range they had together."""
    kernel = torch.randn(3, 3, side, side, generator=generator) / (3 * side * side) ** 0.5
    found = F.conv2d(F.pad(images, [side // 2] * 4, mode="reflect"), kernel)
    mixed = images.lerp((found - found.mean()) / found.std() * images.std() + images.mean(), share)
    low, high = mixed.amin(), mixed.amax()
    return images.amin() + (mixed - low) / (high - low).clamp(min=1e-6) * (images.amax() - images.amin())
