"""The images in a folder or an archive, and what lies beside them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from oneshot_medad.images.files import File, Member, names_in
from oneshot_medad.images.formats import NO_SUFFIX, SUFFIXES, format_of, label

FOLDER = "folder"
"""What a folder that was not searched counts as."""
_NAMELESS = (FOLDER, NO_SUFFIX, "broken link", "no file", "localizer", "copy")
INDEX = "DICOMDIR"


@dataclass
class Search:
    """How to search, and what was passed over.

    Attributes
    ----------
    recursive
        Whether folders below are searched too, to any depth.
    left_out
        How many files were passed over, by what they are: suffixes, modalities of DICOM objects without a picture,
        localizers and copies of DICOM volumes, folders. Hidden files (``.name``, ``__MACOSX``) do not count.
    listed
        DICOM files with a picture that were given one by one.
    refused
        Why the images of a DICOM series make up no volume, by its first file.
    """

    recursive: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    listed: list[File] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def images_in(root: Path, search: Search) -> list[File]:
    """The images in a folder, or anywhere in a zip archive, in sorted order.

    Where a DICOMDIR lies, a disc begins: it is searched to any depth, for DICOM files alone, since viewers and their
    pictures come with them.
    """
    files: list[File] = list(_files(root, search) if root.is_dir() else _members(root))
    discs = {str(PurePath(str(file)).parent) for file in files if is_index(file)}
    images = [file for file in files if not is_index(file) and is_image(file, search, _on(discs, file))]
    halves = {pixels_of(str(file)) for file in images} - set(map(str, images))
    search.left_out -= Counter(label(file) for file in files if str(file) in halves)  # they are read with their headers
    return images


def is_index(file: File) -> bool:
    """Whether a file is the DICOMDIR of a disc."""
    return PurePath(file.name).name.upper() == INDEX


def pixels_of(header: str) -> str:
    """Where the pixels of a NIfTI pair lie; the same name for every other file."""
    return re.sub(r"\.(hdr)(?=(\.gz)?$)", lambda m: ".IMG" if m[1].isupper() else ".img", header, flags=re.IGNORECASE)


def is_image(file: File, search: Search, dicom_alone: bool = False) -> bool:
    """Whether a file is to be read: by its suffix, or by its content; if not, it is counted."""
    if isinstance(file, Path) and not file.is_file():
        search.left_out["broken link" if file.is_symlink() else "no file"] += 1
        return False
    name = file.name.lower()
    if name.endswith(SUFFIXES) and not dicom_alone:
        return True
    try:
        what = format_of(file)
    except Exception:  # encrypted or damaged: reading it as an image will say so
        return True
    wanted = ("dicom",) if dicom_alone else ("dicom", "nifti")
    if what in wanted or (what in ("raster", "tiff") and label(file) == NO_SUFFIX and not dicom_alone):
        return True
    search.left_out[label(file)] += 1
    return False


def said(left_out: Mapping[str, int]) -> str:
    """What was passed over, in words: files by suffix, and DICOM objects without a picture by modality.

    Examples
    --------
    >>> said({".dcm.gz": 1, ".txt": 2, "SEG": 1})
    '3 left out (.dcm.gz 1, .txt 2), 1 skipped, no picture (SEG)'
    """
    named = {name: n for name, n in sorted(left_out.items()) if n}
    files = {name: n for name, n in named.items() if name.startswith(".") or name in _NAMELESS}
    objects = {name: n for name, n in named.items() if name not in files}
    parts = []
    for counts, what in ((files, "left out"), (objects, "skipped, no picture")):
        names = list(counts) if len(counts) == 1 else [f"{name} {n}" for name, n in counts.items()]
        parts += [f"{sum(counts.values())} {what} ({', '.join(names)})"] if counts else []
    return ", ".join(parts)


def _files(root: Path, search: Search) -> Iterator[Path]:
    deep = search.recursive or any(is_index(path) for path in root.iterdir())
    found, seen = [], set()
    for folder, names, files in os.walk(root, followlinks=True, onerror=lambda _: search.left_out.update([FOLDER])):
        status = Path(folder).stat()
        names[:] = [name for name in names if not _hidden(name)]
        if not deep:
            search.left_out.update([FOLDER] * len(names))
            names.clear()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was searched already
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [Path(folder, name) for name in files if not _hidden(name)]
    yield from sorted(found)


def _members(archive: Path) -> Iterator[Member]:
    for name in names_in(archive):
        if not any(_hidden(part) for part in PurePosixPath(name).parts):
            yield Member(archive, name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _on(discs: set[str], file: File) -> bool:
    """Whether a file lies on a disc of DICOM files."""
    return not discs.isdisjoint(map(str, PurePath(str(file)).parents))
