"""What is odd about images that can be read: little contrast, saturated pixels, copies, images seen before."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F

from oneshot_medad.errors import ImageError
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.images.read import MedicalImage

FAINT = 0.1
"""Share of the intensity range; images that use less are warned about, as 12 bits in a 16-bit file do."""

BETWEEN = 0.1
"""Share of pixels that are neither black nor white; fewer are a silhouette, or a window that misses the tissue.

PET and CT on black backgrounds have 0.13 and more.
"""

HALF_STEP = 0.5 / 255
"""Closer to 0 or 1 than this is black or white, in 8 bits."""


THUMBNAIL = 16
"""Side of the pictures by which near copies are found."""

ALIKE = 0.012
"""Largest difference between the thumbnails of near copies.

JPEG from quality 15 on and half the size stay below it. Slices of one head that are 0.25 mm apart do not, nor do two
heads, by more than ten times.
"""


def pixels_sha256(image: MedicalImage) -> str:
    """SHA-256 of the pixels as they are read, the same for one picture in files of several formats."""
    return hashlib.sha256(image.pixels.numpy().tobytes()).hexdigest()


def faint(image: MedicalImage) -> str | None:
    """What to say of an image that uses little of its intensity range; None for any other."""
    used = float(image.pixels.max() - image.pixels.min())
    if used >= FAINT:
        return None
    return (
        f"Got {image.name}, which uses {used:.1%} of its intensity range and looks nearly uniform to the networks; "
        "wanted contrast. Look at preview(image), and pass intensity_range=(low, high)."
    )


def saturated(image: MedicalImage) -> str | None:
    """What to say of an image that is mostly black and white with little in between; None for any other.

    A large black background is usual. So an image is saturated if fewer than `BETWEEN` of its pixels lie between black
    and white, or if more are white than lie between.
    """
    pixels = image.pixels[:1] if image.pixels.stride(0) == 0 else image.pixels  # grey repeats its one channel
    black, white = pixels < HALF_STEP, pixels > 1 - HALF_STEP
    bright = float(white.all(dim=0).float().mean())
    between = 1 - float((black | white).all(dim=0).float().mean())
    if between >= max(BETWEEN, bright):
        return None
    return (
        f"Got {image.name}, which is saturated: {bright:.0%} of its pixels are white and {1 - between - bright:.0%} "
        "black; wanted values in between. Look at preview(image), and pass intensity_range=(low, high) around them."
    )


Watcher: TypeAlias = Callable[[int, Any, MedicalImage], None]
"""Is told position, source and pixels of every image that a call reads, so that none is read twice."""


class Oddities:
    """What is odd about the images of a call or a run, to be warned about once, in memory that does not grow with them.

    Slices at both ends of a volume are nearly empty by nature: if there are no others, nothing is said unless they are
    the majority.
    """

    def __init__(self) -> None:
        self._total = 0
        self._found = {check: Counter[str]() for check in (faint, saturated)}
        self._said: dict[tuple[Any, str], str] = {}

    def see(self, position: int, source: Any, image: MedicalImage) -> None:
        """Look at one image that was read from ``source``."""
        self._total += 1
        where = "image" if getattr(source, "axis", "frame") == "frame" else "slice"
        for check, counts in self._found.items():
            if said := check(image):
                counts[where] += 1
                self._said.setdefault((check, where), said)
                return

    def warn(self, stacklevel: int) -> None:
        """Warn of each kind that there is; ``stacklevel`` as of `warnings.warn`, seen from the caller."""
        for check, counts in self._found.items():
            n = counts.total()
            if counts["image"] or 2 * n > self._total:
                said = self._said[check, "image" if counts["image"] else "slice"]
                more = f" So are {n - 1} more of {self._total} images." if n > 1 else ""
                warnings.warn(said + more, stacklevel=stacklevel + 1)


class Fingerprints:
    """What tells whether images are copies, of each other or of those that a detector was fitted on.

    Attributes
    ----------
    names
        Of the images, in their order.
    hashes
        SHA-256 of the pixels of each; empty for one that was not read.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.hashes = names, [""] * len(names)
        self._thumbnails = np.zeros((len(names), THUMBNAIL**2), np.float32)

    def see(self, position: int, source: Any, image: MedicalImage) -> None:
        """Keep what is needed of one image."""
        self.hashes[position], self._thumbnails[position] = pixels_sha256(image), thumbnail(image)

    def check_new(self, fitted_on: Collection[str]) -> None:
        """Raise an `ImageError` if any image is one that the detector was fitted on, by their hashes."""
        known = [name for name, found in zip(self.names, self.hashes, strict=True) if found in fitted_on]
        if known:
            raise ImageError(
                f"Got {listed(known)}, which the detector was fitted on; wanted other images. Leave them out: what was "
                "fitted on scores lower than any further image."
            )

    def copies(self) -> str | None:
        """`copies` among them."""
        return copies(self.names, self.hashes)

    def near_copies(self) -> str | None:
        """`near_copies` among them."""
        return near_copies(self.names, self.hashes, self._thumbnails)


def copies(names: Sequence[str], hashes: Sequence[str]) -> str | None:
    """Which images hold the same pixels as an earlier one, in words; None if all differ."""
    first: dict[str, str] = {}
    again = []
    for name, found in zip(names, hashes, strict=True):
        if found and found in first:
            again.append(f"{name} = {first[found]}")
        first.setdefault(found, name)
    return f"copies of other images ({listed(again)})" if again else None


def thumbnail(image: MedicalImage) -> np.ndarray:
    """(256,) mean grey values of a coarse grid over the square field."""
    field = to_field(image.pixels, 4 * THUMBNAIL).mean(dim=0)
    return F.adaptive_avg_pool2d(field[None], THUMBNAIL).flatten().numpy()


def near_copies(names: Sequence[str], hashes: Sequence[str], thumbnails: np.ndarray) -> str | None:
    """Which images look like another one, in words, as re-compressed or rescaled copies do; None if none does.

    Parameters
    ----------
    names, hashes
        Of the images; those with an empty hash, and exact copies of an earlier one, are skipped.
    thumbnails
        (N, 256), `thumbnail` of each; those without contrast are skipped.
    """
    from scipy.spatial import KDTree

    first = {found: i for i, found in reversed(list(enumerate(hashes))) if found and np.ptp(thumbnails[i]) > 2 * ALIKE}
    if len(first) < 2:
        return None
    rows = np.array(sorted(first.values()))
    nearest = KDTree(thumbnails[rows]).query(thumbnails[rows], k=[2], p=np.inf, distance_upper_bound=ALIKE)[1][:, 0]
    pairs = {tuple(sorted((rows[i], rows[j]))) for i, j in enumerate(nearest) if j < len(rows)}
    found = [f"{names[j]} ~ {names[i]}" for i, j in sorted(pairs)]
    return f"images that look like copies of others ({listed(found)})" if found else None


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many there are beyond.

    Examples
    --------
    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
