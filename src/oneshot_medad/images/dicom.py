"""DICOM files: stored values → modality → VOI → [0, 1], as a viewer would show them."""

from __future__ import annotations

from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np

from oneshot_medad.errors import ExtraError, ImageFileError, ImageTypeError
from oneshot_medad.images.files import File, Member, content, is_dicom
from oneshot_medad.images.stack import Pixels, Spacing, Window, check_size, clip

GREY = ("MONOCHROME1", "MONOCHROME2")


class Dicom:
    """A DICOM file with pixels."""

    def __init__(self, file: File) -> None:
        self._file = file
        if not is_dicom(file):
            raise ImageFileError("Got no 'DICM' after the preamble; wanted a DICOM file (part 10). Export it again.")
        header = _read(
            file, stop_before_pixels=True, specific_tags=["NumberOfFrames", "SOPClassUID", "Rows", "Columns"]
        )
        if "Rows" not in header or "Columns" not in header:
            what = header["SOPClassUID"].repval if "SOPClassUID" in header else "an unknown object"
            raise ImageFileError(f"Got a DICOM file without pixels ({what}); wanted an image.")
        check_size(header.Rows, header.Columns)
        self.axes = {"frame": int(header.get("NumberOfFrames") or 1)}

    @cached_property
    def _dataset(self) -> Any:
        return _read(self._file)

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Frame ``index`` in [0, 1]: the first VOI LUT or window of the file, unless ``window`` is given."""
        from pydicom.pixels import apply_color_lut, pixel_array

        ds = self._dataset
        values = pixel_array(ds, index=index)  # stored values without unused bits; YBR becomes RGB
        space = ds.PhotometricInterpretation
        measures = _macro(ds, index, "PixelMeasuresSequence")
        spacing = _spacing(measures) or _spacing(ds)
        if space in GREY:
            values = _grey(values, ds, index, window)
            return (1 - values if space == "MONOCHROME1" else values), (0.0, 1.0), spacing
        if space == "PALETTE COLOR":
            palette = apply_color_lut(values, ds)[..., :3]
            if palette.dtype == np.uint8 and values.max() > 255:  # pydicom would wrap around
                raise ImageTypeError("Got a palette of 8 bits with more than 256 entries; wanted 16 bits. Export RGB.")
            values = palette
            highest = float(np.iinfo(values.dtype).max)
        else:
            highest = 2.0**ds.BitsStored - 1
        return clip(values, window or (0.0, highest)), (0.0, 1.0), spacing


def _read(file: File, **options: Any) -> Any:
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise ExtraError(f"Reading {str(file)!r} needs pydicom: pip install 'oneshot-medad[dicom]'") from error
    return dcmread(BytesIO(content(file)) if isinstance(file, Member) else file, **options)


def _grey(stored: np.ndarray, ds: Any, frame: int, window: Window) -> np.ndarray:
    """(H, W) float32 in [0, 1], where 1 is the end of the scale that MONOCHROME2 shows white."""
    from pydicom.pixels import apply_windowing

    modality = _macro(ds, frame, "PixelValueTransformationSequence")
    voi = _macro(ds, frame, "FrameVOILUTSequence")
    values, limits = _modality(stored, ds, modality)
    if window is not None:
        return clip(values, window)
    if voi.get("VOILUTSequence"):
        values, highest = _look_up(values, voi.VOILUTSequence[0], ds)
        return clip(values, (0.0, highest))
    if _first(voi.get("WindowWidth")) is not None and _first(voi.get("WindowCenter")) is not None:
        return (apply_windowing(values, _plain_window(voi)) / 65535).astype(np.float32)
    if limits is None:
        raise ImageTypeError(
            f"Got DICOM pixels of type {stored.dtype} without a window, whose range is unknown; wanted whole numbers. "
            "Pass intensity_range=(low, high)."
        )
    return clip(values, limits)


def _modality(stored: np.ndarray, ds: Any, item: Any) -> tuple[np.ndarray, Window]:
    """Values in the modality's unit, and the range that the stored bits can take there, whatever they do take."""
    if item.get("ModalityLUTSequence"):
        values, highest = _look_up(stored, item.ModalityLUTSequence[0], ds)
        return values, (0.0, highest)
    slope, intercept = float(item.get("RescaleSlope", 1)), float(item.get("RescaleIntercept", 0))
    values = stored.astype(np.float64) * slope + intercept
    if stored.dtype.kind == "f":
        return values, None
    low = -(2.0 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0.0
    ends = [end * slope + intercept for end in (low, low + 2.0**ds.BitsStored - 1)]
    return values, (min(ends), max(ends))


def _look_up(values: np.ndarray, item: Any, ds: Any) -> tuple[np.ndarray, float]:
    """Values through a table, and the highest one its bits allow.

    pydicom's own functions take neither 12-bit modality tables nor 8-bit VOI tables of more than 256 entries.
    """
    entries, first, bits = item.LUTDescriptor
    data = item.LUTData
    order = "<" if ds.original_encoding[1] else ">"
    table = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.asarray(data)
    found = table[: entries or 2**16]
    return found[(values.astype(np.float64) - first).clip(0, len(found) - 1).astype(np.int64)], 2.0**bits - 1


def _plain_window(voi: Any) -> Any:
    """The first window alone; pydicom maps it to the range of 16 unsigned bits."""
    from pydicom import Dataset

    plain = Dataset()
    plain.PhotometricInterpretation, plain.BitsStored, plain.PixelRepresentation = "MONOCHROME2", 16, 0
    plain.WindowCenter, plain.WindowWidth = _first(voi.WindowCenter), _first(voi.WindowWidth)
    plain.VOILUTFunction = voi.get("VOILUTFunction") or "LINEAR"
    return plain


def _first(value: Any) -> Any:
    """The first of one or several values; None if there is none."""
    from pydicom.multival import MultiValue

    return (value[0] if value else None) if isinstance(value, MultiValue) else value


def _macro(ds: Any, frame: int, name: str) -> Any:
    """What holds an attribute: the frame's own functional group, the one of all frames, or the file itself."""
    for groups, i in (
        (ds.get("PerFrameFunctionalGroupsSequence"), frame),
        (ds.get("SharedFunctionalGroupsSequence"), 0),
    ):
        if groups and i < len(groups) and groups[i].get(name):
            return groups[i][name].value[0]
    return ds


def _spacing(item: Any) -> Spacing:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        if item.get(name):
            return float(item[name][0]), float(item[name][1])
    return None
