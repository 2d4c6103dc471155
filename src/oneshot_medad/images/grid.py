"""How the voxels of a volume lie in the patient, and its slices as a radiologist looks at them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oneshot_medad.errors import ImageFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
COARSE = 1.4
"""A voxel that is so many times longer than it is wide or deep shows across which axis the slices were acquired."""


class Grid:
    """A grid of (X, Y, Z) voxels, turned so that its axes run to the right, anterior and superior (RAS+).

    Slices lie as in radiology: **axial** with anterior up and the patient's right on the left of the picture,
    **coronal** with superior up and the patient's right on the left, **sagittal** with superior up and anterior on the
    left. They are counted from inferior, posterior and left.

    Parameters
    ----------
    affine
        (4, 4) from voxel indices to RAS+ coordinates; completed where a single slice lacks the direction across it.
    shape
        (X, Y, Z) as stored.

    Attributes
    ----------
    affine
        The same, complete.
    own_shape, shape
        As stored, and turned.
    sizes
        (3,) edges of a voxel along the turned axes, in the unit of the affine.

    Raises
    ------
    ImageFileError
        An affine that does not say how the axes run.
    """

    def __init__(self, affine: np.ndarray, shape: tuple[int, ...]) -> None:
        from nibabel.affines import voxel_sizes
        from nibabel.orientations import apply_orientation, io_orientation

        self.affine = _whole(affine, shape)
        self._turn = io_orientation(self.affine)
        self.own_shape = tuple(shape)
        self.shape = apply_orientation(np.broadcast_to(np.int8(0), shape), self._turn).shape
        self.sizes = voxel_sizes(self.affine)[np.argsort(self._turn[:, 0])]

    @property
    def across(self) -> tuple[str, bool]:
        """Name of the axis along which the third stored index runs, and whether it is counted backwards."""
        place, flip = self._turn[2]
        return next(name for name, axis in AXES.items() if axis == int(place)), flip < 0

    def stored_axis(self, axis: str) -> tuple[int, bool]:
        """Which stored index runs along an axis, and whether slices are counted against it."""
        place = [int(found) for found in self._turn[:, 0]].index(AXES[axis])
        return place, self._turn[place, 1] < 0

    def turned(self, values: np.ndarray) -> np.ndarray:
        """(X, Y, Z, …) stored values with their axes turned to RAS+; single slices may be thinner than the grid."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(values, self._turn)

    def picture(self, turned: np.ndarray, axis: str, index: int) -> np.ndarray:
        """(H, W, …) slice of turned values as radiology shows it."""
        return np.moveaxis(turned, AXES[axis], 0)[index].swapaxes(0, 1)[::-1, ::-1]

    def pixel(self, axis: str) -> tuple[float, float]:
        """Height and width of a pixel of a slice, in the unit of the affine."""
        across, up = (float(size) for i, size in enumerate(self.sizes) if i != AXES[axis])
        return up, across

    def size(self, axis: str) -> tuple[int, ...]:
        """Height and width of a slice."""
        return tuple(n for i, n in enumerate(self.shape) if i != AXES[axis])[::-1]

    def stored(self, planes: Mapping[int, np.ndarray], axis: str, fill: float = 0.0) -> np.ndarray:
        """(X, Y, Z) float32 on the stored grid from slices as `picture` gives them; ``fill`` where there is none."""
        from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

        volume = np.full(self.shape, fill, np.float32)
        along = np.moveaxis(volume, AXES[axis], 0)
        for index, plane in planes.items():
            along[index] = plane[::-1, ::-1].T
        back = ornt_transform(axcodes2ornt("RAS"), self._turn)
        return np.ascontiguousarray(apply_orientation(volume, back))

    def acquired(self) -> str:
        """Name of the axis across which slices were acquired, where shape or voxels show one, else axial."""
        names = ("axial", "coronal", "sagittal")
        thin = [name for name in names if self.shape[AXES[name]] == 1]
        if thin:
            return thin[0]
        second, coarsest = np.sort(self.sizes)[1:]
        return next(n for n in names if self.sizes[AXES[n]] == coarsest) if coarsest >= COARSE * second else "axial"


def ordered_axes(shape: tuple[int, ...], first: str) -> dict[str, int]:
    """Number of slices along every axis of a turned shape, ``first`` first."""
    order = sorted(("axial", "coronal", "sagittal"), key=first.__ne__)
    return {name: shape[AXES[name]] for name in order}


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
