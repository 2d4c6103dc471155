"""One-shot episodes: normal references of a collection, and four images of it to judge against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F

from oneshot_medad.images.augment import normal_views
from oneshot_medad.pretraining.appearance import change_appearance
from oneshot_medad.pretraining.pool import Collection, Pool
from oneshot_medad.synthesis.lesions import add_lesions

N_NORMAL, N_VIEWS, N_JUDGED = 6, 2, 4
"""Normal references, views of the first, and judged images of an episode."""
N_IMAGES = N_NORMAL + N_VIEWS + N_JUDGED
SMALLEST_WINDOW, LARGEST_WINDOW = 5 / 16, 11 / 16
"""Sides of windows as a share of the field."""
LARGEST_LESION, SELDOM_LARGER = 0.15, 0.4
"""Share of the field that a drawn lesion covers at most, mostly, and in three of ten cases."""


@dataclass(frozen=True)
class Episode:
    """Images of one collection: references, views of the first one, then the judged ones.

    Attributes
    ----------
    collection
        Its name.
    images
        (`N_IMAGES`, 3, S, S) in [0, 1].
    masks
        (`N_JUDGED`, S, S) of lesions.
    has_mask
        (`N_JUDGED`,) whether that is known.
    labels
        (`N_JUDGED`,) 1 for abnormal.
    has_label
        (`N_JUDGED`,) whether that may be used.
    """

    collection: str
    images: torch.Tensor
    masks: torch.Tensor
    has_mask: torch.Tensor
    labels: torch.Tensor
    has_label: torch.Tensor


class Episodes:
    """An endless draw of episodes from a pool.

    Parameters
    ----------
    pool
        The collections.
    seed
        Of all draws.
    labels
        Whether real lesions, their masks and labels are used; without, every lesion is drawn.
    """

    def __init__(self, pool: Pool, seed: int = 0, labels: bool = True) -> None:
        self.pool, self.labels = pool, labels
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Episode:
        """The next one."""
        while True:
            name = str(self.rng.choice(list(self.pool.share), p=list(self.pool.share.values())))
            collection = self.pool.collections[name]
            unmasked = not collection.abnormal  # photographs of anything
            windows = 0.3 if unmasked and not collection.windows else 0.15 * (self.labels and bool(collection.masked))
            cut = collection.windows or self.rng.random() < windows
            found = self._windows(collection) if cut else self._whole(collection)
            if found is not None:
                return found

    def _whole(self, c: Collection) -> Episode:
        """References are other normal images; judged: a drawn lesion, an abnormal image, a normal one, either."""
        rng, real = self.rng, bool(c.abnormal) and self.labels
        anchor = int(rng.choice(c.abnormal if real else c.normal))
        first = c.near(anchor, c.normal, rng)[0]
        alone = len(c.normal) < 4 or (not real and rng.random() < 0.25)
        references = [first] if alone else [first, *c.near(first, c.normal, rng, N_NORMAL - 1, without=(anchor,))]
        if len(c.normal) - len(set(references)) < 3:
            references = [first]
        drawn_on, third, fourth = c.near(first, c.normal, rng, 3, without=tuple(references))
        references = (references * N_NORMAL)[:N_NORMAL]
        if not real:
            if rng.random() < 0.3 and len(set(references)) == 1:
                drawn_on = first
            second = anchor if anchor not in references else drawn_on
            return self._episode(c, references, [drawn_on, second, third, fourth], [0, 1], [1, 1, 0, 0])
        another = c.near(anchor, c.abnormal, rng)[0] if rng.random() < 0.5 else None
        judged = [drawn_on, anchor, third, fourth if another is None else another]
        labels = [1, 1, 0, int(another is not None)]
        known = [True, c.has_mask[anchor], True, another is None or c.has_mask[another]]
        use = [True, c.labelled, True, another is None or c.labelled]
        return self._episode(c, references, judged, [0], labels, known, use)

    def _windows(self, c: Collection) -> Episode | None:
        """The same of windows without and with a lesion; None where no such window was found."""
        rng, real = self.rng, bool(c.masked) and self.labels
        side = c.fields.shape[-1]
        size = int(rng.integers(round(SMALLEST_WINDOW * side), round(LARGEST_WINDOW * side)))
        sources = c.masked or list(range(len(c.fields)))
        anchor, same = int(rng.choice(sources)), rng.random() < 0.5

        def clean() -> torch.Tensor | None:
            return self._window(c.fields[anchor if same else int(rng.choice(sources))], size, lesion=False)

        first = self._window(c.fields[anchor], size, lesion=False)
        references = [first, *(clean() for _ in range(N_NORMAL - 1))]
        judged = [clean(), self._window(c.fields[anchor], size, lesion=real), clean(), clean()]
        if any(window is None for window in references + judged):
            return None
        return self._episode(c, references, judged, [0] if real else [0, 1], [1, 1, 0, 0])

    def _window(self, field: torch.Tensor, size: int, lesion: bool) -> torch.Tensor | None:
        """A random window of a (4, S, S) field with part of its lesion in it, or without any but not empty."""
        rng, side, mask = self.rng, field.shape[-1], field[3] > 127
        bright = field[:3].float().mean(0) > 8
        for _ in range(12):
            if lesion:
                rows, columns = mask.nonzero(as_tuple=True)
                k = int(rng.integers(len(rows)))
                shift = rng.integers(size // 4, 3 * size // 4 + 1, 2)
                y, x = (
                    int(np.clip(int(p[k]) - s, 0, side - size)) for p, s in zip((rows, columns), shift, strict=True)
                )
            else:
                y, x = (int(rng.integers(0, side - size + 1)) for _ in range(2))
            covered = float(mask[y : y + size, x : x + size].float().mean())
            shown = float(bright[y : y + size, x : x + size].float().mean())
            if (0.01 < covered < 0.8) if lesion else (covered < 0.0005 and shown > 0.6):
                cut = field[None, :, y : y + size, x : x + size].float()
                large = F.interpolate(cut, (side, side), mode="bilinear", antialias=True, align_corners=False)
                return large[0].round().clamp(0, 255).to(torch.uint8)
        return None

    def _episode(
        self,
        c: Collection,
        references: Sequence[int | torch.Tensor | None],
        judged: Sequence[int | torch.Tensor | None],
        drawn: Sequence[int],
        labels: Sequence[int],
        known: Sequence[bool] = (True,) * N_JUDGED,
        use: Sequence[bool] = (True,) * N_JUDGED,
    ) -> Episode:
        """References are half of the time taken as they are, as in a fit; judged images are moved and re-exposed."""
        chosen = [c.fields[i] if isinstance(i, int) else cast(torch.Tensor, i) for i in (*references, *judged)]
        stack = torch.stack(chosen).float() / 255
        views = normal_views(stack, 2 * len(stack), self.generator)[len(stack) :]
        as_they_are = torch.from_numpy(self.rng.random(N_NORMAL) < 0.5)
        views[:N_NORMAL][as_they_are] = stack[:N_NORMAL][as_they_are]
        of_first = normal_views(views[:1, :3], 1 + N_VIEWS, self.generator)[1:]
        images = torch.cat([views[:N_NORMAL, :3], of_first, views[N_NORMAL:, :3]])
        masks = (views[N_NORMAL:, 3] > 0.3).float()
        for k in drawn:
            largest = SELDOM_LARGER if self.rng.random() < 0.3 else LARGEST_LESION
            place = N_NORMAL + N_VIEWS + k
            lesion, mask = add_lesions(images[place : place + 1], self.generator, largest)
            images[place], masks[k] = lesion[0], mask[0]
        images, masks = change_appearance(images, masks, self.rng, self.generator)
        return Episode(c.name, images, masks, torch.tensor(known), torch.tensor(labels), torch.tensor(use))
