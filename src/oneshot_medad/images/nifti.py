"""NIfTI volumes: slices as a radiologist looks at them, and heatmaps back on the volume's own grid."""

from __future__ import annotations

from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad.errors import ImageFileError, ImageTypeError
from oneshot_medad.images.files import File, Member, beside, content, packed
from oneshot_medad.images.folders import pixels_of
from oneshot_medad.images.formats import HEAD, NIFTI
from oneshot_medad.images.grid import Grid, ordered_axes
from oneshot_medad.images.stack import Pixels, Spacing, Window, check_size, clip, see_through

MAX_BYTES = 2**33
"""Size of the largest volume that is read, so that a small compressed file cannot fill the memory."""
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in the units of a header; a header that states none means millimetres."""


class Nifti:
    """A volume of shape (X, Y, Z), whose slices lie as `Grid` says.

    Where nobody names an axis, the slices are those that were acquired: across the axis of one voxel, or of clearly the
    longest voxels, else axial.
    """

    def __init__(self, file: File) -> None:
        self._own = image = _load(file)
        shape = image.shape + (1,) * (3 - len(image.shape))
        if len(image.shape) < 2 or any(n != 1 for n in shape[3:]) or 0 in shape:
            raise ImageFileError(
                f"Got shape {image.shape}; wanted one volume (X, Y, Z). Split a series of volumes first, for example "
                "with nibabel.four_to_three."
            )
        dtype = image.get_data_dtype()
        if dtype.kind not in "uif" and dtype.names not in (("R", "G", "B"), ("R", "G", "B", "A")):
            raise ImageTypeError(f"Got voxels of type {dtype}; wanted real numbers or RGB.")
        size = np.prod([float(n) for n in shape]) * dtype.itemsize
        if size > MAX_BYTES:
            raise ImageFileError(
                f"Got a volume that unpacks to {size:.3g} bytes; wanted at most {MAX_BYTES}. Crop it first, or pass "
                "slices as arrays."
            )
        self.grid = Grid(image.affine, shape[:3])
        self.axes = ordered_axes(self.grid.shape, self.grid.acquired())

    @cached_property
    def _volume(self) -> np.ndarray:
        """As stored, without slope, so that memory holds no more than the file unpacked."""
        return self.grid.turned(np.asanyarray(self._own.dataobj.get_unscaled()).reshape(self.grid.own_shape))

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Slice ``index`` along ``axis`` in [0, 1]: values outside the window are cut to it."""
        check_size(*self.grid.size(axis))
        plane = self.grid.picture(self._volume, axis, index)
        opacity = None
        if plane.dtype.names:
            colours, opacity = see_through(np.stack([plane[name] for name in plane.dtype.names], -1))
            pixels = clip(colours, window or (0.0, 255.0))
        else:
            values = plane.astype(np.float64) * self._own.dataobj.slope + self._own.dataobj.inter
            pixels = clip(values, window or self._stated())
        up, across = self.grid.pixel(axis)
        return Pixels(pixels, (0.0, 1.0), opacity, self._spacing(up, across), up / across)

    def _spacing(self, up: float, across: float) -> Spacing:
        unit = UNITS.get(int(self._own.header["xyzt_units"]) & 7)
        return None if unit is None else (up * unit, across * unit)

    def _stated(self) -> tuple[float, float]:
        header: Any = self._own.header
        low, high = float(header["cal_min"]), float(header["cal_max"])
        if not low < high:
            raise ImageTypeError(
                "Got a NIfTI volume, whose range is unknown (its cal_min and cal_max say nothing). "
                "Pass intensity_range=(low, high)."
            )
        return low, high


def _load(file: File) -> Any:
    import nibabel

    name, pixels = file.name.lower(), _pixels(file)
    if isinstance(pixels, Path) and not pixels.exists():
        raise ImageFileError(f"Got a NIfTI header without pixels; wanted {pixels.name} beside it.")
    plain = name.endswith((*NIFTI, ".hdr", ".hdr.gz")) and packed(file) == name.endswith(".gz")
    image = nibabel.load(file) if plain and not isinstance(file, Member) else _from_bytes(file)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ImageFileError(f"Got the format {type(image).__name__}; wanted a NIfTI volume. Save it as one.")
    return image


def _pixels(file: File) -> File:
    """The file with the pixels: of a pair the second, else the same."""
    return beside(file, pixels_of(file.name.rsplit("/", 1)[-1]))


def _from_bytes(file: File) -> Any:
    """A file in an archive, or one whose name hides whether it is packed."""
    import nibabel

    head = content(file, HEAD)
    second = 540 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
    if head[344:348] != b"ni1\0" and head[4:8] != b"ni2\0":
        return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content(file))
    both = (("header", file), ("image", _pixels(file)))
    parts = {part: nibabel.FileHolder(fileobj=BytesIO(content(one))) for part, one in both}
    return (nibabel.Nifti2Pair if second else nibabel.Nifti1Pair).from_file_map(parts)
