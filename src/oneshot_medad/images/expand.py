"""From paths, folders, archives, volumes, arrays and tensors to one entry per image."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from oneshot_medad.errors import ImageError, ImageFileError, ImageTypeError
from oneshot_medad.images.files import SUFFIXES, File, Member, Slice, images_in
from oneshot_medad.images.open import open_stack, reading

SINGLE = (".png", ".jpg", ".jpeg", ".bmp")
"""Files that are not opened to count what they hold."""
MAX_SLICES = 100_000
_ADDRESS = re.compile(r"(.+)\[(axial|coronal|sagittal|frame) (\d+)\]", re.DOTALL)


def expand(images: Any) -> list[Any]:
    """Turn every accepted input into a list with one entry per image; no pixels are read yet.

    Parameters
    ----------
    images
        A path of an image, volume, zip archive or folder, or a glob pattern; a `Slice`; a PIL image; a NumPy array
        (H, W), (H, W, 3), (N, H, W) or (N, H, W, 3); a torch tensor (H, W), (C, H, W) or (N, C, H, W) with C of 1 or 3;
        or an iterable of these.

    Returns
    -------
    Volumes, multi-frame DICOM files, TIFF files of several pages and animations give one `Slice` for each of theirs; a
    file that cannot be opened stays as it is, so that reading it says why.

    Raises
    ------
    ImageError
        The input holds no image.
    ImageFileError
        A folder, archive or pattern that matches no image file.
    ImageTypeError
        An object that is none of the above.
    ExtraError
        DICOM files without pydicom.
    """
    found = list(_expand(images))
    if not found:
        raise ImageError(f"Got no images ({type(images).__name__} of length 0); wanted at least one.")
    return found


def slices(path: str | File, axis: str | None = None, indices: Iterable[int] | None = None) -> list[Slice]:
    """Choose slices of a volume, frames of a multi-frame DICOM file, or pages of a TIFF file.

    Parameters
    ----------
    path
        A NIfTI volume or another file that holds several images, also inside an archive.
    axis
        ``"axial"``, ``"coronal"`` or ``"sagittal"`` of a volume, ``"frame"`` of other files. None takes axial or frame.
    indices
        Positions along the axis from 0, in volumes counted from inferior, posterior or left; None takes all.

    Raises
    ------
    ImageError
        An axis or position that the file does not have.
    ImageFileError
        A file that cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> import nibabel
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6)), np.eye(4)), f"{folder}/scan.nii")
    ...     [str(chosen).rsplit("/", 1)[-1] for chosen in slices(f"{folder}/scan.nii", indices=range(2, 4))]
    ['scan.nii[axial 2]', 'scan.nii[axial 3]']
    """
    return _slices(path if isinstance(path, Member) else Path(path), axis, indices)


def _slices(file: File, axis: str | None = None, indices: Iterable[int] | None = None) -> list[Slice]:
    axes = open_stack(file).axes
    axis = axis or next(iter(axes))
    with reading(file):
        count = check_position(axes, axis)
        if count > MAX_SLICES:
            raise ImageFileError(f"Got a file that claims to hold {count} images; wanted at most {MAX_SLICES}.")
        found = [Slice(file, axis, int(i)) for i in (range(count) if indices is None else indices)]
        for one in found:
            check_position(axes, axis, one.index)
    return found


def check_position(axes: dict[str, int], axis: str, index: int = 0) -> int:
    """How many slices a file has along ``axis``; an `ImageError` if ``index`` is none of them."""
    if axis not in axes:
        raise ImageError(f"Got axis={axis!r}; wanted one of {', '.join(map(repr, axes))}.")
    if not 0 <= index < axes[axis]:
        raise ImageError(f"Got {axis} {index}; wanted 0 to {axes[axis] - 1}.")
    return axes[axis]


def _expand(images: Any) -> Iterator[Any]:
    if isinstance(images, (str, Path)):
        yield from _expand_path(str(images))
    elif isinstance(images, (PILImage.Image, Slice, Member)):
        yield images
    elif isinstance(images, np.ndarray):
        yield from _expand_array(images)
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


def _expand_array(images: np.ndarray) -> Iterator[np.ndarray]:
    colour = images.ndim >= 3 and images.shape[-1] in (1, 3)
    if images.ndim >= 3 and images.shape[-1] in (2, 4):
        raise ImageError(f"Got an array of shape {images.shape}, wanted 1 or 3 channels. Drop the alpha channel.")
    if images.ndim == 2 or (images.ndim == 3 and colour):
        yield images
    elif images.ndim == 3 or (images.ndim == 4 and colour):
        yield from images
    else:
        raise ImageError(f"Got an array of shape {images.shape}; wanted (H, W), (H, W, 3), (N, H, W) or (N, H, W, 3).")


def _expand_path(text: str) -> Iterator[File | Slice]:
    path = Path(text)
    archive = path.suffix.lower() == ".zip" and path.is_file()
    if path.is_dir() or archive:
        try:
            files = list(images_in(path))
        except Exception:
            if not archive:
                raise
            yield path  # a damaged archive: reading it says so
            return
        if not files:
            where = "archive" if archive else "folder"
            raise ImageFileError(f"Got {where} {text!r} without image files; wanted some of {', '.join(SUFFIXES)}.")
        for file in files:
            yield from _parts(file)
    elif not path.exists() and isinstance(source := source_of(text), Slice):
        yield source
    elif not path.exists() and glob.has_magic(text):
        matches = sorted(glob.glob(text))
        if not matches:
            raise ImageFileError(f"Got pattern {text!r}, which matches no file.")
        for match in matches:
            yield from _expand_path(match)
    else:
        yield from _parts(path)


def _parts(file: File) -> Iterator[File | Slice]:
    if str(file).lower().endswith(SINGLE):
        yield file
        return
    try:
        found = _slices(file)
    except ImageError:
        yield file
    else:
        yield from [file] if len(found) == 1 and found[0].axis == "frame" else found


def source_of(source: Any) -> File | Slice | None:
    """A path, or what the name of a slice says (``scan.nii.gz[axial 12]``); None for an image in memory."""
    if isinstance(source, (Slice, Member, Path)):
        return source
    if not isinstance(source, str):
        return None
    found = _ADDRESS.fullmatch(source)
    return Slice(Path(found[1]), found[2], int(found[3])) if found else Path(source)


def name_of(source: Any, position: int) -> str:
    """What to call an entry of `expand`: its path, or its position."""
    return str(source) if source_of(source) is not None else f"image {position}"
