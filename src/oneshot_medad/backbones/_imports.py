"""Packages that do more than one asks for when they are imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from oneshot_medad._threads import cached_once
from oneshot_medad.errors import WeightsError

TOKENIZERS = "TOKENIZERS_PARALLELISM"


@cached_once(maxsize=8)
def open_clip(name: str) -> ModuleType:
    """A module of open_clip, imported without what comes with it.

    It imports timm, which imports wandb where that is installed, as medvae wants it: wandb 0.14 starts a client that
    reports errors to an address of its own. It switches off threads that tokenizers of other packages may use, and what
    moved in timm is announced to whoever imports it.
    """
    before = os.environ.get(TOKENIZERS)
    with Absent("wandb"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
    if before is None:
        os.environ.pop(TOKENIZERS, None)
    return module


class Absent:
    """Inside, the calling thread finds no package of that name, unless it is imported already."""

    def __init__(self, name: str) -> None:
        self.name, self.thread = name, threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """What the import system asks first."""
        if name == self.name and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)


@cached_once(maxsize=8)
def medvae(name: str) -> Any:
    """A module of medvae without running ``medvae/__init__``, which imports MONAI and takes six seconds.

    It is a copy of our own, whose constructors do not print; whoever imports medvae gets the whole of it.
    """
    found = importlib.util.find_spec("medvae")
    if found is None or found.submodule_search_locations is None:
        raise WeightsError("Cannot import medvae. Install oneshot-medad with its dependencies.")
    package = ModuleType("medvae")
    package.__path__ = list(found.submodule_search_locations)
    with _set_aside("medvae"):
        sys.modules["medvae"] = package
        module = importlib.import_module(name)
        for key in [key for key in sys.modules if key.startswith("medvae.")]:
            vars(sys.modules[key])["print"] = lambda *texts, **options: None
    return module


@contextmanager
def _set_aside(package: str) -> Iterator[None]:
    """Forget what is imported of a package, and afterwards what was imported of it meanwhile."""
    theirs = _taken(package)
    try:
        yield
    finally:
        _taken(package)
        sys.modules.update(theirs)


def _taken(package: str) -> dict[str, ModuleType]:
    return {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == package}
