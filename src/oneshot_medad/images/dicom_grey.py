"""Grey DICOM pixels: stored values → modality → VOI → [0, 1], as a viewer would show them."""

from __future__ import annotations

from typing import Any

import numpy as np

from oneshot_medad.errors import ImageError, ImageTypeError
from oneshot_medad.images.dicom_tables import Table, read_table
from oneshot_medad.images.dicom_values import number, numbers, places, text
from oneshot_medad.images.stack import Window, clip

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
PADDING = ("", "Float", "DoubleFloat")
"""Of the attributes that name the padding of whole, 32-bit and 64-bit floating-point pixels."""


def to_grey(stored: np.ndarray, ds: Any, frame: int, window: Window, inverted: bool) -> np.ndarray:
    """(H, W) float32 in [0, 1] from (H, W) stored values; padding is background, which is 0."""
    background = _background(stored, ds)
    if not np.isfinite(stored[~background]).all():
        raise ImageError("Got NaN or infinite pixels; wanted finite ones. Fill or mask them first.")
    values, limits = _modality(np.where(background, 0, stored), ds, frame)
    shown = _voi(values, limits, ds, frame) if window is None else clip(values, window)
    return np.where(background, np.float32(0), 1 - shown if inverted else shown)


def stored_range(ds: Any) -> tuple[float, float]:
    """Smallest and largest number that the stored bits can make."""
    low = -(2.0 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0.0
    return low, low + 2.0**ds.BitsStored - 1


def _modality(stored: np.ndarray, ds: Any, frame: int) -> tuple[np.ndarray, Window]:
    """Values in the modality's unit, and the range that the stored bits can take there, whatever they do take."""
    whole = stored.dtype.kind != "f"
    ends = stored_range(ds) if whole else None
    for item in places(ds, frame, "PixelValueTransformationSequence"):
        table = _table(ds, item, "ModalityLUTSequence", ends)
        if table is not None:
            return table(stored), (0.0, table.highest)
        slope, intercept = number(item, "RescaleSlope") or None, number(item, "RescaleIntercept")
        if slope is not None or intercept is not None:
            slope, intercept = slope or 1.0, intercept or 0.0
            break
    else:
        slope, intercept = 1.0, 0.0
    values = stored.astype(np.float64) * slope + intercept
    if ends is None:
        return values, None
    low, high = sorted(end * slope + intercept for end in ends)
    return values, (low, high)


def _voi(values: np.ndarray, limits: Window, ds: Any, frame: int) -> np.ndarray:
    """The first table of the file, or its first window, or the range of its bits."""
    for item in places(ds, frame, "FrameVOILUTSequence"):
        table = _table(ds, item, "VOILUTSequence", limits)
        if table is not None:
            return clip(table(values), (0.0, table.highest))
        found = _window(item)
        if found is not None:
            return _through(values, *found)
    if limits is None:
        raise ImageTypeError(
            f"Got DICOM pixels of type {values.dtype} without a window, whose range is unknown; wanted whole numbers. "
            "Pass intensity_range=(low, high)."
        )
    return clip(values, limits)


def _window(item: Any) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window that means something."""
    function = (text(item, "VOILUTFunction") or "LINEAR").upper()
    if function not in FUNCTIONS:
        return None
    pairs = zip(numbers(item, "WindowCenter"), numbers(item, "WindowWidth"), strict=False)
    usable = (pair for pair in pairs if np.isfinite(pair).all() and pair[1] > 0)
    return next(((centre, width, function) for centre, width in usable), None)


def _through(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Part 3, C.11.2.1.2 and C.11.2.1.3 of the standard, for an output from 0 to 1."""
    if function == "SIGMOID":
        from scipy.special import expit

        return expit(4 * (values - centre) / width).astype(np.float32)
    if function == "LINEAR" and width == 1:
        return (values > centre - 0.5).astype(np.float32)
    if function == "LINEAR" and width > 1:  # below 1 it has no meaning but that of LINEAR_EXACT
        centre, width = centre - 0.5, width - 1
    return clip(values, (centre - width / 2, centre + width / 2))


def _table(ds: Any, item: Any, name: str, limits: Window) -> Table | None:
    """The first usable table of a sequence."""
    try:
        items = list(item[name].value)
    except Exception:
        return None
    top = limits[1] if limits else 2.0**15 - 1
    return next((table for one in items if (table := read_table(ds, one, "LUT", top)) is not None), None)


def _background(stored: np.ndarray, ds: Any) -> np.ndarray:
    """(H, W) where the file says that there is no image."""
    kind = PADDING[0] if stored.dtype.kind != "f" else PADDING[stored.dtype.itemsize // 4]
    value, limit = (number(ds, f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return np.zeros(stored.shape, bool)
    ends = np.array([value, value if limit is None else limit])
    if kind == "":  # its type of number may be a guess, so take it as the same bits of the pixels' type
        ends = ends.astype(np.int64).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())
