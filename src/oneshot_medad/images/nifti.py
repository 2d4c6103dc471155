"""NIfTI volumes: slices as a radiologist looks at them, and heatmaps back on the volume's own grid."""

from __future__ import annotations

import gzip
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np

from oneshot_medad.errors import ImageFileError, ImageTypeError
from oneshot_medad.images.files import File, Member, content
from oneshot_medad.images.stack import Pixels, Window, check_size, clip

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
MAX_BYTES = 2**33
"""Size of the largest volume that is read, so that a small compressed file cannot fill the memory."""


class Nifti:
    """A volume of shape (X, Y, Z), turned so that its axes run to the right, anterior and superior (RAS+).

    Slices lie as in radiology: **axial** with anterior up and the patient's right on the left of the picture,
    **coronal** with superior up and the patient's right on the left, **sagittal** with superior up and anterior on the
    left. They are counted from inferior, posterior and left.
    """

    def __init__(self, file: File) -> None:
        import nibabel

        self._own = image = _load(file)
        shape = image.shape + (1,) * (3 - len(image.shape))
        if len(image.shape) < 2 or any(n != 1 for n in shape[3:]) or 0 in shape:
            raise ImageFileError(
                f"Got shape {image.shape}; wanted one volume (X, Y, Z). Split a series of volumes first, for example "
                "with nibabel.four_to_three."
            )
        dtype = image.get_data_dtype()
        if dtype.kind not in "uif" and dtype.names != ("R", "G", "B"):
            raise ImageTypeError(f"Got voxels of type {dtype}; wanted real numbers or RGB.")
        size = np.prod([float(n) for n in shape]) * dtype.itemsize
        if size > MAX_BYTES:
            raise ImageFileError(
                f"Got a volume that unpacks to {size:.3g} bytes; wanted at most {MAX_BYTES}. Crop it first, or pass "
                "slices as arrays."
            )
        self.turn = nibabel.orientations.io_orientation(image.affine)
        turned = nibabel.orientations.apply_orientation(np.broadcast_to(np.int8(0), shape[:3]), self.turn)
        self.shape, self.own_shape, self.affine = turned.shape, shape[:3], image.affine
        self.axes = {name: turned.shape[AXES[name]] for name in ("axial", "coronal", "sagittal")}

    @cached_property
    def _volume(self) -> np.ndarray:
        """As stored, without slope, so that memory holds no more than the file unpacked."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(np.asanyarray(self._own.dataobj.get_unscaled()).reshape(self.own_shape), self.turn)

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Slice ``index`` along ``axis`` in [0, 1]: values outside the window are cut to it."""
        from nibabel.affines import voxel_sizes

        check_size(*(n for i, n in enumerate(self.shape) if i != AXES[axis]))
        plane = np.moveaxis(self._volume, AXES[axis], 0)[index].T[::-1, ::-1]
        zooms = voxel_sizes(self.affine)[np.argsort(self.turn[:, 0])]
        across, up = (float(z) for i, z in enumerate(zooms) if i != AXES[axis])
        if plane.dtype.names:  # RGB24
            pixels = clip(np.stack([plane[name] for name in "RGB"], -1), window or (0.0, 255.0))
        else:
            values = plane.astype(np.float64) * self._own.dataobj.slope + self._own.dataobj.inter
            pixels = clip(values, window or self._stated())
        return pixels, (0.0, 1.0), (up, across)

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


def _load(file: File) -> Any:
    import nibabel

    if not isinstance(file, Member):
        image = nibabel.load(file)
    else:
        data = content(file)
        if file.name.lower().endswith(".gz"):
            data = gzip.GzipFile(fileobj=BytesIO(data)).read(MAX_BYTES)
        first = nibabel.Nifti1Header.sizeof_hdr.to_bytes(4, "little")
        kind = nibabel.Nifti1Image if first in (data[:4], data[3::-1]) else nibabel.Nifti2Image
        image = kind.from_bytes(data)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ImageFileError(f"Got the format {type(image).__name__}; wanted NIfTI.")
    return image
