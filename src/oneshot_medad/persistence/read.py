"""Reading what somebody else may have written: sizes, types, names, shapes and values are checked before use."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from oneshot_medad._hub import plain_file
from oneshot_medad._safetensors import load_tensors
from oneshot_medad.errors import PersistenceError

MAX_JSON = 1 << 24
"""Bytes; 100,000 images to calibrate on, with a score and a hash each, stay below it."""
MAX_HEADER = 1 << 20
MAX_TENSORS = 1 << 30


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a small JSON file."""
    path = plain_file(folder, name)
    size = path.stat().st_size
    if size > MAX_JSON:
        raise PersistenceError(f"{path} has {size} bytes; wanted at most {MAX_JSON}.")
    try:
        found = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PersistenceError(f"{path} is not valid JSON: {type(error).__name__} {error}.") from error
    if not isinstance(found, dict):
        raise PersistenceError(f"{path} holds a {type(found).__name__}; wanted an object.")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def take(values: Mapping[str, Any], where: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """``values`` if it has exactly the named fields, each of the named type; numbers must be finite."""
    missing, unknown = sorted(kinds.keys() - values.keys()), sorted(values.keys() - kinds.keys())
    if missing or unknown:
        raise PersistenceError(f"{where} has missing fields {missing} and unknown fields {unknown}; wanted neither.")
    for name, kind in kinds.items():
        value = values[name]
        wanted = kind if isinstance(kind, tuple) else (kind,)
        fits = isinstance(value, wanted) and not (isinstance(value, bool) and bool not in wanted)
        if not fits or (isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value)):
            names = " or ".join(k.__name__ for k in wanted)
            raise PersistenceError(f"{where} has {name}={value!r}; wanted a {names}.")
    return dict(values)


def is_number(value: Any) -> bool:
    """A finite number that is no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, each checked to be finite."""
    from safetensors import SafetensorError

    path = plain_file(folder, name)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if header > min(MAX_HEADER, size) or size > MAX_TENSORS:
        raise PersistenceError(
            f"{path} is damaged or no detector: {size} bytes with a header of {header}; wanted a header of at most "
            f"{MAX_HEADER} inside a file of at most {MAX_TENSORS}."
        )
    try:
        tensors = load_tensors(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise PersistenceError(f"Cannot read {path}: {error}. Download or save it again.") from error
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise PersistenceError(f"{path} has NaN or infinite values in {key}. Download or save it again.")
    return tensors
