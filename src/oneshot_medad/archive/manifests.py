"""Manifests: Parquet files with a row for every image of an archive, its 64-bit ``id`` and its ``uri``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from oneshot_medad.archive import dicomweb
from oneshot_medad.archive.addresses import at_hand, file_system, id_of, is_remote, place_of, uri_of
from oneshot_medad.errors import ConfigError, ExtraError, ImageFileError
from oneshot_medad.images.expand import SINGLE, expand, parts
from oneshot_medad.images.files import Slice
from oneshot_medad.images.folders import FOLDER, Search, images_in, is_index, said
from oneshot_medad.images.formats import NO_SUFFIX, SUFFIXES, label

ID, URI = "id", "uri"
ROWS = 65_536
"""Of a row group: as many as are written at a time."""
AT_A_TIME = 64
"""Remote files that are fetched together to count what they hold."""


@dataclass
class Manifest:
    """What `make_manifest` wrote.

    Attributes
    ----------
    path
        The Parquet file.
    images
        Its rows.
    left_out
        How many files were passed over, by what they are, as in `Predictions.left_out`.
    """

    path: Path
    images: int
    left_out: dict[str, int] = field(default_factory=dict)


def make_manifest(
    images: str | Path | Iterable[str | Path], path: str | Path, *, recursive: bool = False, single: bool = False
) -> Manifest:
    """List all images of an archive in a Parquet file, whole or not at all, in memory that does not grow with them.

    Parameters
    ----------
    images
        Folders, files, archives and patterns as for `AnomalyDetector.predict`; remote folders such as
        ``s3://bucket/scans``; and DICOMweb services, ``https://pacs/dicom-web``, with ``/studies/UID`` behind it for a
        part of one. Volumes and files of several frames have a row for each image.
    path
        Of the manifest; one that is there is replaced.
    recursive
        Search folders to any depth.
    single
        Every file holds one image: list them without opening any. A file that holds several, or none, is then recorded
        as not readable when it is scored.

    Returns
    -------
    Number of images, and what was passed over.

    Raises
    ------
    ImageFileError
        Nothing that is an image.
    ConfigError
        No address that can be listed, or two addresses with one id.
    ExtraError
        pyarrow is not installed; dicomweb-client is not, and a service is asked for.
    OSError
        A service or remote folder that cannot be reached.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> from oneshot_medad.archive import make_manifest
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.png", "b.png"):
    ...         Image.fromarray(np.eye(9, dtype="uint8") * 255).save(f"{folder}/{name}")
    ...     make_manifest(folder, f"{folder}/manifest.parquet").images
    2
    """
    need_pyarrow()
    left_out: Counter[str] = Counter()
    given = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        found = (uri for one in given for uri in _listed(os.fsdecode(one), recursive, single, left_out))
        count = _write(found, part)
        if not count:
            beside = f" Beside them: {said(left_out)}." if left_out else ""
            raise ImageFileError(f"Got no image in {', '.join(map(str, given))}; wanted at least one.{beside}")
        if again := repeated(part):
            count = _write(_without(part, again), aside := part.with_name(f"{part.name}2"))
            aside.replace(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Manifest(path, count, {name: n for name, n in sorted(left_out.items()) if n})


def need_pyarrow() -> None:
    """Refuse to begin without pyarrow."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ExtraError(f"Archives need pyarrow ({error}): pip install 'oneshot-medad[ray]'") from error


def repeated(path: Any, filesystem: Any = None) -> set[int]:
    """The ids that a manifest has more than once."""
    import numpy as np
    import pyarrow.dataset

    ids = np.sort(pyarrow.dataset.dataset(path, filesystem=filesystem).to_table(columns=[ID])[ID].to_numpy())
    return set(ids[1:][ids[1:] == ids[:-1]].tolist())


def _write(uris: Iterable[str], path: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(ID, pyarrow.int64()), (URI, pyarrow.string())])
    count, uris = 0, iter(uris)
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(uris, ROWS)):
            writer.write_table(pyarrow.table([list(map(id_of, group)), group], schema=schema))
            count += len(group)
    return count


def _without(path: Path, again: set[int]) -> Iterator[str]:
    """The addresses of a manifest, each once; ``again`` are the ids that it has more than once."""
    from pyarrow import parquet

    seen: dict[int, str] = {}
    for batch in parquet.ParquetFile(path).iter_batches():
        for number, uri in zip(batch[ID].to_pylist(), batch[URI].to_pylist(), strict=True):
            if number in seen:
                if seen[number] != uri:
                    raise ConfigError(f"Got {uri} and {seen[number]}, which share an id; wanted two manifests.")
                continue
            if number in again:
                seen[number] = uri
            yield uri


def _listed(text: str, recursive: bool, single: bool, left_out: Counter[str]) -> Iterator[str]:
    if text.startswith(("http://", "https://")):
        yield from dicomweb.instances(text, left_out)
        return
    if is_remote(text):
        yield from _remote(text.rstrip("/"), recursive, single, left_out)
        return
    text = str(place_of(text)) if text.startswith("file://") else text
    if Path(text).is_dir():
        yield from map(uri_of, _below(Path(text), recursive, single, left_out))
        return
    found = expand(text, recursive=recursive)
    if isinstance(found[0], Path) and not found[0].exists():
        raise ImageFileError(f"Got no file or folder {text!r}; wanted images.")
    left_out.update(found.left_out)
    yield from map(uri_of, found)


def _below(root: Path, recursive: bool, single: bool, left_out: Counter[str]) -> Iterator[Any]:
    """The images of a folder, one folder below it at a time."""
    for folder in _folders(root, recursive, left_out):
        search = Search()
        for file in images_in(folder, search):
            yield from [file] if single else parts(file, search, search.left_out)
        if recursive:
            del search.left_out[FOLDER]  # they follow
        left_out.update(search.left_out)


def _folders(root: Path, recursive: bool, left_out: Counter[str]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(root, followlinks=True, onerror=lambda _: left_out.update([FOLDER])):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was searched already
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        disc = any(is_index(Path(folder, name)) for name in files)  # `images_in` goes to any depth there
        names[:] = sorted(n for n in names if recursive and not disc and not n.startswith(".") and n != "__MACOSX")
        yield Path(folder)


def _remote(uri: str, recursive: bool, single: bool, left_out: Counter[str]) -> Iterator[str]:
    """Addresses of the images in a remote folder, or of one file."""
    from pyarrow import fs

    source, path = file_system(uri)
    start = uri.removesuffix(path)  # scheme and, for some, a host
    info = source.get_file_info(path)
    found = [info] if info.is_file else source.get_file_info(fs.FileSelector(path, recursive=recursive))
    names = []
    for one in sorted(found, key=lambda one: one.path):
        if not one.is_file:
            left_out.update([FOLDER] * (not recursive))
        elif one.base_name.lower().endswith((*SUFFIXES, ".hdr")) or label(Path(one.base_name)) == NO_SUFFIX:
            names.append(start + one.path)
        else:
            left_out[label(Path(one.base_name))] += 1
    for at in range(0, len(names), AT_A_TIME):
        yield from _counted(names[at : at + AT_A_TIME], single, left_out)


def _counted(uris: Sequence[str], single: bool, left_out: Counter[str]) -> Iterator[str]:
    """The addresses, one for each image where a file holds several; it is fetched to be counted."""
    unknown = [uri for uri in uris if not single and not uri.lower().endswith(SINGLE)]
    search, held = Search(), {}
    with at_hand(unknown) as places:
        for uri, place in zip(unknown, places, strict=True):
            if not isinstance(place, (ImageFileError, Slice)):
                held[uri] = [str(one)[len(str(place)) :] for one in parts(place, search, search.left_out)]
    left_out.update(search.left_out)
    for uri in uris:
        yield from (uri + piece for piece in held.get(uri, [""]))
