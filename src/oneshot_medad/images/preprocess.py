"""Fit an image into the networks' square field, and put a heatmap back on the image's own grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from oneshot_medad.images.resample import fitted_size


def to_field(pixels: torch.Tensor, side: int, aspect: float = 1.0) -> torch.Tensor:
    """(3, H, W) → (3, side, side): in true proportions, centred, the rest zero."""
    h, w = fitted_size((pixels.shape[-2], pixels.shape[-1]), side, aspect)
    x = F.interpolate(pixels[None], (h, w), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
    top, left = (side - h) // 2, (side - w) // 2
    return F.pad(x, (left, side - w - left, top, side - h - top))


def from_field(heatmaps: torch.Tensor, side: int, size: tuple[int, int], aspect: float = 1.0) -> torch.Tensor:
    """(h, w) map of the whole field → (H, W) on the grid of an image of ``size``: the inverse of `to_field`."""
    h, w = fitted_size(size, side, aspect)
    top, left = (side - h) // 2, (side - w) // 2
    field = F.interpolate(heatmaps[None, None], (side, side), mode="bilinear", align_corners=False)
    inner = field[..., top : top + h, left : left + w]
    return F.interpolate(inner, size, mode="bilinear", align_corners=False)[0, 0]
