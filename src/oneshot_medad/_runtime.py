"""Device, precision and random draws; nothing here changes what the rest of the process sees."""

from __future__ import annotations

import os
import timeit
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from oneshot_medad._threads import cached_once
from oneshot_medad.errors import ConfigError

BORN_IN = os.getpid()
"""The process that imported this; a forked one has another number."""


def settle() -> None:
    """Let torch compute in one thread in a forked process: the others stayed behind, and it would wait for them."""
    if os.getpid() != BORN_IN:
        torch.set_num_threads(1)


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is CUDA when present, else the CPU; anything else is taken as torch names it."""
    settle()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Got device {device!r}; wanted 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"Got device {device!r} but torch sees no CUDA device. Pass device='auto' or 'cpu'.")
    return resolved


@cached_once(maxsize=8)  # threads that time at once could come to different answers
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


def seeded(seed: int | None) -> torch.Generator:
    """A generator for all random draws of a fit; ``seed=None`` makes the fit random."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


class Drawing(TorchDispatchMode):
    """Inside, the initial values of modules that the calling thread makes come from a generator of their own.

    torch draws them from one generator of the whole process, in which the draws of several threads would mix, and whose
    state is the user's.

    Parameters
    ----------
    seed
        Of the generator. The values are those that ``torch.manual_seed(seed)`` would lead to.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = seeded(seed)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, with the generator if it draws."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.randn.default:  # it takes a generator under another name
            func = torch.ops.aten.randn.generator
        if any(argument.name == "generator" for argument in func._schema.arguments):
            kwargs.setdefault("generator", self.generator)
        return func(*args, **kwargs)
