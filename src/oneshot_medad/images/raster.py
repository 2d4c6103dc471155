"""PNG, JPEG, BMP, WebP and GIF files, and PIL images."""

from __future__ import annotations

from io import BytesIO
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from oneshot_medad.errors import ImageError, ImageFileError
from oneshot_medad.images.codestream import codestream
from oneshot_medad.images.files import File, content
from oneshot_medad.images.formats import READ
from oneshot_medad.images.stack import Pixels, Window, check_size, see_through, upright

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
_MODES = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "RGBX": "RGB"}
_DEEP_COLOUR = ("RGB;16B", "RGBA;16B", "LA;16B")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339  # of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_PROCESSES = (0, 1, 2, 9, 10)
"""Of JPEG: baseline, extended, progressive, and the latter two with arithmetic coding."""


class Raster:
    """A picture; the pictures of an animation are its frames."""

    def __init__(self, file: File) -> None:
        self._data = content(file)
        self._image = open_picture(self._data, FORMATS)
        check_size(self._image.height, self._image.width)
        # what follows in a multi-picture JPEG are previews and depth maps of the first
        count = 1 if self._image.format == "MPO" else getattr(self._image, "n_frames", 1)
        self.axes = {"frame": count}
        self._deep = count == 1 and _is_deep_colour(self._image)
        self._lock = Lock()

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Frame ``index``."""
        with self._lock:  # one place in the file, however many threads
            if index != self._image.tell():
                self._image.seek(index)
            if self._deep:
                return self._deep_colour(window)
            return from_pil(self._image, window)

    def _deep_colour(self, window: Window) -> Pixels:
        from imagecodecs import png_decode

        values = png_decode(self._data)
        if values.shape[-1] == 2:  # grey and opacity
            values = values[..., [0, 0, 0, 1]]
        colours, opacity = see_through(upright(values, self._image.getexif().get(_ORIENTATION, 1)))
        return Pixels(colours, window, opacity)


def _is_deep_colour(image: Any) -> bool:
    """Whether a file, of which no pixels were read, is a PNG of 16 bits a channel, of which Pillow would keep eight."""
    plain = image.format == "PNG" and image.tile and "transparency" not in image.info
    return bool(plain) and str(image.tile[0][3]) in _DEEP_COLOUR


def open_picture(data: bytes, formats: tuple[str, ...]) -> PILImage.Image:
    """A file that Pillow reads, of one of ``formats``."""
    found = codestream(data)
    if found is not None and (found.process not in _PROCESSES or found.bits != 8):
        what = "JPEG-LS or JPEG 2000" if found.process is None else f"JPEG of process {found.process}"
        raise ImageFileError(
            f"Got {what} pixels of {found.bits} bits a sample; wanted baseline or progressive JPEG of 8 bits. Save the "
            "picture as PNG or TIFF."
        )
    try:
        return PILImage.open(BytesIO(data), formats=formats)
    except PILImage.DecompressionBombError as error:
        raise ImageFileError(f"{error} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(
            f"Got content that is no image of a known format; wanted {READ}. Check the file."
        ) from error


def from_pil(image: PILImage.Image, window: Window = None) -> Pixels:
    """A PIL image, upright, with all its bits, in ``window``; or in its own range, if its type does not say it."""
    deep_png = image.format == "PNG" and image.mode == "I"
    tags = image.tag_v2 if image.format == "TIFF" and hasattr(image, "tag_v2") else {}
    hidden = image.info.get("transparency")
    image = ImageOps.exif_transpose(image)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    deep = image.mode in ("F", "I") or image.mode.startswith("I;16")
    if image.mode in ("LA", "PA") or (hidden is not None and not deep):
        image = image.convert("RGBA")
    if image.mode in _MODES:
        image = image.convert(_MODES[image.mode])
    array = np.array(image)
    if deep_png:  # Pillow before 11.3 opens 16-bit PNGs in its 32-bit mode
        array = array.astype(np.uint16)
    if deep and hidden is not None:
        array[array == hidden] = 0  # over black, as everything transparent
    if array.dtype == np.uint8 and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        array = array.view(np.int8)
    bits = tags.get(_BITS, (16,))[0]
    # 12 bits, which Pillow unpacks but does not spread over 16
    stated = (0.0, 2.0**bits - 1) if array.dtype == np.uint16 and bits < 16 else None
    colours, opacity = see_through(array)
    return Pixels(colours, window or stated, opacity, inverted=deep and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def check_alone(image: PILImage.Image) -> None:
    """Refuse an opened file of several pictures, of which a PIL image shows but one."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":
        raise ImageError(
            f"Got a PIL image of a file that holds {count} pictures; wanted one. Pass the file, or image.copy() for "
            "the one that it shows."
        )
