"""PNG, JPEG, TIFF, BMP, WebP and GIF."""

from __future__ import annotations

import warnings
from io import BytesIO
from threading import Lock

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from oneshot_medad.errors import ImageFileError
from oneshot_medad.images.files import File, content
from oneshot_medad.images.stack import Pixels, Window

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_MODES = {
    "1": "L",
    "P": "RGB",
    "PA": "RGB",
    "RGBA": "RGB",
    "LA": "L",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
    "RGBX": "RGB",
}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_BITS, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2  # of TIFF


class Raster:
    """A picture; the pages of a TIFF and the pictures of an animation are its frames."""

    def __init__(self, file: File) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PILImage.DecompressionBombWarning)  # twice the size is an error anyway
            try:
                self._image = PILImage.open(BytesIO(content(file)), formats=FORMATS)
            except (PILImage.DecompressionBombWarning, PILImage.DecompressionBombError) as error:
                raise ImageFileError(f"{error} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS.") from error
            except UnidentifiedImageError as error:
                raise ImageFileError(
                    f"Got content that is no image of a known format; wanted {', '.join(FORMATS)}. Check the file."
                ) from error
        # what follows in a multi-picture JPEG are previews and depth maps of the first
        count = 1 if self._image.format == "MPO" else getattr(self._image, "n_frames", 1)
        self.axes = {"frame": count}
        self._lock = Lock()

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Frame ``index``."""
        with self._lock:  # one place in the file, however many threads
            if index != self._image.tell():
                self._image.seek(index)
            array, stated = from_pil(self._image)
            return array, window or stated, None


def from_pil(image: PILImage.Image) -> tuple[np.ndarray, Window]:
    """(H, W) or (H, W, 3) of a PIL image, upright, with all its bits; and its range, if its type does not say it."""
    deep_png = image.format == "PNG" and image.mode == "I"
    tags = image.tag_v2 if image.format == "TIFF" and hasattr(image, "tag_v2") else {}
    image = ImageOps.exif_transpose(image)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode in _MODES:
        image = image.convert(_MODES[image.mode])
    array = np.array(image)
    if deep_png:  # Pillow before 11.3 opens 16-bit PNGs in its 32-bit mode
        array = array.astype(np.uint16)
    if array.dtype == np.uint8 and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        array = array.view(np.int8)
    bits = tags.get(_BITS, (16,))[0]
    if array.dtype == np.uint16 and bits < 16:  # 12 bits, which Pillow unpacks but does not spread over 16
        return array, (0.0, 2.0**bits - 1)
    return array, None
