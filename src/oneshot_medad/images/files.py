"""Where an image lies: a file, a member of a zip archive, or one slice of a file that holds several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import GzipFile
from pathlib import Path
from typing import IO, TypeAlias
from zipfile import ZipFile

from oneshot_medad._threads import last_of_thread
from oneshot_medad.errors import ImageFileError

MAX_MEMBER = 2**31
"""Bytes that a member of an archive, or a file inside gzip, may unpack to."""
GZIP = b"\x1f\x8b"
CHUNK = 2**24


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
class Series:
    """A volume of DICOM images: the files of one series, or the frames of an enhanced file, in order of their position.

    Attributes
    ----------
    name
        Where it lies: the file of an enhanced object, or the folder of the files, with ``[series 3]`` behind it if
        there are others.
    study, uid, part
        UIDs of study and series, and which volume of the series it is, from 1.
    number
        Of the series, if it has one.
    axis
        The axis that its images cut: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    planes
        File and frame of every position from inferior, posterior or left; None where an image is missing.
    affine
        (4, 4) in RAS+ millimetres, for columns, rows and planes.
    size
        Columns and rows.
    """

    name: str
    study: str
    uid: str
    part: int
    number: str = field(compare=False)
    axis: str = field(compare=False)
    planes: tuple[tuple[File, int] | None, ...] = field(compare=False, repr=False)
    affine: tuple[tuple[float, ...], ...] = field(compare=False, repr=False)
    size: tuple[int, int] = field(compare=False, repr=False)

    @property
    def files(self) -> list[File]:
        """Its files, each once."""
        return list(dict.fromkeys(plane[0] for plane in self.planes if plane))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Slice:
    """One slice of a volume, or one frame of a file that holds several.

    Attributes
    ----------
    path
        The file, or the `Series`.
    axis
        ``"axial"``, ``"coronal"`` or ``"sagittal"`` of a volume; ``"frame"`` of any other file.
    index
        Position along that axis, from 0; in volumes from inferior, posterior or left.
    """

    path: File | Series
    axis: str
    index: int

    @property
    def origin(self) -> tuple[File, int] | None:
        """The file and frame that hold all of it; None for a cut through the images of a series."""
        if not isinstance(self.path, Series):
            return self.path, self.index
        return self.path.planes[self.index] if self.axis == self.path.axis else None

    def __str__(self) -> str:
        if isinstance(self.path, Series) and len(self.path.files) > 1 and self.origin:
            return str(self.origin[0])  # a file of its own
        return f"{self.path}[{self.axis} {self.index}]"


def is_part_of_volume(source: object) -> bool:
    """Whether a source is a slice of a volume or series, rather than a picture of its own."""
    return isinstance(source, Slice) and source.axis != "frame"


def volumes_of(sources: Iterable[object]) -> dict[tuple[File | Series, str], list[Slice]]:
    """The slices of every volume and axis among some sources, in their order."""
    found: dict[tuple[File | Series, str], list[Slice]] = {}
    for source in sources:
        if isinstance(source, Slice) and source.axis != "frame":
            found.setdefault((source.path, source.axis), []).append(source)
    return found


def first_file(place: Slice) -> File:
    """The file that a slice lies in, or the first one of its series."""
    return place.path.files[0] if isinstance(place.path, Series) else place.path


def content(file: File, count: int = -1) -> bytes:
    """The bytes of a file, or its first ``count``; what lies inside gzip is unpacked, whatever the file is called."""
    with _stream(file) as stream:
        if not _packed(stream):
            return stream.read(count)
        with GzipFile(fileobj=stream) as unpacked:
            if count >= 0:
                return unpacked.read(count)
            chunks: list[bytes] = []
            while chunk := unpacked.read(CHUNK):
                chunks.append(chunk)
                _check_unpacked(sum(map(len, chunks)))
            return b"".join(chunks)


def packed(file: File) -> bool:
    """Whether a file is gzip, by its content."""
    with _stream(file) as stream:
        return _packed(stream)


def beside(file: File, name: str) -> File:
    """The file called ``name`` in the same folder."""
    if isinstance(file, Path):
        return file.with_name(name)
    return Member(file.archive, file.name[: -len(Path(file.name).name)] + name)


@contextmanager
def _stream(file: File) -> Iterator[IO[bytes]]:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            yield stream
        return
    archive = _archive(file.archive)
    _check_unpacked(archive.getinfo(file.name).file_size)
    with archive.open(file.name) as stream:
        yield stream


def _packed(stream: IO[bytes]) -> bool:
    found = stream.read(2) == GZIP
    stream.seek(0)
    return found


def _check_unpacked(size: int) -> None:
    if size > MAX_MEMBER:
        raise ImageFileError(f"Got {size} bytes; wanted at most {MAX_MEMBER} from what is compressed. Unpack it first.")


def names_in(archive: Path) -> list[str]:
    """Names of the files in a zip archive, sorted."""
    return sorted({info.filename for info in _archive(archive).infolist() if not info.is_dir()})


def _archive(path: Path) -> ZipFile:
    status = path.stat()
    return _opened(path, status.st_mtime_ns, status.st_size)


@last_of_thread
def _opened(path: Path, *version: int) -> ZipFile:
    return ZipFile(path)
