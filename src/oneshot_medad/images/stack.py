"""What every kind of file offers: slices along axes, each read with the file opened once."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from PIL import Image as PILImage

from oneshot_medad.errors import ImageError, ImageFileError

Window: TypeAlias = tuple[float, float] | None
Spacing: TypeAlias = tuple[float, float] | None
Pixels: TypeAlias = tuple[np.ndarray, Window, Spacing]
"""(H, W) or (H, W, 3) values; what becomes 0 and 1, None if the type says; height and width of a pixel in mm."""


class Stack(Protocol):
    """An opened file."""

    axes: dict[str, int]
    "Number of slices along every axis; the first one is taken where nobody says."

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """One slice; ``window`` is the detector's ``intensity_range``."""


def clip(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Values of a scanner's open-ended scale as float32 in [0, 1]: what lies outside the window is cut to it."""
    if not np.isfinite(values).all():
        raise ImageError("Got NaN or infinite pixels; wanted finite ones. Fill or mask them first.")
    low, high = window
    return (np.clip(values, low, high).astype(np.float64) - low).astype(np.float32) / np.float32(high - low)


def check_size(height: int, width: int) -> None:
    """Refuse a slice that is larger than what Pillow takes from a picture."""
    limit = PILImage.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise ImageFileError(
            f"Got {height} x {width} pixels; wanted at most {limit}. If you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        )
