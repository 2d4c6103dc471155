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
}


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
            return from_pil(self._image), window, None


def from_pil(image: PILImage.Image) -> np.ndarray:
    """(H, W) or (H, W, 3) of a PIL image, upright, with all its bits."""
    deep_png = image.format == "PNG" and image.mode == "I"
    image = ImageOps.exif_transpose(image)
    if image.mode in _MODES:
        image = image.convert(_MODES[image.mode])
    array = np.array(image)
    return array.astype(np.uint16) if deep_png else array  # Pillow before 11.3 opens 16-bit PNGs in its 32-bit mode
