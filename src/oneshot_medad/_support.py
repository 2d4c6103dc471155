"""The normal images that a fit learns from: read, and warned about where they say little."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch

from oneshot_medad._predicting import read_one
from oneshot_medad.errors import BlankImageError
from oneshot_medad.images.expand import Sources
from oneshot_medad.images.files import is_part_of_volume
from oneshot_medad.images.read import MedicalImage
from oneshot_medad.images.sanity import copies, faint, saturated


def read_normal(
    sources: Sources, rows: Iterable[int], intensity_range: tuple[float, float] | None
) -> list[MedicalImage]:
    """The images of some sources without the blank slices of volumes, as there are at both ends of most."""
    found, blank = [], None
    for i in rows:
        try:
            found.append(read_one(sources[i], i, intensity_range))
        except BlankImageError as error:
            if not is_part_of_volume(sources[i]):
                raise
            blank = blank or error
    if blank is not None and not found:
        raise blank
    return found


def warn_of(support: Sequence[MedicalImage], hashes: Sequence[str], stacklevel: int) -> None:
    """Warn about images that the networks can see little in, and about copies."""
    for said in filter(None, [faint(image) or saturated(image) for image in support]):
        warnings.warn(said, stacklevel=stacklevel)
    if doubled := copies([image.name for image in support], hashes):
        warnings.warn(
            f"Got {doubled}; wanted different images. They add nothing but their number.", stacklevel=stacklevel
        )


def positions_of(support: list[MedicalImage]) -> torch.Tensor | None:
    """(K,) positions of normal images in their volumes; None unless all are slices."""
    known = [image.position for image in support if image.position is not None]
    return torch.tensor(known) if len(known) == len(support) else None
