"""What a picture archive holds, listed and fetched through DICOMweb."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from oneshot_medad.errors import ConfigError, ExtraError
from oneshot_medad.images.dicom import NO_PICTURE, NO_PICTURE_CLASSES

NO_IMAGE = (*NO_PICTURE, "ANN", "AU", "DOC", "ECG", "KO", "PLAN", "REG", "RTPLAN", "RTRECORD", "RTSTRUCT", "SR")
"""Modalities of objects that are not listed."""
PREFIX = "ONESHOT_MEDAD_DICOMWEB_"
"""Of the environment variables that hold credentials: ``…TOKEN``, or ``…USER`` and ``…PASSWORD``."""

_URL = re.compile(r"(?P<root>https?://.+?)(/studies/(?P<study>[\d.]+)(/series/(?P<series>[\d.]+))?)?/?")
_INSTANCE = re.compile(r"(https?://.+)/studies/([\d.]+)/series/([\d.]+)/instances/([\d.]+)")
_TAGS = {
    "class": "00080016",
    "instance": "00080018",
    "modality": "00080060",
    "study": "0020000D",
    "series": "0020000E",
    "frames": "00280008",
}


def instances(url: str, left_out: Counter[str]) -> Iterator[str]:
    """Addresses of all images of an archive, a study or a series, study by study.

    Parameters
    ----------
    url
        Root of the service, such as ``https://pacs/dicom-web``, with ``/studies/UID`` and ``/series/UID`` behind it for
        a part of it. Credentials come from the environment (`PREFIX`) or from ``~/.netrc``.
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
    OSError
        The service cannot be reached, or refuses.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ConfigError(f"Got {url!r}; wanted the root of a DICOMweb service, such as https://pacs/dicom-web.")
    root, service = parts["root"], client(parts["root"])
    studies = [parts["study"]] if parts["study"] else _studies(service)
    for study in studies:
        found = service.search_for_instances(
            study_instance_uid=study,
            series_instance_uid=parts["series"],
            fields=["NumberOfFrames", "Modality"],
            get_remaining=True,
        )
        for one in sorted(found, key=lambda one: (_value(one, "series"), _value(one, "instance"))):
            modality = str(_value(one, "modality"))
            if modality in NO_IMAGE or str(_value(one, "class")).startswith(NO_PICTURE_CLASSES):
                left_out[modality or "no modality"] += 1
                continue
            address = f"{root}/studies/{study}/series/{_value(one, 'series')}/instances/{_value(one, 'instance')}"
            frames = int(_value(one, "frames") or 1)
            yield from [address] if frames == 1 else (f"{address}[frame {i}]" for i in range(frames))


def retrieve(uri: str, target: Path) -> None:
    """Write one object to a file, as it is stored.

    Raises
    ------
    FileNotFoundError
        The archive does not have it.
    OSError
        It cannot be reached, or refuses.
    """
    from requests import HTTPError

    parts = _INSTANCE.fullmatch(uri)
    if parts is None:
        raise OSError("no address of a DICOMweb object (…/studies/UID/series/UID/instances/UID)")
    root, *uids = parts.groups()
    try:
        found = client(root).retrieve_instance(*uids, media_types=(("application/dicom", "*"),))
    except HTTPError as error:
        if error.response is not None and error.response.status_code in (404, 410):
            raise FileNotFoundError(uri) from error
        raise
    found.save_as(target, enforce_file_format=True)


@lru_cache(maxsize=8)
def client(root: str) -> Any:
    """A client of one service, with the credentials of the environment.

    Raises
    ------
    ExtraError
        dicomweb-client is not installed.
    """
    try:
        from dicomweb_client import DICOMwebClient
        from requests import Session
    except ImportError as error:
        raise ExtraError(f"DICOMweb needs dicomweb-client ({error}): pip install 'oneshot-medad[dicom]'") from error
    session = Session()
    token, user = os.environ.get(f"{PREFIX}TOKEN"), os.environ.get(f"{PREFIX}USER")
    if token:
        session.auth = lambda request: _with_token(request, token)
    elif user:
        session.auth = (user, os.environ.get(f"{PREFIX}PASSWORD", ""))
    found = DICOMwebClient(root, session=session)
    found.set_http_retry_params(retry=False)  # who fetches tries again, after errors of the network too
    return found


def _with_token(request: Any, token: str) -> Any:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _studies(service: Any) -> Iterator[str]:
    """UIDs of all studies."""
    for one in service.search_for_studies(get_remaining=True):
        yield str(_value(one, "study"))


def _value(one: dict[str, Any], name: str) -> Any:
    """The first value of an attribute in DICOM's JSON; empty if there is none."""
    return (one.get(_TAGS[name], {}).get("Value") or [""])[0]
