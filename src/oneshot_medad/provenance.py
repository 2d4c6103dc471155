"""When and with what a detector was fitted, or a prediction made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from platform import python_version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot_medad.images.read import MedicalImage

PACKAGES = ("oneshot-medad", "torch", "open_clip_torch", "medvae", "accelerate", "safetensors", "numpy")


_version = lru_cache(version)  # it reads a file


def provenance(support: Iterable[MedicalImage]) -> dict[str, Any]:
    """When and with what a detector was fitted; of the images only hashes of their pixels and their sizes."""
    from oneshot_medad.images.sanity import pixels_sha256  # needs torch, which a stamp does not

    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in PACKAGES},
        "support": [{"sha256": pixels_sha256(image), "size": list(image.size)} for image in support],
    }


def stamp(packages: Sequence[str] = ("oneshot-medad", "torch")) -> dict[str, Any]:
    """When and with what packages a prediction was made."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": python_version(), **{name: _version(name) for name in packages}},
    }
