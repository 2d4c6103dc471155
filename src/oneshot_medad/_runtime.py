"""Device, precision and seeds, in scopes that restore what they change."""

from __future__ import annotations

import os
import timeit
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from io import StringIO

import torch

from oneshot_medad.errors import ConfigError


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is CUDA when present, else the CPU; anything else is taken as torch names it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Got device {device!r}; wanted 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"Got device {device!r} but torch sees no CUDA device. Pass device='auto' or 'cpu'.")
    return resolved


@lru_cache
def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than single precision there: Ampere and newer GPUs, some CPUs.

    On a CPU both are timed, once in a process: what its instruction set promises says little. AVX-512 BF16 without AMX
    took 1.8 times as long as single precision on one processor and a fifth on another.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and _seconds(torch.float32) > 1.5 * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of some products, of a size that takes milliseconds."""
    a, b = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    with torch.no_grad():
        return min(timeit.repeat(lambda: torch.nn.functional.linear(a, b), number=1, repeat=12))


def process_count() -> int:
    """Processes of a distributed run, as its launcher says."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_writer() -> bool:
    """Whether this is the process that writes files: the only one, or the first of a distributed run."""
    return int(os.environ.get("RANK") or 0) == 0


@contextmanager
def seeded(seed: int | None) -> Iterator[torch.Generator]:
    """A generator for all random draws of a fit; the global torch state is seeded inside and restored after.

    With ``seed=None`` the fit is random and the global state still comes back as it was.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is None:
            seed = torch.seed() % 2**31
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow what third-party constructors print."""
    with redirect_stdout(StringIO()):
        yield
