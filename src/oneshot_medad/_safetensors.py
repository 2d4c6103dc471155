"""Tensors in files whose path may be no UTF-8, which the package safetensors does not take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def load_tensors(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """The wanted tensors of a file by name; no others are read.

    Raises
    ------
    OSError, SafetensorError
        A file that is missing or damaged.
    """
    from safetensors import safe_open
    from safetensors.torch import load

    if not _is_utf8(path):
        return {name: tensor for name, tensor in load(path.read_bytes()).items() if wanted(name)}
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118 it is no mapping


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors by name to a file."""
    from safetensors.torch import save, save_file

    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if _is_utf8(path):
        save_file(kept, path)
    else:
        path.write_bytes(save(kept))


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
