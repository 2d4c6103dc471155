"""One reader for files of every format, PIL, NumPy and torch: the same pixels give the same tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from oneshot_medad.errors import BlankImageError, ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images.arrays import is_tensor
from oneshot_medad.images.expand import check_position, source_of
from oneshot_medad.images.expand import expand as expand
from oneshot_medad.images.expand import name_of as name_of
from oneshot_medad.images.files import File, Slice
from oneshot_medad.images.open import open_stack, reading
from oneshot_medad.images.raster import check_alone, from_pil
from oneshot_medad.images.stack import Pixels, Window, see_through

if TYPE_CHECKING:
    import torch

BLANK = "blank slice"
"""Reason given for a slice of a volume that holds nothing to score."""
_RANGES = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


@dataclass(frozen=True)
class MedicalImage:
    """One image as float32 in [0, 1].

    Attributes
    ----------
    pixels
        (3, H, W); grey images repeat their one channel. What is transparent lies over black.
    name
        The file's path, or the position in the input.
    spacing
        Height and width of a pixel in millimetres; None if the source does not say.
    aspect
        Height of a pixel divided by its width; 1 if the source does not say.
    position
        Of a slice along the axis of its volume: 0 for the first (inferior, posterior or left), 1 for the last; None for
        an image that is no slice of a volume, or the only one.
    """

    pixels: torch.Tensor
    name: str
    spacing: tuple[float, float] | None = None
    aspect: float = 1.0
    position: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image's own grid."""
        return self.pixels.shape[-2], self.pixels.shape[-1]


class Values(NamedTuple):
    """What `MedicalImage` holds, as NumPy has it: (H, W) or (H, W, 3) float32 in [0, 1]."""

    values: np.ndarray
    name: str
    spacing: tuple[float, float] | None
    aspect: float
    position: float | None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image's own grid."""
        return self.values.shape[0], self.values.shape[1]


def read_image(source: Any, name: str = "image", intensity_range: tuple[float, float] | None = None) -> MedicalImage:
    """Read one entry of `expand`.

    Parameters
    ----------
    source
        A path, `Slice`, PIL image, array or tensor; a `MedicalImage` is given back.
    name
        What to call it when it has no path.
    intensity_range
        (low, high) pixel values that become 0 and 1. None lets the type decide: 8-bit, 16-bit and boolean pixels span
        their whole range, floats must lie in [0, 1] already; a DICOM file takes its first VOI LUT or window, or else
        the range of its stored bits; a NIfTI volume takes its cal_min and cal_max. The largest value found never
        decides. In DICOM and NIfTI files, values outside are cut to the range, as a viewer does; everywhere else they
        are an error.

    Raises
    ------
    ImageFileError
        A missing, truncated or undecodable file, or one that holds several images.
    ImageTypeError
        A pixel type whose range is unknown without ``intensity_range``.
    ImageError
        NaN or infinite pixels, values outside the range, an empty image.
    BlankImageError
        The same value everywhere.
    ExtraError
        A DICOM file without pydicom.

    Examples
    --------
    >>> import numpy as np
    >>> read_image(np.eye(4, dtype="uint8") * 255).pixels.shape
    torch.Size([3, 4, 4])
    """
    import torch

    from oneshot_medad._runtime import settle

    settle()
    if isinstance(source, MedicalImage):
        return source
    read = read_values(source, name, intensity_range)
    pixels = torch.from_numpy(read.values)
    colours = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    return MedicalImage(colours, read.name, read.spacing, read.aspect, read.position)


def read_values(source: Any, name: str = "image", intensity_range: tuple[float, float] | None = None) -> Values:
    """`read_image` without torch: the same pixels and the same errors."""
    place, position = source_of(source), None
    if place is not None:
        name = str(place)
        found, position = _read_place(place, intensity_range)
    elif isinstance(source, PILImage.Image):
        with reading(name):
            check_alone(source)
            found = from_pil(source, intensity_range)
    elif is_tensor(source):
        with reading(name):
            found = _of_array(_array_of(source), intensity_range)
    else:
        mask = getattr(source, "mask", None)
        if mask is not None and np.any(mask):
            raise ImageError(f"Got {name} with masked pixels; wanted all of them. Fill them first: image.filled(0).")
        found = _of_array(np.asarray(source), intensity_range)
    return Values(_checked(found, name), name, found.spacing, found.aspect, position)


def _read_place(place: File | Slice, window: Window) -> tuple[Pixels, float | None]:
    """The pixels, and the relative position of a slice of a volume."""
    stack = open_stack(place.path if isinstance(place, Slice) else place)
    axis, index = (place.axis, place.index) if isinstance(place, Slice) else (next(iter(stack.axes)), 0)
    with reading(place):
        count = check_position(stack.axes, axis, index)
        if count > 1 and not isinstance(place, Slice):
            raise ImageFileError(f"Got a file that holds {count} images; wanted one. Choose with oneshot_medad.slices.")
        position = None if axis == "frame" or count < 2 else index / (count - 1)
        return stack.read(axis, index, window), position


def _array_of(tensor: torch.Tensor) -> np.ndarray:
    """(H, W) or (H, W, C) of a tensor (H, W) or (C, H, W)."""
    if hasattr(tensor, "get_mask"):
        raise ImageError("Got a masked tensor; wanted a plain one. Fill it first: tensor.to_tensor(0).")
    tensor = tensor.detach().cpu()
    array = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _of_array(array: np.ndarray, window: Window) -> Pixels:
    values, opacity = see_through(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    return Pixels(values, window, opacity)


def _checked(found: Pixels, name: str) -> np.ndarray:
    array = found.values
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or array.size == 0:
        raise ImageError(
            f"Got {name} of shape {array.shape}; wanted (H, W), (H, W, 3) or (H, W, 4) pixels, at least one."
        )
    if array.dtype.kind not in "buif":
        raise ImageTypeError(f"Got {name} with pixels of type {array.dtype}; wanted real numbers.")
    pixels = _scaled(array, name, found.window or _range(array, name))
    if found.inverted:
        pixels = 1 - pixels
    if found.opacity is not None:
        pixels = pixels * _scaled(found.opacity, f"{name}'s opacity", (0.0, 1.0))
    if pixels.max() - pixels.min() < 1e-6:
        what = f"{array.flat[0]:g} everywhere" if found.opacity is None else "once it lies over black"
        raise BlankImageError(f"Got {name}, which is constant ({what}); wanted an image with content.")
    return np.ascontiguousarray(pixels).clip(0, 1)


def _scaled(array: np.ndarray, name: str, window: tuple[float, float]) -> np.ndarray:
    """Float32 in [0, 1]."""
    low, high = window
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ImageError(f"Got {name} with NaN or infinite pixels; wanted finite ones. Fill or mask them first.")
    exact = np.result_type(array.dtype, np.float32)  # 32 and 64 bits are shifted before they lose any
    pixels = ((array.astype(exact) - exact.type(low)) / exact.type(high - low)).astype(np.float32)
    if pixels.min() < -1e-4 or pixels.max() > 1 + 1e-4:
        raise ImageError(
            f"Got {name} with values from {array.min():g} to {array.max():g}; wanted {low:g} to {high:g}. "
            "Pass intensity_range=(low, high) that covers them."
        )
    return pixels


def _range(array: np.ndarray, name: str) -> tuple[float, float]:
    if array.dtype.kind == "f":
        return 0.0, 1.0
    if array.dtype.name not in _RANGES:
        raise ImageTypeError(
            f"Got {name} with pixels of type {array.dtype}, whose range is unknown; wanted uint8, uint16, bool or "
            "floats in [0, 1]. Pass intensity_range=(low, high)."
        )
    return _RANGES[array.dtype.name]
