"""What every format of files offers: slices along axes, each read with the file opened once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from PIL import Image as PILImage

from oneshot_medad.errors import ImageError, ImageFileError

Window: TypeAlias = tuple[float, float] | None
Spacing: TypeAlias = tuple[float, float] | None


@dataclass(frozen=True)
class Pixels:
    """One slice as a file holds it.

    Attributes
    ----------
    values
        (H, W) grey or (H, W, 3) colour.
    window
        What becomes 0 and 1; None if the type of the values says.
    opacity
        (H, W, 1) in [0, 1]; None if all is opaque.
    spacing
        Height and width of a pixel in mm.
    aspect
        Height of a pixel divided by its width.
    inverted
        Whether the upper end of the window is black.
    """

    values: np.ndarray
    window: Window = None
    opacity: np.ndarray | None = None
    spacing: Spacing = None
    aspect: float = 1.0
    inverted: bool = False


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


def see_through(values: np.ndarray, highest: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) colours and (H, W, 1) opacity in [0, 1] of (H, W, 4) values; all others have none.

    Without ``highest``, opacity spans its type.
    """
    if values.ndim != 3 or values.shape[-1] != 4:
        return values, None
    if highest is None:
        highest = float(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else 1.0
    return values[..., :3], values[..., 3:].astype(np.float32) / np.float32(highest)


def check_size(height: int, width: int) -> None:
    """Refuse a slice that is larger than what Pillow takes from a picture."""
    limit = PILImage.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise ImageFileError(
            f"Got {height} x {width} = {height * width} pixels; wanted at most {limit}. If you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        )


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, …) values turned as the orientation of EXIF and TIFF, 1 to 8, asks for."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
