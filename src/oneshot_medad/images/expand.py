"""From paths, folders, archives, volumes, arrays and tensors to one entry per image."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from oneshot_medad.errors import ImageError, ImageFileError, ImageTypeError, NoPictureError
from oneshot_medad.images.address import Address
from oneshot_medad.images.arrange import in_order, in_place
from oneshot_medad.images.arrays import is_tensor, of_array, of_tensor
from oneshot_medad.images.dicom import Dicom
from oneshot_medad.images.files import File, Member, Series, Slice
from oneshot_medad.images.folders import FOLDER, Search, images_in, is_image, is_index, said
from oneshot_medad.images.formats import READ
from oneshot_medad.images.grouping import group
from oneshot_medad.images.open import open_stack, reading

SINGLE = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp")
"""Files that are not opened to count what they hold."""
MAX_SLICES = 100_000
_WANTED = "a path, a PIL image, a NumPy array, a torch tensor or a list of them"
_WAYS = {
    "pydicom": "its file",
    "nibabel": "its file",
    "torchio": "its file",
    "SimpleITK": "the file that it came from, or one that it is written to",
    "itk": "the file that it came from, or one that it is written to",
    "pandas": "one of its columns: list(table['path'])",
}
"""What to pass in place of the objects of other packages that are no images to NumPy."""


class Sources(list[Any]):
    """What `expand` returns: one entry per image. It goes wherever images go, and is not searched again there.

    Attributes
    ----------
    left_out
        How many files in the folders, archives and patterns were passed over: suffixes, modalities of DICOM
        objects without a picture, folders that were not searched. Hidden files do not count.
    """

    def __init__(self, found: Iterable[Any] = ()) -> None:
        super().__init__(found)
        self.left_out: Counter[str] = Counter()


def expand(images: Any, *, recursive: bool = False) -> Sources:
    """Turn every accepted input into a list with one entry per image; no pixels are read yet.

    Parameters
    ----------
    images
        A path of an image, volume, zip archive or folder, or a glob pattern (``**`` stands for folders at any depth); a
        `Slice`; a PIL image; a NumPy array (H, W), (H, W, C), (N, H, W) or (N, H, W, C), or one of paths; a torch
        tensor (H, W), (C, H, W) or (N, C, H, W); or an iterable of these. C is 1, 3, or 4 with opacity.
    recursive
        Search folders to any depth. A folder with a DICOMDIR always is, for DICOM files.

    Returns
    -------
    Volumes, multi-frame DICOM files, TIFF files of several pages and animations give one `Slice` for each of theirs; a
    file that cannot be opened stays as it is, so that reading it says why. DICOM files that make up a volume become
    its slices: in folders, archives and patterns in order of their position, in a list where they stand. In folders,
    archives and patterns, files of other formats, DICOM objects without a picture (segmentations, dose grids,
    presentation states, reports), copies of images of a volume, and localizers of other images are left out and
    counted in ``left_out``.

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
    search = Search(recursive)
    found = Sources(in_place(list(_expand(images, search)), search.listed))
    if not found:
        raise ImageError(f"Got no images ({type(images).__name__} of length 0); wanted at least one.")
    for file, reason in search.refused.items():
        warnings.warn(f"{file}: {reason} The images of its series are taken one by one.", stacklevel=3)
    found.left_out = search.left_out
    return found


def slices(path: str | File | Series, axis: str | None = None, indices: Iterable[int] | None = None) -> list[Slice]:
    """Choose slices of a volume, frames of a multi-frame DICOM file, or pages of a TIFF file.

    Parameters
    ----------
    path
        A NIfTI volume, a folder or archive with one DICOM series (``"folder[series 3]"`` chooses among several), or
        another file that holds several images, also inside an archive.
    axis
        ``"axial"``, ``"coronal"`` or ``"sagittal"`` of a volume, ``"frame"`` of other files. None takes the axis across
        which a volume was acquired, where its shape or voxels show one, else axial.
    indices
        Positions along the axis from 0, in volumes counted from inferior, posterior or left; None takes all.

    Raises
    ------
    ImageError
        An axis or position that the file does not have.
    ImageFileError
        A file that cannot be opened, or a folder that holds no volume, or several.

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
    if isinstance(path, Member | Series):
        return _slices(path, axis, indices)
    address = Address.of(str(path)) if not Path(path).exists() else None
    place = Path(address.path if address else path)
    series = address.series if address else ""
    return _slices(_series_in(place, series) if series or _holds_files(place) else place, axis, indices)


def _series_in(path: Path, series: str) -> Series:
    """The series of a folder, archive or enhanced file; the one called ``[series N]`` if that is given."""
    search = Search()
    files = _files_in(path, search) if _holds_files(path) else [path]
    for file in files:
        list(parts(file, search))
    with reading(path):
        found = group(search.listed)
        chosen = [one for one in found.volumes if one.name.endswith(series)]
        if len(chosen) == 1:
            return chosen[0]
        names = ", ".join(one.name for one in chosen or found.volumes) or "none"
        why = "".join(f" {file}: {reason}" for file, reason in found.refused.items())
        raise ImageFileError(
            f"Got {len(chosen)} DICOM volumes{f' {series}' * bool(series)} ({names}); wanted one.{why}"
        )


def _slices(file: File | Series, axis: str | None = None, indices: Iterable[int] | None = None) -> list[Slice]:
    stack = open_stack(file)
    if axis != "frame" and isinstance(stack, Dicom) and not isinstance(file, Series) and stack.axes["frame"] > 1:
        with reading(file):
            volumes = group([file]).volumes
        if len(volumes) == 1:
            return _slices(volumes[0], axis, indices)
    axis = axis or next(iter(stack.axes))
    missing: frozenset[int] = getattr(stack, "missing", frozenset()) if axis == next(iter(stack.axes)) else frozenset()
    with reading(file):
        count = check_position(stack.axes, axis)
        if count > MAX_SLICES:
            raise ImageFileError(f"Got a file that claims to hold {count} images; wanted at most {MAX_SLICES}.")
        there = (i for i in range(count) if i not in missing)
        found = [Slice(file, axis, int(i)) for i in (there if indices is None else indices)]
        for one in found:
            check_position(stack.axes, axis, one.index)
    return found


def check_position(axes: dict[str, int], axis: str, index: int = 0) -> int:
    """How many slices a file has along ``axis``; an `ImageError` if ``index`` is none of them."""
    if axis not in axes:
        raise ImageError(f"Got axis={axis!r}; wanted one of {', '.join(map(repr, axes))}.")
    if not 0 <= index < axes[axis]:
        raise ImageError(f"Got {axis} {index}; wanted 0 to {axes[axis] - 1}.")
    return axes[axis]


def _expand(images: Any, search: Search) -> Iterator[Any]:
    package = type(images).__module__.split(".")[0]
    if isinstance(images, (str, os.PathLike)):
        yield from _expand_path(os.fsdecode(images), search)
    elif isinstance(images, (PILImage.Image, Slice, Member)):
        yield images
    elif is_tensor(images):
        yield from of_tensor(images)
    elif hasattr(images, "read") or isinstance(images, (bytes, bytearray, memoryview)):
        raise ImageTypeError(
            f"Got {type(images).__name__}; wanted {_WANTED}. Pass the file, or PIL.Image.open(...) of what it holds."
        )
    elif package in _WAYS and not _is_column(images):
        raise ImageTypeError(f"Got {type(images).__name__}; wanted {_WANTED}. Pass {_WAYS[package]}.")
    elif hasattr(images, "__array__"):
        with reading(f"an object of type {type(images).__name__}"):
            array = np.asanyarray(images)
        yield from _expand_array(array, search)
    elif isinstance(images, Sources):
        search.left_out.update(images.left_out)
        yield from images
    elif isinstance(images, Iterable) and not isinstance(images, dict):
        for image in images:
            yield from _expand(image, search)
    else:
        raise ImageTypeError(f"Got {type(images).__name__}; wanted {_WANTED}.")


def _is_column(table: Any) -> bool:
    """Whether an object of pandas has one dimension."""
    return getattr(table, "ndim", None) == 1


def _expand_array(images: np.ndarray, search: Search) -> Iterator[Any]:
    if images.dtype.kind in "OUS":  # paths or images, as a table's column holds them
        for image in images.ravel().tolist():
            yield from _expand(os.fsdecode(image) if isinstance(image, bytes) else image, search)
        return
    yield from of_array(images)


def _expand_path(text: str, search: Search) -> Iterator[File | Slice]:
    path = Path(text)
    if is_index(path) and path.is_file():
        path = path.parent
    if _holds_files(path):
        where = "folder" if path.is_dir() else "archive"
        yield from _whole(_files_in(path, search), search, f"Got {where} {str(path)!r} without image files")
    elif not path.exists() and (address := Address.of(text)):
        yield from _addressed(address)
    elif not path.exists() and glob.has_magic(text):
        there = next(parent for parent in path.parents if parent.exists())  # its brackets are no pattern
        pattern = os.path.join(glob.escape(str(there)), path.relative_to(there))  # noqa: PTH118
        matches = sorted(set(map(Path, glob.glob(pattern, recursive=True))))
        if not matches:
            raise ImageFileError(f"Got pattern {text!r}, which matches no file.")
        files = [file for match in matches for file in _matched(match, path.name == "**", search)]
        yield from _whole(list(dict.fromkeys(files)), search, f"Got pattern {text!r}, which matches no image file")
    else:
        yield from parts(path, search)


def _holds_files(path: Path) -> bool:
    return path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file())


def _files_in(path: Path, search: Search) -> list[File]:
    try:
        with reading(path):
            return images_in(path, search)
    except ImageFileError:
        if path.is_dir():
            raise
        return [path]  # a damaged archive: reading it says so


def _matched(path: Path, all_below: bool, search: Search) -> list[File]:
    """The images of one match of a pattern; what lies in folders is matched by itself if the pattern takes all."""
    if _holds_files(path):
        return [] if all_below and path.is_dir() else _files_in(path, search)
    return [path] if not is_index(path) and is_image(path, search) else []


def _addressed(address: Address) -> Iterator[Slice]:
    path: Any = Path(address.path)
    if address.series or _holds_files(path):
        path = _series_in(path, address.series)
    if address.index is not None:
        yield Slice(path, address.axis or "axial", address.index)
        return
    found = _slices(path, address.axis)
    if address.chosen is None:
        yield from found
        return
    wanted = range(found[-1].index + 1)[address.chosen]
    chosen = [one for one in found if one.index in wanted]
    if not chosen:
        raise ImageError(
            f"Got {address.path} {address.chosen}, which is no slice of it; wanted 0 to {found[-1].index}."
        )
    yield from chosen


def _whole(files: list[File], search: Search, nothing: str) -> Iterator[File | Slice]:
    """The parts of all files, slices of a volume together; an error that begins with ``nothing`` if there are none."""
    below = Search()
    found = [part for file in files for part in parts(file, below, search.left_out)]
    yield from in_order(found, below.listed, search)
    if not found:
        beside = f" Beside them: {said(search.left_out)}." if search.left_out else ""
        way = " Pass recursive=True (--recursive) to search the folders below." if search.left_out[FOLDER] else ""
        raise ImageFileError(f"{nothing}; wanted {READ}.{beside}{way}")


def parts(file: File, search: Search, left_out: Counter[str] | None = None) -> Iterator[File | Slice]:
    """The slices of a file, or the file itself; what is no picture is counted where it was not asked for by name."""
    if str(file).lower().endswith(SINGLE):
        yield file
        return
    try:
        found = _slices(file)
        if isinstance(open_stack(file), Dicom):
            search.listed.append(file)
    except NoPictureError as error:
        if left_out is None:
            yield file
        else:
            left_out[error.modality] += 1
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
    found = Address.of(source)
    if found is None or found.axis is None or found.index is None or Path(source).exists():
        return Path(source)
    return Slice(
        _series_in(Path(found.path), found.series) if found.series else Path(found.path), found.axis, found.index
    )


def name_of(source: Any, position: int) -> str:
    """What to call an entry of `expand`: its path, or its position."""
    return str(source) if source_of(source) is not None else f"image {position}"
