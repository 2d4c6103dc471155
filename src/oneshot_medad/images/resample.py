"""`preprocess` in NumPy, for where torch is not installed: the same field, the same heatmap."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def fitted_size(size: tuple[int, int], side: int, aspect: float = 1.0) -> tuple[int, int]:
    """(H, W) after scaling the longer edge to ``side``, at least 1.

    ``aspect`` is the height of a pixel divided by its width: edges are as long as they are in the patient.
    """
    height, width = size[0] * aspect, size[1]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def field_of(values: np.ndarray, side: int, aspect: float = 1.0) -> np.ndarray:
    """(H, W) or (H, W, 3) float32 in [0, 1] → (3, side, side): what `preprocess.to_field` makes of it.

    Examples
    --------
    >>> field_of(np.ones((10, 20), np.float32), 4)[0].tolist()
    [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    h, w = fitted_size((values.shape[0], values.shape[1]), side, aspect)
    rows, columns = _averaging(values.shape[0], h), _averaging(values.shape[1], w)
    field = np.zeros((3, side, side), np.float32)
    top, left = (side - h) // 2, (side - w) // 2
    channels = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    inner = np.stack([rows @ (channel @ columns.T) for channel in channels])
    field[:, top : top + h, left : left + w] = inner.clip(0, 1)
    return field


def map_of(heatmap: np.ndarray, size: tuple[int, int], aspect: float = 1.0) -> np.ndarray:
    """(side, side) map of the field → (H, W) on the grid of an image of ``size``, like `preprocess.from_field`."""
    side = len(heatmap)
    h, w = fitted_size(size, side, aspect)
    top, left = (side - h) // 2, (side - w) // 2
    inner = heatmap[top : top + h, left : left + w]
    return _between(h, size[0]) @ inner @ _between(w, size[1]).T


@lru_cache(maxsize=16)
def _averaging(there: int, wanted: int) -> np.ndarray:
    """(wanted, there) weights of a linear interpolation that averages what a coarser grid cannot show."""
    scale = there / wanted
    centres = scale * (np.arange(wanted) + 0.5)
    distance = np.abs(np.arange(there) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = (1 - distance).clip(min=0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=16)
def _between(there: int, wanted: int) -> np.ndarray:
    """(wanted, there) weights of a linear interpolation between the centres of pixels."""
    places = (there / wanted * (np.arange(wanted) + 0.5) - 0.5).clip(0, there - 1)
    return (1 - np.abs(places[:, None] - np.arange(there))).clip(min=0).astype(np.float32)
