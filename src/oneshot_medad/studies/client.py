"""The way to a picture archive (DICOMweb): its address, credentials, and what goes wrong on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from oneshot_medad._names import printable
from oneshot_medad.errors import ArchiveError, ConfigError, ExtraError

PREFIX = "ONESHOT_MEDAD_DICOMWEB_"
"""Of the environment variables that hold credentials: ``…TOKEN``, or ``…USER`` and ``…PASSWORD``."""
NO_IMAGES = (
    "SEG",
    "PR",
    "SR",
    "KO",
    "RTSTRUCT",
    "RTDOSE",
    "RTPLAN",
    "RTRECORD",
    "REG",
    "AU",
    "ECG",
    "DOC",
    "PLAN",
    "ANN",
)
"""Modalities of series that are not fetched."""
TIMEOUT = (20, 600)
"""Seconds to wait for a connection, and for the next bytes: archives fetch old studies from tape."""


def client_of(url: str) -> Any:
    """A client of the service at an address, with the credentials of the environment.

    Raises
    ------
    ConfigError
        No such address, or one with credentials in it.
    ExtraError
        dicomweb-client is not installed.
    """
    try:
        from dicomweb_client import DICOMwebClient
        from dicomweb_client.session_utils import create_session
    except ImportError as error:
        raise ExtraError(f"DICOMweb needs dicomweb-client ({error}): pip install 'oneshot-medad[dicom]'") from error
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"Got the address {plain(url)!r}; wanted one like https://pacs.example/dicom-web.")
    if parts.username or parts.password:
        raise ConfigError(
            f"Got credentials in the address of {parts.hostname}; wanted them in {PREFIX}TOKEN, in {PREFIX}USER and "
            f"{PREFIX}PASSWORD, or in ~/.netrc, where no output shows them."
        )
    session = create_session()
    token, user = os.environ.get(f"{PREFIX}TOKEN"), os.environ.get(f"{PREFIX}USER")
    if token:
        session.auth = _Bearer(token)
    elif user:
        session.auth = (user, os.environ.get(f"{PREFIX}PASSWORD", ""))
    for scheme in ("http://", "https://"):
        session.mount(scheme, _patient())
    client = DICOMwebClient(url, session=session)
    client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)
    return client


def _patient() -> Any:
    """Waits for an archive, but not for ever, as `requests` does where nobody says."""
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> Any:
            return super().send(request, **{**options, "timeout": options.get("timeout") or TIMEOUT})

    return Patient()


class _Bearer:
    """A token for `requests`, which would otherwise prefer what ``~/.netrc`` says."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@contextmanager
def asking(url: str) -> Iterator[None]:
    """What the archive or the way to it gets wrong as an `ArchiveError`, without credentials."""
    from requests import RequestException
    from retrying import RetryError

    try:
        yield
    except (RequestException, RetryError, OSError) as error:
        if isinstance(error, ArchiveError):
            raise
        status = status_of(error)
        if status is None:
            what = type(error).__name__
            raise ArchiveError(f"Cannot reach {plain(url)}: {what}. Check the address and network.") from error
        way = f" Set {PREFIX}TOKEN, or {PREFIX}USER and {PREFIX}PASSWORD." if status in (401, 403) else ""
        raise ArchiveError(f"Got {status} from {plain(url)}; wanted an answer.{way}") from error


def status_of(error: BaseException) -> int | None:
    """What a service answered, at last, if an error came from its answer."""
    answer = getattr(error, "response", None)
    if answer is None:
        answer = getattr(getattr(error, "last_attempt", None), "value", None)
    return getattr(answer, "status_code", None)


def plain(url: str) -> str:
    """The address without credentials."""
    return printable(re.sub(r"//[^/@]*@", "//", url))


def first_value(about: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM's JSON."""
    values = about.get(tag, {}).get("Value") or [""]
    return str(values[0])
