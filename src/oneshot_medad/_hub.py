"""Calls to the Hugging Face Hub: patience with passing trouble, and errors that say what to do; its files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from oneshot_medad.errors import HubError, PersistenceError

ATTEMPTS = 4
LONGEST_WAIT_S = 60.0
PASSING = {408, 429, 500, 502, 503, 504}

CURES = {
    401: "Log in with `hf auth login` or pass token=…",
    403: "This token may not do that; use one with write access to the repository's owner",
    404: "Check the spelling of the repository and the revision, and whether it is private",
    409: "Somebody else changed the repository at the same moment; try again",
    429: "The Hub limits how often it is asked; wait and try again",
}

T = TypeVar("T")


def calling(what: str, call: Callable[[], T]) -> T:
    """``call()``, repeated on passing trouble; everything that goes wrong on the way becomes a `HubError`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except HFValidationError as error:
            raise HubError(f"Cannot {what}: {error}") from error
        except Exception as error:
            answer = error if isinstance(error, HfHubHTTPError) else error.__cause__  # what a download was missing for
            response = answer.response if isinstance(answer, HfHubHTTPError) else None
            if response is not None:
                status = response.status_code
                if status not in PASSING or attempt == ATTEMPTS:
                    cure = CURES.get(status, "Try again later" if status >= 500 else "Read the message")
                    raise HubError(f"Cannot {what}: the Hub answered {status}. {cure}. ({error})") from error
                time.sleep(_wait(response.headers.get("Retry-After"), attempt))
            elif isinstance(error, LocalEntryNotFoundError):
                raise HubError(
                    f"Cannot {what}: it is not in the cache, and the Hub was not asked or not reached. Check the "
                    f"connection, HF_HUB_OFFLINE and local_files_only. ({error})"
                ) from error
            elif not _is_network(error):
                raise
            elif attempt == ATTEMPTS:
                raise HubError(f"Cannot {what}: no connection ({error}). Nothing changed here; try again.") from error
            else:
                time.sleep(_wait(None, attempt))
    raise AssertionError  # the last attempt returns or raises


def _wait(retry_after: str | None, attempt: int) -> float:
    if retry_after and retry_after.isdigit():
        return min(float(retry_after), LONGEST_WAIT_S)
    return 0.25 * 2.0**attempt


def _is_network(error: Exception) -> bool:
    """Errors of the HTTP client, which is httpx or requests depending on huggingface_hub's version."""
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    clients = {"httpx", "httpx2", "requests", "urllib3"}
    return isinstance(error, ConnectionError | TimeoutError) or bool(modules & clients)


def plain_file(folder: Path, name: str) -> Path:
    """``folder/name`` if it is a regular file that lies in the folder, or a link into a Hub cache beside it."""
    path = folder / name
    if not path.is_file():
        raise PersistenceError(f"Missing {path}. Save the detector again, or download all of its files.")
    if path.is_symlink():  # the Hub's cache keeps the files of a snapshot as links into a folder "blobs" above it
        blobs = path.resolve().parent
        if blobs.name != "blobs" or blobs.parent not in folder.resolve().parents:
            raise PersistenceError(f"{path} is a link out of its folder. Copy the file itself there if you trust it.")
    return path


def sha256(path: Path) -> str:
    """Hash of a file's content, computed once for a file that does not change."""
    state = path.stat()
    return _sha256(path.absolute(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=32)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
