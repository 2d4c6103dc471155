"""Where the slices of DICOM volumes stand among other images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from oneshot_medad.images.files import File, Member, Series, Slice
from oneshot_medad.images.folders import Search
from oneshot_medad.images.grouping import COPY, LOCALIZER, group


def in_order(parts: list[File | Slice], dicom: list[File], search: Search) -> Iterator[File | Slice]:
    """Images with the slices of every volume in order where its first file stood, without localizers and copies.

    Parameters
    ----------
    parts
        Files, frames and slices as they were found in a folder or archive.
    dicom
        Which of their files are DICOM.
    search
        Where to count what is left out, and note what makes up no volume.
    """
    found = group(dicom)
    search.refused.update(found.refused)
    places = _places(found.volumes)
    localizers = set(found.localizers) if len(found.localizers) < len(dicom) else set()
    left_out = {**dict.fromkeys(found.doubled, COPY), **dict.fromkeys(localizers, LOCALIZER)}
    search.left_out.update(left_out.values())
    given = set()
    for part in parts:
        file = part.path if isinstance(part, Slice) else part
        one = places.get(_origin(part))
        if file in left_out:
            continue
        if one is None:
            yield part
        elif one.path not in given:
            given.add(one.path)
            yield from (place for place in places.values() if place.path == one.path)


def in_place(parts: list[Any], dicom: list[File]) -> Iterator[Any]:
    """Each entry as it is, or as the slice that it is of a volume which entries make up together.

    Parameters
    ----------
    parts
        What was given in a list.
    dicom
        DICOM files among it.
    """
    if len(dicom) < 2 and not any(isinstance(part, Slice) and part.path in dicom for part in parts):
        return iter(parts)
    places = _places(group(dict.fromkeys(dicom)).volumes)
    return (places.get(_origin(part), part) if isinstance(part, Path | Member | Slice) else part for part in parts)


def _places(volumes: Iterable[Series]) -> dict[Any, Slice]:
    """The slice that every file or frame is."""
    return {
        plane: Slice(volume, volume.axis, index)
        for volume in volumes
        for index, plane in enumerate(volume.planes)
        if plane is not None
    }


def _origin(part: Any) -> Any:
    return (part.path, part.index) if isinstance(part, Slice) else (part, 0)
