"""A DICOM series as a volume: its slices as `Grid` shows them, read from the files that hold them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from oneshot_medad.errors import ImageError, ImageTypeError
from oneshot_medad.images.dicom import Dicom
from oneshot_medad.images.files import File, Series
from oneshot_medad.images.grid import Grid, ordered_axes
from oneshot_medad.images.stack import Pixels, Window, check_size


class SeriesStack:
    """The slices of a `Series`: those that were acquired come from their file, others from all of them."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.grid = Grid(np.array(series.affine), (*series.size, len(series.planes)))
        self.axes = ordered_axes(self.grid.shape, series.axis)
        self.missing = frozenset(index for index, plane in enumerate(series.planes) if plane is None)
        self._open: tuple[File, Dicom] | None = None
        self._turned: tuple[Window, np.ndarray] | None = None

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Slice ``index`` along ``axis`` in [0, 1], each of its images with its own window unless one is given."""
        check_size(*self.grid.size(axis))
        if axis == self.series.axis:
            values = self.grid.picture(self.grid.turned(self._plane(index, window).swapaxes(0, 1)[:, :, None]), axis, 0)
        else:
            values = self.grid.picture(self._volume(window), axis, index)
        up, across = self.grid.pixel(axis)
        return Pixels(values, (0.0, 1.0), None, (up, across), up / across)

    def _plane(self, index: int, window: Window) -> np.ndarray:
        place = self.series.planes[index]
        if place is None:
            raise ImageError(f"Got {self.series.axis} {index}, whose image is missing from the series; wanted another.")
        file, frame = place
        if self._open is None or self._open[0] != file:
            self._open = file, Dicom(file)
        values = self._open[1].read("frame", frame, window).values
        if values.shape[1::-1] != self.series.size:
            raise ImageError(f"Got {values.shape[:2]} pixels; wanted {self.series.size[::-1]}, as when it was found.")
        return values

    def _volume(self, window: Window) -> np.ndarray:
        """(X, Y, Z, …) float32 in [0, 1], turned."""
        if self._turned is None or self._turned[0] != window:
            if self.missing:
                where = f"{self.series.axis} {', '.join(map(str, sorted(self.missing)))}"
                raise ImageError(
                    f"Got a series without its images at {where}; wanted all of them for slices along other axes. "
                    f"Take {self.series.axis} ones."
                )
            if window is None and len(self._windows) > 1:
                raise ImageTypeError(
                    "Got a series whose images state different windows; wanted one for slices across them. Pass "
                    "intensity_range=(low, high)."
                )
            planes = [self._plane(index, window) for index in range(len(self.series.planes))]
            self._turned = window, self.grid.turned(np.stack(planes, 2).swapaxes(0, 1))
        return self._turned[1]

    @cached_property
    def _windows(self) -> set[str]:
        """The windows that its images state."""
        from oneshot_medad.images.dicom import read_dataset
        from oneshot_medad.images.dicom_values import numbers, places

        found = set()
        header: tuple[File, Any] | None = None
        for file, frame in filter(None, self.series.planes):
            if header is None or header[0] != file:
                header = file, read_dataset(file, stop_before_pixels=True)
            item = next(places(header[1], frame, "FrameVOILUTSequence"))
            found.add(str([numbers(item, name) for name in ("WindowCenter", "WindowWidth")]))
        return found
