"""Images in memory: which dimensions of an array or tensor are images, rows, columns and colours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad.errors import ImageError

if TYPE_CHECKING:
    import torch


def is_tensor(images: Any) -> bool:
    """Whether this is a torch tensor; where torch was never imported there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(images, torch.Tensor)


def of_tensor(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """The images of (H, W), (C, H, W) or (N, C, H, W)."""
    shape = tuple(images.shape)
    if images.ndim == 2 or (images.ndim == 3 and shape[0] in (1, 3, 4)):
        yield images
    elif images.ndim == 4 and shape[1] in (1, 3, 4):
        yield from images
    else:
        raise ImageError(
            f"Got a tensor of shape {shape}; wanted (H, W), (C, H, W) or (N, C, H, W) with C of 1, 3 or 4 (opacity)."
        )


def of_array(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images of (H, W), (H, W, C), (N, H, W) or (N, H, W, C)."""
    colour = images.ndim >= 3 and images.shape[-1] in (1, 3, 4)
    if images.ndim == 2 or (images.ndim == 3 and colour):
        yield images
    elif images.ndim == 3 or (images.ndim == 4 and colour):
        yield from images
    else:
        raise ImageError(
            f"Got an array of shape {images.shape}; wanted (H, W), (H, W, C), (N, H, W) or (N, H, W, C) with C of 1, "
            "3 or 4 (opacity)."
        )
