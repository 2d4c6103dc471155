"""Keep what other packages say while they read a file from the user: what matters of it is in our errors."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from oneshot_medad._threads import Guard

PACKAGES = r"(pydicom|PIL|nibabel|tifffile|imagecodecs|pylibjpeg|openjpeg|libjpeg|rle)(\.|$)"
_LOGGERS = ("tifffile", "nibabel.global")
"""Those that print where nobody set logging up."""
_guard = Guard()
_readers: Counter[int] = Counter()
"""By process: a forked one has no other readers, whatever they held when it began."""
_before: tuple[warnings.catch_warnings, list[bool]]


@contextmanager
def quiet() -> Iterator[None]:
    """Filters of warnings and loggers belong to the process: the first reader sets them, the last one restores them."""
    global _before
    loggers, process = [logging.getLogger(name) for name in _LOGGERS], os.getpid()
    with _guard:
        if _readers[process] == 0:
            _before = warnings.catch_warnings(), [logger.disabled for logger in loggers]
            _before[0].__enter__()
            warnings.filterwarnings("ignore", module=PACKAGES)
            for logger in loggers:
                logger.disabled = True
        _readers[process] += 1
    try:
        yield
    finally:
        with _guard:
            _readers[process] -= 1
            if _readers[process] == 0:
                _before[0].__exit__(None, None, None)
                for logger, disabled in zip(loggers, _before[1], strict=True):
                    logger.disabled = disabled
