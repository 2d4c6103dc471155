"""Attributes of DICOM objects as numbers: what has no usable value counts as absent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def numbers(item: Any, name: str) -> list[float]:
    """All values of an attribute, NaN for one that is no number; none if it is missing, empty or nonsense."""
    try:
        value = item[name].value
    except Exception:  # missing, or what pydicom raises on text that it cannot convert
        return []
    values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    return [_number(one) for one in values]


def number(item: Any, name: str) -> float | None:
    """The one finite value of an attribute."""
    found = numbers(item, name)
    return found[0] if len(found) == 1 and np.isfinite(found[0]) else None


def whole(item: Any, name: str) -> int | None:
    """The one value of an attribute that is a whole number from 1."""
    found = number(item, name)
    return int(found) if found is not None and found >= 1 and found == int(found) else None


def pair(item: Any, name: str) -> tuple[float, float] | None:
    """Two positive numbers."""
    found = numbers(item, name)
    fit = len(found) == 2 and all(np.isfinite(value) and value > 0 for value in found)
    return (found[0], found[1]) if fit else None


def text(item: Any, name: str) -> str:
    """The one value of an attribute as text without blanks around it."""
    try:
        value = item[name].value
    except Exception:
        return ""
    return str(value).strip() if isinstance(value, str) else ""


def places(ds: Any, frame: int, name: str) -> Iterator[Any]:
    """What may hold an attribute: the frame's own functional group, the one of all frames, the file itself."""
    for groups, i in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        try:
            yield ds[groups].value[i][name].value[0]
        except Exception:  # missing, empty, or too few of them
            continue
    yield ds


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
