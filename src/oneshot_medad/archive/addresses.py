"""What an image is called in a manifest, and how it comes to hand on any machine."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from oneshot_medad.archive import dicomweb
from oneshot_medad.errors import ConfigError, ImageFileError, OneShotError
from oneshot_medad.images.files import File, Member, Series, Slice
from oneshot_medad.images.folders import pixels_of

Place: TypeAlias = File | Slice

_SLICE = re.compile(r"(.+)\[(axial|coronal|sagittal|frame) (\d+)\]", re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_FILE = "file://"

FETCHES = 16
"""Files that one process fetches at a time: each waits for a network most of its time."""
WAITS = (1.0, 5.0)
"""Seconds before a fetch that failed is tried again."""
OUTAGE = 16
"""From this many images on, a batch of which nothing is there is an outage, and not so many images that are gone."""


def id_of(uri: str) -> int:
    """64 bits that stand for an address: two of 10⁸ addresses share them in one of 3,700 archives.

    Examples
    --------
    >>> id_of("/scans/a.png") == id_of("/scans/a.png") != id_of("/scans/b.png")
    True
    """
    return int.from_bytes(blake2b(uri.encode(), digest_size=8).digest(), "little", signed=True)


def uri_of(place: Place) -> str:
    """How a manifest calls an image on disk: by its absolute path, which every machine must have.

    A path that is no UTF-8, or that could be taken for something else, is percent-encoded behind ``file://``.
    """
    if isinstance(place, Slice):
        file = Path(place.path.name) if isinstance(place.path, Series) else place.path  # an enhanced file
        return f"{uri_of(file)}[{place.axis} {place.index}]"
    root, inner = (place.archive, f"/{place.name}") if isinstance(place, Member) else (place, "")
    text = os.path.abspath(root) + inner  # noqa: PTH100 - keeps links, as predict does
    try:
        text.encode()
    except UnicodeEncodeError:
        plain = False
    else:
        plain = not _SLICE.fullmatch(text)
    return text if plain else Path(os.path.abspath(root)).as_uri() + inner  # noqa: PTH100


def place_of(uri: str) -> Place:
    """What `uri_of` was made from; paths written by hand are taken too."""
    found = _SLICE.fullmatch(uri)
    base = found[1] if found else uri
    path = os.fsdecode(unquote_to_bytes(base[len(_FILE) :])) if base.startswith(_FILE) else base
    file = _member(path) or Path(path)
    return Slice(file, found[2], int(found[3])) if found else file


def file_uri(uri: str) -> str:
    """The address of the file that an image lies in.

    Examples
    --------
    >>> file_uri("s3://bucket/cine.dcm[frame 3]")
    's3://bucket/cine.dcm'
    """
    found = _SLICE.fullmatch(uri)
    return found[1] if found else uri


def is_remote(uri: str) -> bool:
    """Whether an address is on a network.

    Examples
    --------
    >>> is_remote("s3://bucket/a.dcm"), is_remote("/scans/a.dcm"), is_remote("file:///scans/a.dcm")
    (True, False, False)
    """
    return bool(_SCHEME.match(uri)) and not uri.startswith(_FILE)


def file_system(uri: str) -> tuple[Any, str]:
    """File system of a remote address, as pyarrow has it, and the path there, which may hold any character.

    Raises
    ------
    ConfigError
        A kind of address, or a bucket, that pyarrow cannot use.
    """
    root, _, path = re.fullmatch(r"(\w[\w+.-]*://[^/]*)(/*)(.*)", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    system, base = _root(f"{root}/")
    return system, f"{base.rstrip('/')}/{path}".removesuffix("/")


@lru_cache(maxsize=16)  # a bucket is looked up in the network
def _root(root: str) -> tuple[Any, str]:
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(root)
    except (ValueError, OSError) as error:
        raise ConfigError(f"Got {root!r}, which cannot be used ({error}); wanted a path, or s3://bucket.") from error
    return system, str(path)


@contextmanager
def at_hand(uris: Sequence[str]) -> Iterator[list[Place | ImageFileError]]:
    """The images of some addresses as files of this machine; what was fetched goes when the context ends.

    Yields
    ------
    A file or slice for each, or an error that says why there is none.

    Raises
    ------
    ImageFileError
        Nothing of `OUTAGE` images or more is there: the run must end, or it would record every image as missing.
    """
    with TemporaryDirectory() as folder, ThreadPoolExecutor(FETCHES) as pool:
        bases = {uri: file_uri(uri) for uri in uris}
        remote = [base for base in dict.fromkeys(bases.values()) if is_remote(base)]
        targets = [Path(folder, str(i), PurePosixPath(base).name or "image") for i, base in enumerate(remote)]
        fetched = dict(zip(remote, pool.map(_fetch, remote, targets), strict=True))
        places = [_at_hand(uri, fetched.get(bases[uri])) for uri in uris]
        missing = [place for place in places if isinstance(place, ImageFileError)]
        if len(missing) == len(uris) >= OUTAGE:
            raise ImageFileError(
                f"Got nothing of {len(uris)} images on {platform.node()}, the first with: {missing[0]} Wanted a "
                "source that answers, and folders mounted on every machine. See to it, and start again."
            )
        yield places


def _member(text: str) -> Member | None:
    """The member of a zip archive that a path leads into."""
    if ".zip/" not in text.lower() or Path(text).exists():
        return None
    for at in re.finditer(r"\.zip/", text, re.IGNORECASE):
        archive = Path(text[: at.end() - 1])
        if archive.is_file():
            return Member(archive, text[at.end() :])
    return None


def _at_hand(uri: str, fetched: Path | ImageFileError | None) -> Place | ImageFileError:
    if isinstance(fetched, ImageFileError):
        return fetched
    if fetched is not None:
        found = _SLICE.fullmatch(uri)
        return Slice(fetched, found[2], int(found[3])) if found else fetched
    place = place_of(uri)
    file = place.path if isinstance(place, Slice) else place
    assert not isinstance(file, Series)
    path = file.archive if isinstance(file, Member) else file
    return place if path.is_file() else ImageFileError(f"{place}: Got no file; wanted the one of the manifest.")


def _fetch(uri: str, target: Path) -> Path | ImageFileError:
    """Bring a file here; what stays unreachable is an error to be recorded."""
    target.parent.mkdir()
    try:
        if uri.startswith(("http://", "https://")):
            _patiently(dicomweb.retrieve, uri, target)
        else:
            _patiently(_copy, uri, target)
            if (pixels := pixels_of(uri)) != uri:  # the other half of a NIfTI pair
                _patiently(_copy, pixels, target.with_name(PurePosixPath(pixels).name))
    except FileNotFoundError:
        return ImageFileError(f"{uri}: Got no file; wanted the one of the manifest.")
    except OSError as error:
        return ImageFileError(f"{uri}: Cannot be fetched: {error}. Check the source.")
    return target


def _patiently(do: Callable[[str, Path], Any], uri: str, target: Path) -> None:
    """Try again after `WAITS` what a network refused."""
    for wait in (*WAITS, None):
        try:
            do(uri, target)
            return
        except (FileNotFoundError, OneShotError):
            raise
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)


def _copy(uri: str, target: Path) -> None:
    from pyarrow import fs

    source, path = file_system(uri)
    fs.copy_files(path, str(target), source, fs.LocalFileSystem(), use_threads=False)
