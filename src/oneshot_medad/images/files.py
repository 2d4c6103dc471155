"""Where an image lies: a file, a member of a zip archive, or one slice of a file that holds several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from zipfile import ZipFile

from oneshot_medad._threads import last_of_thread
from oneshot_medad.errors import ImageFileError

RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
DICOM = (".dcm", ".dicom", ".ima")
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*RASTER, *DICOM, *NIFTI)
MAX_MEMBER = 2**31
"""Bytes that one member of an archive may unpack to."""


@dataclass(frozen=True)
class Member:
    """A file inside a zip archive, read without unpacking it to disk.

    Attributes
    ----------
    archive
        The archive.
    name
        Of the file inside it.
    """

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


File: TypeAlias = Path | Member


@dataclass(frozen=True)
class Slice:
    """One slice of a volume, or one frame of a file that holds several.

    Attributes
    ----------
    path
        The file.
    axis
        ``"axial"``, ``"coronal"`` or ``"sagittal"`` of a volume; ``"frame"`` of any other file.
    index
        Position along that axis, from 0; in volumes from inferior, posterior or left.
    """

    path: File
    axis: str
    index: int

    def __str__(self) -> str:
        return f"{self.path}[{self.axis} {self.index}]"


def content(file: File, count: int = -1) -> bytes:
    """The bytes of a file, or its first ``count``."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(count)
    archive = _archive(file.archive)
    size = archive.getinfo(file.name).file_size
    if size > MAX_MEMBER:
        raise ImageFileError(f"Got {size} bytes; wanted at most {MAX_MEMBER} inside an archive. Unpack it first.")
    with archive.open(file.name) as stream:
        return stream.read(count)


def kind(file: File) -> str:
    """``"dicom"``, ``"nifti"``, ``"zip"`` or ``"raster"``: by suffix, and by DICOM's magic whatever the suffix."""
    name = str(file).lower()
    if name.endswith(".zip"):
        return "zip"
    if name.endswith(NIFTI):
        return "nifti"
    return "dicom" if name.endswith(DICOM) or is_dicom(file) else "raster"


def images_in(folder: Path) -> Iterator[File]:
    """The images directly in a folder, or anywhere in a zip archive, in sorted order."""
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if path.is_file() and _is_image(path))
    else:
        names = sorted({info.filename for info in _archive(folder).infolist() if not info.is_dir()})
        yield from (member for name in names if _is_image(member := Member(folder, name)))


def _is_image(file: File) -> bool:
    name = Path(file.name).name
    if name.startswith(".") or name == "DICOMDIR":  # a DICOMDIR lists the files beside it and holds no pixels
        return False
    return name.lower().endswith(SUFFIXES) or _may_be_dicom(file)


def _may_be_dicom(file: File) -> bool:
    try:
        return is_dicom(file)
    except Exception:  # encrypted or damaged: reading it as an image will say so
        return True


def is_dicom(file: File) -> bool:
    """Whether a file has the magic of DICOM, which stands after 128 bytes."""
    return content(file, 132)[128:] == b"DICM"


def _archive(path: Path) -> ZipFile:
    status = path.stat()
    return _opened(path, status.st_mtime_ns, status.st_size)


@last_of_thread
def _opened(path: Path, *version: int) -> ZipFile:
    return ZipFile(path)
