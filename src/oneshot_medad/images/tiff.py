"""TIFF files: every picture that they hold, and no reduced copy of one."""

from __future__ import annotations

from bisect import bisect_right
from io import BytesIO
from itertools import accumulate
from math import prod
from struct import unpack
from threading import Lock
from typing import Any

import numpy as np

from oneshot_medad.errors import ImageFileError, OneShotError
from oneshot_medad.images.files import File, content
from oneshot_medad.images.raster import from_pil, open_picture
from oneshot_medad.images.stack import Pixels, Window, check_size, see_through, upright

REDUCED, MASK = 1, 4
"""Bits of what a page says of itself."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, TRANSPARENCY, YCBCR = 0, 1, 2, 3, 4, 6
JPEG = (7, 33007, 34892)
"""Compressions whose YCbCr comes back as RGB."""
OPACITY = 2
"""What a sample beside the colours must mean to count: 0 is unspecified, 1 is opacity by which they are multiplied."""
SLIDES = ("svs", "ndpi", "scn", "bif", "philips", "qpi", "avs")
"""Kinds of whole-slide files, whose labels and overviews are known by their place alone."""
_PHOTOMETRIC, _ORIENTATION = 262, 274


class Tiff:
    """The pictures of a TIFF file are its frames; thumbnails, masks and the levels of a pyramid do not count.

    A page may hold several pictures, as ImageJ stores stacks above 4 GB.
    """

    def __init__(self, file: File) -> None:
        from tifffile import TiffFile

        self._data = content(file)
        self._file = TiffFile(BytesIO(self._data))
        self._lock = Lock()
        chain = _chain(self._file)
        self._pages = _pictures(self._file, chain)
        self._following = _following(self._file, self._pages) if len(chain) == 1 else 1
        self._ends = list(accumulate(max(self._following, page.shaped[1]) for page in self._pages))
        if not self._pages:
            raise ImageFileError("Got a TIFF file without a picture; wanted at least one.")
        self.axes = {"frame": self._ends[-1]}
        self._deep: tuple[Any, np.ndarray] | None = None

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Picture ``index``."""
        place = bisect_right(self._ends, index)
        page, plane = self._pages[place], index - (self._ends[place - 1] if place else 0)
        check_size(page.imagelength, page.imagewidth)
        if _PHOTOMETRIC not in page.tags:
            raise ImageFileError(
                "Got a TIFF file that does not say whether black or white is zero; wanted its photometric tag. Save it "
                "again with one."
            )
        self._check_whole(page)
        with self._lock:
            try:
                return _shown(page, self._values(page, plane), window)
            except OneShotError:
                raise
            except Exception as error:
                return self._by_pillow(page, window, error)

    def _values(self, page: Any, plane: int) -> np.ndarray:
        """(H, W, S) as stored."""
        if page.samplesperpixel > 4 or (page.photometric == YCBCR and page.compression not in JPEG):
            raise NotImplementedError("colours of this kind")
        if self._following > 1:  # one after the other, of which the page knows the first
            dtype = np.dtype(self._file.byteorder + page.dtype.char)
            offset, size = page.dataoffsets[0] + plane * page.nbytes, page.nbytes // dtype.itemsize
            values = np.frombuffer(self._data, dtype, size, offset).astype(page.dtype).reshape(page.shaped)[:, 0]
        else:
            values = self._decoded(page)[:, plane]
        return np.moveaxis(values[..., 0], 0, -1) if len(values) > 1 else values[0]  # samples apart or together

    def _decoded(self, page: Any) -> np.ndarray:
        """(samples, depth, H, W, samples) of a page; a deep one stays for its next plane."""
        if self._deep is None or self._deep[0] is not page:
            values = page.asarray(squeeze=False, maxworkers=1)
            if page.shaped[1] == 1:
                return values
            self._deep = page, values
        return self._deep[1]

    def _check_whole(self, page: Any) -> None:
        """Refuse a page whose pixels are not all in the file, which a decoder would fill up with black."""
        offsets, counts = page.dataoffsets, page.databytecounts
        together = bool(offsets) and page.is_contiguous
        if not together and (min(len(offsets), len(counts)) < prod(page.chunked) or 0 in offsets or 0 in counts):
            raise ImageFileError("Got a TIFF file that lacks some of its strips or tiles; wanted all. Export it again.")
        if together:
            end = offsets[0] + page.nbytes * self._following
        else:
            end = max(offset + count for offset, count in zip(offsets, counts, strict=False))
        if end > len(self._data):
            raise ImageFileError(
                f"Got a TIFF file of {len(self._data)} bytes whose pixels reach to byte {end}; wanted all of it. "
                "Copy or export it again."
            )

    def _by_pillow(self, page: Any, window: Window, error: Exception) -> Pixels:
        """What libtiff reads and tifffile does not, such as fax compression and 8-bit CIELAB."""
        alone = not page.is_subifd and self._following == page.shaped[1] == 1
        if alone and page.bitspersample in (1, 2, 4, 8):
            try:
                image = open_picture(self._data, ("TIFF",))
                image.seek(page.index)
                return from_pil(image, window)
            except Exception as again:
                error = error if isinstance(again, OneShotError) else again
        raise ImageFileError(
            f"Got a TIFF of {_name(page.photometric)}, {page.samplesperpixel} x {page.bitspersample} bits "
            f"({_name(page.sampleformat)}), compression {_name(page.compression)}, which cannot be read ({error}); "
            "wanted grey, RGB or palette colours. Save it as one of these."
        ) from error


def _pictures(file: Any, tops: list[Any]) -> list[Any]:
    """The pages that are pictures, in the order of the file, those below a page behind it."""
    pages: list[tuple[Any, Any]] = []
    for top in tops:  # what lies below may be no picture at all, such as EXIF
        pages += [(top, None), *((page, top) for page in top.pages or () if _PHOTOMETRIC in page.tags)]
    shown = [
        (page, parent)
        for page, parent in pages
        if 0 not in page.shaped and not page.subfiletype & MASK and page.photometric != TRANSPARENCY
    ]
    whole = [
        page
        for page, parent in shown
        if not page.subfiletype & REDUCED and (parent is None or page.imagewidth >= parent.imagewidth)
    ]
    return _without_levels(file, whole or [page for page, _ in shown])


def _chain(file: Any) -> list[Any]:
    """The pages that follow each other, each once, though the last one may lead back."""
    known: dict[int, Any] = {}
    for page in file.pages:
        if page.offset in known:
            return list(known.values())
        known[page.offset] = page.aspage()
    if not known:
        raise ImageFileError("Got a TIFF file without a page; wanted at least one.")
    handle, layout, last = file.filehandle, file.tiff, list(known)[-1]
    handle.seek(last)
    count = unpack(layout.tagnoformat, handle.read(layout.tagnosize))[0]
    handle.seek(last + layout.tagnosize + count * layout.tagsize)
    following = int.from_bytes(handle.read(layout.offsetsize), "big" if file.byteorder == ">" else "little")
    if following:
        raise ImageFileError(
            f"Got a TIFF file whose page {len(known) + 1} lies at byte {following}, where there is none; wanted all "
            "pages. Copy or export it again."
        )
    return list(known.values())


def _without_levels(file: Any, pages: list[Any]) -> list[Any]:
    """Without the levels of a pyramid, labels and overviews that do not say what they are."""
    slide = any(getattr(file, f"is_{name}") for name in SLIDES)
    if not slide and sum(page.is_tiled for page in pages) < 2:
        return pages
    copies = {page.offset for series in file.series for level in series.levels[1:] for page in level.pages if page}
    if slide:
        copies |= {p.offset for series in file.series if series.name != "Baseline" for p in series.pages if p}
    return [page for page in pages if page.offset not in copies or not (slide or page.is_tiled)]


def _following(file: Any, pages: list[Any]) -> int:
    """How many pictures follow each other behind the only page of a file."""
    if len(pages) != 1 or not (file.is_imagej or file.is_shaped or file.is_stk):
        return 1
    found, page = file.series[0], pages[0]
    count = prod(found.shape) // prod(page.shape) if found.is_truncated else 1
    said = prod((file.imagej_metadata or {}).get(name, 1) for name in ("frames", "slices", "channels"))
    if (count > 1 and not page.is_final) or (found.kind == "generic" and file.is_imagej and said > 1):
        raise ImageFileError(
            f"Got a stack of {max(count, said)} slices in one page, of which not all can be found; wanted whole "
            "pictures. Save it again with one page a slice."
        )
    return count


def _shown(page: Any, values: np.ndarray, window: Window) -> Pixels:
    """(H, W, S) values with the meaning that the page gives them, upright."""
    values = upright(values, page.tags.valueof(_ORIENTATION, default=1))
    colours = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, PALETTE: 1, RGB: 3, YCBCR: 3}.get(page.photometric)
    extra = values.shape[-1] - colours if colours else None
    opaque = extra == 0 or page.extrasamples[:1] != (OPACITY,)
    if extra not in (0, 1) or (page.photometric == PALETTE and not opaque):
        raise NotImplementedError("colours of this kind")
    stated = None
    if page.photometric == PALETTE:
        table = page.colormap
        values = table[:, values[..., 0]].transpose(1, 2, 0)
        stated = (0.0, 255.0 if table.max() < 256 else 65535.0)  # some write bytes into the table
    elif values.dtype.kind == "u" and page.bitspersample < min(16, 8 * values.dtype.itemsize):
        stated = (0.0, 2.0**page.bitspersample - 1)
    opacity = None
    if not opaque:
        values = np.concatenate([np.broadcast_to(values[..., :colours], (*values.shape[:2], 3)), values[..., -1:]], -1)
        values, opacity = see_through(values, stated[1] if stated else None)
    elif page.photometric != PALETTE:
        values = values[..., 0] if colours == 1 else values[..., :3]
    return Pixels(values, window or stated, opacity, inverted=page.photometric == WHITE_IS_ZERO)


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))
