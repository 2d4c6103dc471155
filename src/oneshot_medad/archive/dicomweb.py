"""What a picture archive holds, listed and fetched through DICOMweb."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from oneshot_medad.errors import ArchiveError, ConfigError
from oneshot_medad.images.dicom import NO_PICTURE_CLASSES
from oneshot_medad.studies.client import NO_IMAGES, asking, client_of, first_value, plain, status_of
from oneshot_medad.studies.dicomweb import OWN

_URL = re.compile(r"(?P<root>https?://.+?)(/studies/(?P<study>[\d.]+)(/series/(?P<series>[\d.]+))?)?/?")
_OBJECT = re.compile(r"(https?://.+)/studies/([\d.]+)/series/([\d.]+)/instances/([\d.]+)")
_CLASS, _INSTANCE, _MODALITY = "00080016", "00080018", "00080060"
_STUDY, _SERIES, _FRAMES = "0020000D", "0020000E", "00280008"
_MANUFACTURER = "00080070"
_NO_PICTURE = (*NO_PICTURE_CLASSES, "1.2.840.10008.5.1.4.1.1.30")
"""The last are parametric maps, such as heatmaps."""


def instances(url: str, left_out: Counter[str]) -> Iterator[str]:
    """Addresses of all images of an archive, a study or a series, study by study.

    Parameters
    ----------
    url
        Root of the service, such as ``https://pacs/dicom-web``, with ``/studies/UID`` and ``/series/UID`` behind it for
        a part of it. Credentials come from the environment or from ``~/.netrc``, as for `judge_study`.
    left_out
        Counts objects without a picture, by modality.

    Yields
    ------
    ``…/instances/UID``, with ``[frame N]`` behind it where an object holds several.

    Raises
    ------
    ConfigError
        No such address.
    ExtraError
        dicomweb-client is not installed.
    ArchiveError
        The service cannot be reached, or refuses.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ConfigError(f"Got {plain(url)!r}; wanted the address of a service, such as https://pacs/dicom-web.")
    with asking(url):
        service = _client(parts["root"])
        for study in [parts["study"]] if parts["study"] else _studies(service):
            found = service.search_for_instances(
                study_instance_uid=study,
                series_instance_uid=parts["series"],
                fields=["NumberOfFrames", "Modality", "Manufacturer"],
                get_remaining=True,
            )
            for one in sorted(found, key=lambda one: (first_value(one, _SERIES), first_value(one, _INSTANCE))):
                modality = first_value(one, _MODALITY)
                if modality in NO_IMAGES or first_value(one, _CLASS).startswith(_NO_PICTURE) or _own(one):
                    left_out[modality or "no modality"] += 1
                    continue
                place = f"series/{first_value(one, _SERIES)}/instances/{first_value(one, _INSTANCE)}"
                address = f"{parts['root']}/studies/{study}/{place}"
                frames = int(first_value(one, _FRAMES) or 1)
                yield from [address] if frames == 1 else (f"{address}[frame {i}]" for i in range(frames))


def retrieve(uri: str, target: Path) -> None:
    """Write one object to a file, as it is stored.

    Raises
    ------
    FileNotFoundError
        The archive does not have it.
    ArchiveError
        It refuses.
    OSError
        It cannot be reached.
    """
    from requests import HTTPError
    from retrying import RetryError

    parts = _OBJECT.fullmatch(uri)
    if parts is None:
        raise ArchiveError("no address of a DICOMweb object (…/studies/UID/series/UID/instances/UID)")
    root, *uids = parts.groups()
    try:
        found = _client(root).retrieve_instance(*uids, media_types=(("application/dicom", "*"),))
    except (HTTPError, RetryError) as error:
        status = status_of(error)
        if status in (404, 410):
            raise FileNotFoundError(uri) from error
        raise ArchiveError(f"the service answers {status}") from error
    found.save_as(target, enforce_file_format=True)


_client = lru_cache(maxsize=8)(client_of)
"""One of each service: it keeps its connections."""


def _own(one: dict[str, Any]) -> bool:
    """Whether this package made an object."""
    return first_value(one, _MANUFACTURER) == OWN


def _studies(service: Any) -> Iterator[str]:
    """UIDs of all studies."""
    for one in service.search_for_studies(get_remaining=True):
        yield first_value(one, _STUDY)
