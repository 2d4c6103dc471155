"""The development images: reading the manifest, splitting, augmenting."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from oneshot_medad.images.preprocess import to_field

DEFAULT_DATA = os.environ.get("ONESHOT_MEDAD_DATA", "../shared/data")


@dataclass(frozen=True)
class Item:
    """One row of ``MANIFEST.csv``."""

    path: Path
    role: str
    set: str
    label: str
    kind: str
    mask: Path | None
    patient: str


def read_manifest(data: str | Path = DEFAULT_DATA, role: str | None = None, sets=None) -> list[Item]:
    """Rows of ``MANIFEST.csv`` below ``data``, optionally of one role (``"pool"``, ``"eval"``) and some sets."""
    root = Path(data)
    with (root / "MANIFEST.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Item(
            root / r["path"],
            r["role"],
            r["set"],
            r["label"],
            r["class"],
            root / r["mask"] if r["mask"] else None,
            r["patient"],
        )
        for r in rows
        if role in (None, r["role"]) and (sets is None or r["set"] in sets)
    ]


def split(items: list[Item], held_out: float = 0.1, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Random (train, held-out) parts of ``items``, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(items))
    cut = round(len(items) * (1 - held_out))
    return [items[i] for i in order[:cut]], [items[i] for i in order[cut:]]


def load(path: Path) -> torch.Tensor:
    """(3, H, W) uint8 pixels of an image file."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).contiguous()


def fields_of(items: list[Item], side: int) -> torch.Tensor:
    """(N, 3, side, side) images."""
    return torch.stack([to_field(load(item.path).float() / 255, side) for item in items])


def random_crop(image: torch.Tensor, size: int, rng: np.random.Generator, long_side=(160, 320)) -> torch.Tensor:
    """(3, size, size) in [0, 1]: a random crop at a random scale, given as the length of the long side."""
    _, h, w = image.shape
    side = min(int(size * max(h, w) / rng.uniform(*long_side)), h, w)
    y, x = rng.integers(0, h - side + 1), rng.integers(0, w - side + 1)
    crop = image[None, :, y : y + side, x : x + side].float() / 255
    return F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def jitter(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random orientation, intensity window, gamma and inversion; sometimes one colour channel as grey."""
    image = torch.rot90(image, int(rng.integers(4)), (1, 2))
    if rng.random() < 0.5:
        image = image.flip(2)
    if rng.random() < 0.5:
        image = image[rng.integers(3)][None].expand(3, -1, -1)
    if rng.random() < 0.5:
        low, high = rng.uniform(-0.2, 0.3), rng.uniform(0.7, 1.2)
        image = ((image - low) / (high - low)).clamp(0, 1)
    if rng.random() < 0.5:
        image = image ** float(np.exp(rng.uniform(-0.6, 0.6)))
    return 1 - image if rng.random() < 0.1 else image
