"""A folder that appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneshot_medad.errors import PersistenceError

CONFIG, MODEL, CALIBRATION, PROVENANCE, CARD = (
    "config.json",
    "model.safetensors",
    "calibration.json",
    "provenance.json",
    "README.md",
)
FILES = (CONFIG, MODEL, CALIBRATION, PROVENANCE, CARD)
"""What every detector folder holds."""

SHEET = "anomalies.png"
"""Picture of drawn anomalies, if it was asked for."""

BACKBONE = "backbone"
"""Subfolder of the frozen networks, if they were included."""

MAY_HOLD = {*FILES, BACKBONE, SHEET, ".gitattributes", ".cache", ".git"}
"""Names whose presence does not make a folder somebody else's; the last three come with a download from the Hub."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new empty folder to write into, which takes the place of ``target`` when the block ends without an error.

    The two are exchanged in one step where the system can (Linux, macOS), so a process killed at any moment leaves
    either the old folder or the new one. Whatever goes wrong, the old folder stays as it was.

    Raises
    ------
    PersistenceError
        ``target`` is something other than a detector's folder or an empty one, or cannot be written.
    """
    target = target.absolute()
    check_target(target)
    fresh = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{secrets.token_hex(8)}")  # a short one: the target's may be as long as can be
        fresh.mkdir()  # with the permissions of any new folder
        yield fresh
        for path in [p for p in fresh.rglob("*") if p.is_file()]:
            _flush(path)
        _flush(fresh)
        if os.path.lexists(target):
            _exchange(fresh, target)
        else:
            fresh.rename(target)
        _flush(target.parent)
    except OSError as error:
        cure = "Free some space" if error.errno == errno.ENOSPC else "Choose a folder you may write to"
        raise PersistenceError(
            f"Cannot save to {target}: {error.strerror or error}. {cure}; what was there before is unchanged."
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)  # after an exchange this is the old folder


def check_target(target: Path) -> None:
    """Raise a `PersistenceError` if ``target`` holds something other than a detector."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise PersistenceError(f"Got {target}, which is a file; wanted a folder to save to.")
    foreign = sorted(p.name for p in target.iterdir() if p.name not in MAY_HOLD)
    if foreign or (any(target.iterdir()) and not (target / CONFIG).is_file()):
        raise PersistenceError(
            f"Got {target}, which holds other files ({', '.join(foreign[:3]) or 'no ' + CONFIG}); wanted a new folder, "
            "an empty one, or a saved detector to replace."
        )


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> None:
    """Swap two existing folders; in one step where the system offers it."""
    a, b = os.fsencode(one), os.fsencode(other)
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        code = libc.renameat2(-100, a, -100, b, 2)  # AT_FDCWD, RENAME_EXCHANGE
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        code = libc.renamex_np(a, b, 2)  # RENAME_SWAP
    else:
        code, _ = -1, ctypes.set_errno(errno.ENOSYS)
    if code == 0:
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    aside = one.with_name(one.name + ".old")  # two steps, on systems without an exchange
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
