"""Open any image file once, whatever its format, with errors of this package alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneshot_medad._threads import last_of_thread
from oneshot_medad.errors import ImageError, ImageFileError, OneShotError
from oneshot_medad.images.files import File, Member, Series
from oneshot_medad.images.folders import Search, images_in
from oneshot_medad.images.formats import READ, format_of, unknown
from oneshot_medad.images.quiet import quiet
from oneshot_medad.images.stack import Stack

MAX_REASON = 500
"""Characters of an error that are kept."""


def open_stack(file: File | Series) -> Stack:
    """The slices of a file or series; a thread keeps the one open that it opened last, whose slices come from memory.

    Raises
    ------
    ImageFileError
        A missing, damaged or unknown file.
    ExtraError
        A DICOM file without pydicom.
    """
    files = file.files if isinstance(file, Series) else [file]
    with reading(file):
        return _opened(file, *map(_version, dict.fromkeys(map(_on_disk, files))))


def _on_disk(file: File) -> Path:
    return file.archive if isinstance(file, Member) else file


def _version(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        raise ImageFileError(f"Got no file; wanted {READ}.")
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@last_of_thread
def _opened(file: File | Series, *version: tuple[int, ...]) -> Stack:
    if isinstance(file, Series):
        from oneshot_medad.images.series import SeriesStack

        return SeriesStack(file)
    what = format_of(file)
    if what == "zip":
        if isinstance(file, Member):
            raise ImageFileError("Got an archive inside an archive; wanted images. Unpack it first.")
        count = len(images_in(file, Search()))
        raise ImageFileError(f"Got an archive of {count} image files; wanted one image. Pass the archive to predict.")
    if what == "dicom":
        from oneshot_medad.images.dicom import Dicom

        return Dicom(file)
    if what == "nifti":
        from oneshot_medad.images.nifti import Nifti

        return Nifti(file)
    if what == "analyze":
        raise ImageFileError(
            "Got a header of ANALYZE 7.5, which does not tell left from right; wanted NIfTI. Convert the "
            "scanner's own files, for example with dcm2niix."
        )
    if what == "tiff":
        from oneshot_medad.images.tiff import Tiff

        return Tiff(file)
    if what == "raster":
        from oneshot_medad.images.raster import Raster

        return Raster(file)
    raise ImageFileError(unknown(file))


@contextmanager
def reading(source: Any) -> Iterator[None]:
    """Name the source in every error; what a decoder raises, whatever that is, becomes an `ImageFileError`."""
    try:
        with quiet():
            yield
    except ImageError as error:
        error.args = (f"{source}: {_plain(error)}",)
        raise
    except (OneShotError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a decoder written in Rust is no Exception
        what = _plain(error) or type(error).__name__
        raise ImageFileError(f"Cannot read {str(source)!r} as an image: {what}. Check or replace the file.") from error


def _plain(error: BaseException) -> str:
    """One printable line, as tables want it: decoders quote what they found in damaged files."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + " …"
