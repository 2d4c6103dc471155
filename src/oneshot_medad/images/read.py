"""One reader for files, folders, PIL, NumPy and torch: the same pixels give the same tensor."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps

from oneshot_medad.errors import ImageError, ImageFileError, ImageTypeError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_RANGES = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
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


@dataclass(frozen=True)
class MedicalImage:
    """One image as float32 in [0, 1].

    Attributes
    ----------
    pixels
        (3, H, W); grey images repeat their one channel.
    name
        The file's path, or the position in the input.
    """

    pixels: torch.Tensor
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image's own grid."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


def expand(images: Any) -> list[Any]:
    """Turn every accepted input into a list with one entry per image; files are not opened yet.

    Parameters
    ----------
    images
        A path, folder or glob pattern; a PIL image; a NumPy array (H, W), (H, W, 3), (N, H, W) or (N, H, W, 3); a
        torch tensor (H, W), (C, H, W) or (N, C, H, W) with C of 1 or 3; or an iterable of these.

    Raises
    ------
    ImageError
        The input holds no image.
    ImageFileError
        A folder or pattern that matches no image file.
    ImageTypeError
        An object that is none of the above.
    """
    found = list(_expand(images))
    if not found:
        raise ImageError(f"Got no images ({type(images).__name__} of length 0); wanted at least one.")
    return found


def _expand(images: Any) -> Iterator[Any]:
    if isinstance(images, (str, Path)):
        yield from _expand_path(str(images))
    elif isinstance(images, PILImage.Image):
        yield images
    elif isinstance(images, np.ndarray):
        colour = images.ndim >= 3 and images.shape[-1] in (1, 3)
        if images.ndim >= 3 and images.shape[-1] in (2, 4):
            raise ImageError(f"Got an array of shape {images.shape}, wanted 1 or 3 channels. Drop the alpha channel.")
        if images.ndim == 2 or (images.ndim == 3 and colour):
            yield images
        elif images.ndim == 3 or (images.ndim == 4 and colour):
            yield from images
        else:
            raise ImageError(
                f"Got an array of shape {images.shape}; wanted (H, W), (H, W, 3), (N, H, W) or (N, H, W, 3)."
            )
    elif isinstance(images, torch.Tensor):
        shape = tuple(images.shape)
        if images.ndim == 2 or (images.ndim == 3 and shape[0] in (1, 3)):
            yield images
        elif images.ndim == 4 and shape[1] in (1, 3):
            yield from images
        else:
            raise ImageError(
                f"Got a tensor of shape {shape}; wanted (H, W), (C, H, W) or (N, C, H, W) with C of 1 or 3."
            )
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, dict)):
        for image in images:
            yield from _expand(image)
    else:
        raise ImageTypeError(
            f"Got {type(images).__name__}; wanted a path, a PIL image, a NumPy array, a torch tensor or a list of them."
        )


def _expand_path(path: str) -> Iterator[Path]:
    if Path(path).is_dir():
        files = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not files:
            raise ImageFileError(f"Got folder {path!r} without image files; wanted some of {', '.join(SUFFIXES)}.")
        yield from files
    elif not Path(path).exists() and glob.has_magic(path):
        matches = sorted(glob.glob(path))
        if not matches:
            raise ImageFileError(f"Got pattern {path!r}, which matches no file.")
        yield from map(Path, matches)
    else:
        yield Path(path)


def name_of(source: Any, position: int) -> str:
    """What to call an entry of `expand`: its path, or its position."""
    return str(source) if isinstance(source, (str, Path)) else f"image {position}"


def read_image(source: Any, name: str = "image", intensity_range: tuple[float, float] | None = None) -> MedicalImage:
    """Read one entry of `expand`.

    Parameters
    ----------
    source
        A path, PIL image, array or tensor.
    name
        What to call it when it has no path.
    intensity_range
        (low, high) pixel values that become 0 and 1. None lets the type decide: 8-bit, 16-bit and boolean pixels span
        their whole range, floats must lie in [0, 1] already. The largest value found never decides.

    Raises
    ------
    ImageFileError
        A missing, truncated or undecodable file.
    ImageTypeError
        A pixel type whose range is unknown without ``intensity_range``.
    ImageError
        NaN or infinite pixels, values outside the range, a constant or an empty image.

    Examples
    --------
    >>> import numpy as np
    >>> read_image(np.eye(4, dtype="uint8") * 255).pixels.shape
    torch.Size([3, 4, 4])
    """
    if isinstance(source, (str, Path)):
        array = _read_file(Path(source))
        name = str(source)
    elif isinstance(source, PILImage.Image):
        array = _from_pil(source)
    elif isinstance(source, torch.Tensor):
        array = (
            source.detach().cpu().float().numpy() if source.dtype == torch.bfloat16 else source.detach().cpu().numpy()
        )
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array = np.asarray(source)
    return MedicalImage(_to_tensor(array, name, intensity_range), name)


def _read_file(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ImageFileError(f"Got {str(path)!r}, which is no file; wanted an image ({', '.join(SUFFIXES)}).")
    try:
        with PILImage.open(path) as image:
            return _from_pil(image)
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        raise ImageFileError(f"Cannot read {str(path)!r} as an image: {error}. Check or replace the file.") from error


def _from_pil(image: PILImage.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in _MODES:
        image = image.convert(_MODES[image.mode])
    array = np.asarray(image)
    if array.dtype == np.int32 and image.mode == "I" and array.size and array.min() >= 0 and array.max() <= 65535:
        return array.astype(np.uint16)  # Pillow opens 16-bit PNGs in its 32-bit mode
    return array


def _to_tensor(array: np.ndarray, name: str, intensity_range: tuple[float, float] | None) -> torch.Tensor:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or array.size == 0:
        raise ImageError(f"Got {name} of shape {array.shape}; wanted (H, W) or (H, W, 3) pixels, at least one.")
    if array.dtype.kind not in "buif":
        raise ImageTypeError(f"Got {name} with pixels of type {array.dtype}; wanted real numbers.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageError(f"Got {name} with NaN or infinite pixels; wanted finite ones. Fill or mask them first.")
    low, high = _range(array, name, intensity_range)
    pixels = (array.astype(np.float32) - low) / (high - low)
    if pixels.min() < -1e-4 or pixels.max() > 1 + 1e-4:
        raise ImageError(
            f"Got {name} with values from {array.min():g} to {array.max():g}; wanted {low:g} to {high:g}. "
            "Pass intensity_range=(low, high) that covers them."
        )
    if pixels.max() - pixels.min() < 1e-6:
        raise ImageError(f"Got {name}, which is constant ({array.flat[0]:g} everywhere); wanted an image with content.")
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).clamp(0, 1)
    return tensor.expand(3, -1, -1) if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _range(array: np.ndarray, name: str, intensity_range: tuple[float, float] | None) -> tuple[float, float]:
    if intensity_range is not None:
        return float(intensity_range[0]), float(intensity_range[1])
    if array.dtype.kind == "f":
        return 0.0, 1.0
    if array.dtype.name not in _RANGES:
        raise ImageTypeError(
            f"Got {name} with pixels of type {array.dtype}, whose range is unknown; wanted uint8, uint16, bool or "
            "floats in [0, 1]. Pass intensity_range=(low, high)."
        )
    return _RANGES[array.dtype.name]
