"""Look-up tables of DICOM files: modality, VOI and palettes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from oneshot_medad.images.dicom_values import numbers

COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class Table:
    """A look-up table.

    Attributes
    ----------
    entries
        (N,) whole numbers.
    first
        Value that is mapped to the first entry; all below it are too, and all above the last one to the last.
    highest
        Largest value that an entry can take.
    """

    entries: np.ndarray
    first: int
    highest: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values through the table."""
        places = np.rint(values.astype(np.float64) - self.first)
        return self.entries[places.clip(0, len(self.entries) - 1).astype(np.int64)]


def read_table(ds: Any, item: Any, name: str, top: float) -> Table | None:
    """A table of values up to ``top``; None if its attributes do not make one.

    pydicom's own functions take neither 12-bit modality tables nor bytes of which two make a word.
    """
    implicit, little = ds.original_encoding
    described = numbers(item, f"{name}Descriptor")
    if len(described) != 3 or not np.isfinite(described).all():
        return None
    count, first, bits = (int(value) for value in described)
    count = count % 2**16 or 2**16
    entries = _entries(item, f"{name}Data", count, little)
    if entries is None:
        return None
    if implicit or first >= 0:  # the type of number is a guess there, or of the wrong sign for what the table gets
        first %= 2**16
        first -= 2**16 if first >= 2**15 and first > top else 0
    needed = max(1, int(entries.max()).bit_length())
    # many tables of 12 bits say 16
    return Table(entries, first, 2.0 ** (bits if 8 <= bits < 16 and needed <= bits else needed) - 1)


def read_palette(ds: Any, top: float) -> tuple[list[Table], float] | None:
    """Tables of red, green and blue, and their largest value; None if one is missing."""
    tables = [read_table(ds, ds, f"{colour}PaletteColorLookupTable", top) for colour in COLOURS]
    found = [table for table in tables if table is not None]
    return (found, max(table.highest for table in found)) if len(found) == len(COLOURS) else None


def _entries(item: Any, name: str, count: int, little: bool) -> np.ndarray | None:
    """(count,) entries from words, or from bytes of which two make a word; None if there are too few or too many."""
    try:
        data, kind = item[name].value, item[name].VR
    except Exception:
        return None
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little or kind == "OB" else ">u2")
    else:
        try:
            words = np.atleast_1d(np.asarray(data)).astype(np.int64).astype(np.uint16)
        except (TypeError, ValueError):
            return None
    if len(words) == count:
        return words
    packed = words.astype("<u2").view(np.uint8)  # the first of two bytes is the lower one in either byte order
    return packed[:count] if len(packed) == count + count % 2 else None
