"""Keep what other packages say while they read a file from the user: what matters of it is in our errors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

PACKAGES = r"(pydicom|PIL|nibabel|tifffile|imagecodecs|pylibjpeg|openjpeg|libjpeg|rle)(\.|$)"
_LOGGERS = ("tifffile", "nibabel.global")
"""Those that print where nobody set logging up."""
_lock = Lock()
_readers = 0
_before: tuple[warnings.catch_warnings, list[bool]]


def _renew() -> None:
    """A forked process has no other readers, whatever they held when it began."""
    global _lock, _readers
    _lock, _readers = Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def quiet() -> Iterator[None]:
    """Filters of warnings and loggers belong to the process: the first reader sets them, the last one restores them."""
    global _readers, _before
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with _lock:
        if _readers == 0:
            _before = warnings.catch_warnings(), [logger.disabled for logger in loggers]
            _before[0].__enter__()
            warnings.filterwarnings("ignore", module=PACKAGES)
            for logger in loggers:
                logger.disabled = True
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _before[0].__exit__(None, None, None)
                for logger, disabled in zip(loggers, _before[1], strict=True):
                    logger.disabled = disabled
