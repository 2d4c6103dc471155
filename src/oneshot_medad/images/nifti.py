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
from oneshot_medad.images.kinds import HEAD, NIFTI
from oneshot_medad.images.stack import Pixels, Spacing, Window, check_size, clip, see_through

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
MAX_BYTES = 2**33
"""Size of the largest volume that is read, so that a small compressed file cannot fill the memory."""
COARSE = 1.4
"""A voxel that is so many times longer than it is wide or deep shows across which axis the slices were acquired."""
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in the units of a header; a header that states none means millimetres."""


class Nifti:
    """A volume of shape (X, Y, Z), turned so that its axes run to the right, anterior and superior (RAS+).

    Slices lie as in radiology: **axial** with anterior up and the patient's right on the left of the picture,
    **coronal** with superior up and the patient's right on the left, **sagittal** with superior up and anterior on the
    left. They are counted from inferior, posterior and left. Where nobody names an axis, the slices are those that were
    acquired: across the axis of one voxel, or of clearly the longest voxels, else axial.
    """

    def __init__(self, file: File) -> None:
        import nibabel
        from nibabel.affines import voxel_sizes

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
        self.affine = _whole(image.affine, shape)
        self.turn = nibabel.orientations.io_orientation(self.affine)
        turned = nibabel.orientations.apply_orientation(np.broadcast_to(np.int8(0), shape[:3]), self.turn)
        self.shape, self.own_shape = turned.shape, shape[:3]
        self._sizes = voxel_sizes(self.affine)[np.argsort(self.turn[:, 0])]
        order = sorted(("axial", "coronal", "sagittal"), key=_acquired(self.shape, self._sizes).__ne__)
        self.axes = {name: self.shape[AXES[name]] for name in order}

    @cached_property
    def _volume(self) -> np.ndarray:
        """As stored, without slope, so that memory holds no more than the file unpacked."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(np.asanyarray(self._own.dataobj.get_unscaled()).reshape(self.own_shape), self.turn)

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Slice ``index`` along ``axis`` in [0, 1]: values outside the window are cut to it."""
        check_size(*(n for i, n in enumerate(self.shape) if i != AXES[axis]))
        plane = np.moveaxis(self._volume, AXES[axis], 0)[index].T[::-1, ::-1]
        opacity = None
        if plane.dtype.names:
            colours, opacity = see_through(np.stack([plane[name] for name in plane.dtype.names], -1))
            pixels = clip(colours, window or (0.0, 255.0))
        else:
            values = plane.astype(np.float64) * self._own.dataobj.slope + self._own.dataobj.inter
            pixels = clip(values, window or self._stated())
        across, up = (float(size) for i, size in enumerate(self._sizes) if i != AXES[axis])
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

    def from_planes(self, planes: dict[int, np.ndarray], axis: str) -> np.ndarray:
        """(X, Y, Z) float32 on the file's own grid from slices as `read` shows them; 0 where there is none."""
        from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

        volume = np.zeros(self.shape, np.float32)
        along = np.moveaxis(volume, AXES[axis], 0)
        for index, plane in planes.items():
            along[index] = plane[::-1, ::-1].T
        back = ornt_transform(axcodes2ornt("RAS"), self.turn)
        return np.ascontiguousarray(apply_orientation(volume, back))


def _whole(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The affine; where a single slice says nothing of the direction across it, that of the two others' normal."""
    directions = np.array(affine, dtype=float)
    lost = np.flatnonzero(~directions[:3, :3].any(axis=0))
    if np.isfinite(directions).all() and len(lost) == 1 and shape[lost[0]] == 1:
        normal = np.cross(*np.delete(directions[:3, :3], lost[0], axis=1).T)
        normal = normal * np.sign(normal[np.abs(normal).argmax()])
        directions[:3, lost[0]] = normal / (np.linalg.norm(normal) or 1.0)
    if not np.isfinite(directions).all() or np.linalg.matrix_rank(directions[:3, :3]) < 3:
        raise ImageFileError(
            f"Got the affine {np.round(affine, 4).tolist()}, which does not say how the axes run; wanted three "
            "directions. Correct sform or qform."
        )
    return directions


def _acquired(shape: tuple[int, ...], sizes: np.ndarray) -> str:
    """Name of the axis across which slices were acquired, from the shape and voxel sizes along x, y and z."""
    names = ("axial", "coronal", "sagittal")
    thin = [name for name in names if shape[AXES[name]] == 1]
    if thin:
        return thin[0]
    second, coarsest = np.sort(sizes)[1:]
    return next(n for n in names if sizes[AXES[n]] == coarsest) if coarsest >= COARSE * second else "axial"


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
