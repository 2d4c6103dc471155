"""Keep what other packages say while they read a file from the user: what matters of it is in our errors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

PACKAGES = r"(pydicom|PIL|nibabel|tifffile|imagecodecs|pylibjpeg|openjpeg|libjpeg|rle)(\.|$)"
_LOGGERS = ("tifffile", "nibabel.global")
"""Those that print where nobody set logging up."""
_lock = Lock()
_readers = 0
_before: tuple[warnings.catch_warnings, list[int]]


@contextmanager
def quiet() -> Iterator[None]:
    """Filters of warnings and levels of loggers belong to the process: the first reader sets, the last one restores."""
    global _readers, _before
    with _lock:
        if _readers == 0:
            _before = warnings.catch_warnings(), [logging.getLogger(name).level for name in _LOGGERS]
            _before[0].__enter__()
            warnings.filterwarnings("ignore", module=PACKAGES)
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _before[0].__exit__(None, None, None)
                for name, level in zip(_LOGGERS, _before[1], strict=True):
                    logging.getLogger(name).setLevel(level)
