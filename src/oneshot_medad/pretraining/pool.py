"""A pool of collections: its manifest, the rules for each collection, and the images as fields in memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from oneshot_medad.errors import ConfigError
from oneshot_medad.images.preprocess import to_field

MANIFEST = "MANIFEST.csv"
LARGEST_MASK = 0.35
"""Share of an image above which its mask tells nothing of where to cut windows."""


@dataclass(frozen=True)
class Item:
    """One row of a manifest: an image of a collection, ``normal``, ``abnormal`` or ``unlabelled``."""

    path: Path
    collection: str
    label: str
    kind: str
    mask: Path | None
    patient: str


@dataclass(frozen=True)
class Rules:
    """What is odd about the collections of a pool, by name.

    Attributes
    ----------
    skip
        Not used.
    no_image_labels
        Normal and abnormal images come from different sources, or the unlabelled ones may be either: masks only.
    windows
        Whole images are never normal: reference and judged images are windows beside and on the masked lesions.
    pair_by
        ``patient`` or ``class``: a reference is drawn among images that share it. Of classes a leading ``normal-`` does
        not count.
    share
        Factor on how often collections whose name begins so are drawn; without it the square root of their size.
    goods
        Beginnings of the names of collections that show no patients: goods, plants, photographs of anything.
    """

    skip: tuple[str, ...] = ()
    no_image_labels: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    pair_by: Mapping[str, str] = field(default_factory=dict)
    share: Mapping[str, float] = field(default_factory=dict)
    goods: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rules:
        """Read back from JSON; an unknown field is an error."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"Got rules {', '.join(unknown)}; wanted some of {', '.join(sorted(known))}.")
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**read)


def read_manifest(data: str | Path, role: str = "pool") -> list[Item]:
    """Rows of one role of ``MANIFEST.csv`` in folder ``data``.

    Its columns: ``role``, ``set`` (the collection), ``path`` and ``mask`` (relative to the folder; the mask may be
    empty), ``label``, ``class`` and ``patient`` (both may be empty).
    """
    root = Path(data)
    with (root / MANIFEST).open(newline="", encoding="utf-8") as file:
        return [
            Item(
                root / row["path"],
                row["set"],
                row["label"],
                row.get("class") or "",
                root / row["mask"] if row.get("mask") else None,
                row.get("patient") or "",
            )
            for row in csv.DictReader(file)
            if row["role"] == role
        ]


def read_field(item: Item, side: int) -> torch.Tensor:
    """(4, side, side) uint8: an image and its mask."""
    with Image.open(item.path) as file:
        image = torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
    found, mask = to_field(image, side), torch.zeros(1, side, side)
    if item.mask:
        with Image.open(item.mask) as file:
            lesion = torch.from_numpy(np.asarray(file.convert("1")).copy()).float()
        mask = (to_field(lesion[None].expand(3, -1, -1), side)[:1] > 0.4).float()
    return (torch.cat([found, mask]) * 255).round().to(torch.uint8)


class Collection:
    """The images of one collection.

    Attributes
    ----------
    fields
        (N, 4, S, S) uint8 images and masks.
    normal, abnormal
        Numbers of the images that may stand for normal, and of those that are shown as abnormal.
    masked
        Numbers of the images with a mask that leaves most of the image free.
    labelled
        Whether an image may be called abnormal as a whole.
    windows
        Whether only windows of the images are used.
    """

    def __init__(self, items: list[Item], fields: torch.Tensor, embedded: torch.Tensor, rules: Rules) -> None:
        name = items[0].collection
        self.name, self.fields = name, fields
        self.windows, self.labelled = name in rules.windows, name not in rules.no_image_labels
        self.has_mask = [item.mask is not None for item in items]
        by_label = {label: [i for i, item in enumerate(items) if item.label == label] for label in LABELS}
        self.normal = by_label["normal"] if len(by_label["normal"]) > 1 else by_label["unlabelled"]
        with_mask = [i for i in by_label["abnormal"] if self.has_mask[i]]
        self.abnormal = by_label["abnormal"] if self.labelled and not self.windows else with_mask
        covered = fields[:, 3].float().mean(dim=(1, 2)) / 255
        self.masked = [i for i, has in enumerate(self.has_mask) if has and covered[i] < LARGEST_MASK]
        self._embedded = F.normalize(embedded - embedded.mean(0), dim=1)
        pair = rules.pair_by.get(name)
        groups = {"patient": [i.patient for i in items], "class": [i.kind.removeprefix("normal-") for i in items]}
        self._group = np.array(groups[pair] if pair else [""] * len(items))

    @property
    def usable(self) -> bool:
        """Whether an episode can be made of it."""
        return bool(self.masked) if self.windows else len(self.normal) > 1

    def near(
        self, k: int, members: list[int], rng: np.random.Generator, count: int = 1, without: tuple[int, ...] = ()
    ) -> list[int]:
        """``count`` others of ``members`` that may be shown with image ``k``; half of the time look-alikes."""
        group = [i for i in members if self._group[i] == self._group[k] and i != k and i not in without]
        others = np.array(group or [i for i in members if i != k and i not in without] or members)
        if rng.random() < 0.5:
            alike = (self._embedded[torch.from_numpy(others)] @ self._embedded[k]).numpy()
            others = others[np.argsort(-alike)[: max(10, 2 * count)]]
        return [int(i) for i in rng.choice(others, count, replace=len(others) < count)]


LABELS = ("normal", "abnormal", "unlabelled")


class Pool:
    """The collections of a pool, in memory.

    Parameters
    ----------
    items
        All images.
    rules
        What is odd about them.
    side
        Side of the fields.
    embed
        From (B, 3, S, S) images to (B, D) embeddings, by which look-alikes are found.

    Attributes
    ----------
    collections
        By name.
    share
        How often each is drawn; sums to 1.
    """

    def __init__(
        self, items: list[Item], rules: Rules, side: int, embed: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.collections: dict[str, Collection] = {}
        with ThreadPoolExecutor(2) as executor:
            for name in sorted({item.collection for item in items} - set(rules.skip)):
                members = [item for item in items if item.collection == name]
                found = torch.stack(list(executor.map(lambda item: read_field(item, side), members)))
                embedded = torch.cat([embed(chunk[:, :3].float() / 255) for chunk in found.split(16)]).float()
                collection = Collection(members, found, embedded, rules)
                if collection.usable:
                    self.collections[name] = collection
        if not self.collections:
            raise ConfigError("Got a pool without a collection to use; wanted two normal images of one, or masks.")
        size = {name: len(c.fields) ** 0.5 * _factor(name, rules.share) for name, c in self.collections.items()}
        self.share = {name: value / sum(size.values()) for name, value in size.items()}


def _factor(name: str, share: Mapping[str, float]) -> float:
    """The factor of the longest beginning of a name that has one."""
    return share[max(found, key=len)] if (found := [s for s in share if name.startswith(s)]) else 1.0
