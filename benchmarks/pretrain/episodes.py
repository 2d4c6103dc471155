"""One-shot episodes over the pool: a normal reference image, and others of the same collection to judge against it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.data import Item, load, read_manifest
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones.medvae import LatentSpace
from oneshot_medad.images.augment import normal_views
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.synthesis.deviation import N_TIMES, draw_noise
from oneshot_medad.synthesis.lesions import MIN_CHANGE, add_lesions
from oneshot_medad.synthesis.masks import blob_masks, local_contrast
from oneshot_medad.training.cache import Batch, Encoded
from oneshot_medad.training.joint import JointModel

Draw = Callable[[torch.Tensor, torch.Generator, float], tuple[torch.Tensor, torch.Tensor]]

SHARES = {"brisc": 1.5, "fracatlas": 1.0, "fundus": 0.7, "covidx": 1.2, "lungct": 0.5, "spine": 0.5}
"""How often each collection is drawn; in dermoscopy every image holds a lesion, so nothing normal could be shown."""

LABELLED = ("covidx", "fundus", "lungct")
"""Collections whose image labels are used. Normal and abnormal brain images come from different sources: masks only."""


@dataclass(frozen=True)
class Truth:
    """What is known of the judged images of E episodes.

    Attributes
    ----------
    masks
        (3·E, H, W) lesion masks, any resolution.
    has_mask
        (3·E,) whether that mask is known.
    labels
        (3·E,) 1 for abnormal.
    has_label
        (3·E,) whether that label may be used.
    """

    masks: torch.Tensor
    has_mask: torch.Tensor
    labels: torch.Tensor
    has_label: torch.Tensor


@dataclass(frozen=True)
class Episodes:
    """A batch of E episodes of four images each: reference, drawn lesion, abnormal, normal.

    Attributes
    ----------
    images
        (4·E, 3, S, S) in [0, 1], episode by episode.
    clean
        (E, 3, S, S): each second image as it was before the lesion was drawn.
    truth
        Masks and labels of the judged three of each.
    """

    images: torch.Tensor
    clean: torch.Tensor
    truth: Truth


class Pool:
    """The images and masks of the pool as fields in memory, and the neighbours that references are chosen from.

    Parameters
    ----------
    data
        Folder of ``MANIFEST.csv``.
    side
        Side of a field.
    embed
        From (B, 3, S, S) images to (B, D) embeddings; references are mostly drawn among images that look alike.
    seed
        Of all draws.
    limit
        Images taken of each class of each collection; None takes all.
    deviate
        Another way than `add_lesions` to draw a lesion, with its arguments and results; used half of the time.
    """

    def __init__(
        self, data: str, side: int, embed, seed: int = 0, limit: int | None = None, deviate: Draw | None = None
    ) -> None:
        self.deviate = deviate
        self.items = [i for i in read_manifest(data, role="pool") if i.set in SHARES]
        if limit:
            groups: dict[tuple[str, str], list[Item]] = {}
            for item in self.items:
                groups.setdefault((item.set, item.kind), []).append(item)
            self.items = [item for group in groups.values() for item in group[:limit]]
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        with ThreadPoolExecutor(2) as executor:
            fields = list(executor.map(lambda item: _field(item, side), self.items))
        self.fields = torch.stack(fields)
        self.members = {
            name: {
                wanted: [k for k, i in enumerate(self.items) if i.set == name and (i.label == "abnormal") == wanted]
                for wanted in (False, True)
            }
            for name in SHARES
        }
        chunks = torch.arange(len(self.items)).split(32)
        embedded = F.normalize(torch.cat([embed(self.fields[c, :3].float() / 255) for c in chunks]).float(), dim=1)
        self.neighbours = {}
        for groups in self.members.values():
            normal = torch.tensor(groups[False])
            for k in groups[False] + groups[True]:
                order = normal[(embedded[normal] @ embedded[k]).argsort(descending=True)[:41]]
                self.neighbours[k] = [int(j) for j in order if j != k][:10]

    def _near(self, k: int) -> int:
        """A normal image of the same collection, mostly one that looks like image ``k``."""
        if self.rng.random() < 0.7:
            return int(self.rng.choice(self.neighbours[k]))
        return int(self.rng.choice(self.members[self.items[k].set][False]))

    def draw(self, count: int) -> Episodes:
        """``count`` episodes, each with its own collection, views and common change of appearance."""
        share = np.array(list(SHARES.values()))
        names = self.rng.choice(list(SHARES), size=count, p=share / share.sum())
        images, *truth = zip(*(self._one(str(name)) for name in names), strict=True)
        stacked = torch.stack(images)
        return Episodes(stacked[:, :4].flatten(0, 1), stacked[:, 4], Truth(*(torch.cat(part) for part in truth)))

    def _one(self, name: str) -> tuple[torch.Tensor, ...]:
        """Images, the clean one last, and the four parts of their truth, of one episode."""
        groups = self.members[name]
        real = bool(groups[True])
        anchor = int(self.rng.choice(groups[True] if real else groups[False]))
        reference = self._near(anchor)
        rows = [reference, self._near(reference), anchor, self._near(anchor)]
        stack = self.fields[rows].float() / 255
        views = normal_views(stack, 8, self.generator)[4:]
        images, masks = torch.cat([views[:, :3], views[1:2, :3]]), (views[1:, 3] > 0.3).float()
        drawn = [1] if real else [1, 2]  # without abnormal images of its own, a second drawn one
        for k in drawn:
            largest = 0.4 if self.rng.random() < 0.3 else 0.15
            draw = self.deviate if self.deviate and self.rng.random() < 0.5 else add_lesions
            lesion, mask = draw(images[k : k + 1], self.generator, largest)
            images[k], masks[k - 1] = lesion[0], mask[0]
        images, masks = self._appearance(images, masks)
        has_mask = not real or self.items[anchor].mask is not None
        has_label = not real or name in LABELLED
        return (
            images,
            masks,
            torch.tensor([True, has_mask, True]),
            torch.tensor([1.0, 1.0, 0.0]),
            torch.tensor([True, has_label, True]),
        )

    def _appearance(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What differs between modalities and sites: orientation, window, gamma, polarity, shading, texture, sharpness,
        speckle.

        Texture changes by a random convolution, the same for all images of an episode (Xu et al. 2021).
        """
        rng, size = self.rng, images.shape[-2:]
        if rng.random() < 0.3:
            turns = int(rng.integers(4))
            images, masks = torch.rot90(images, turns, (2, 3)), torch.rot90(masks, turns, (1, 2))
        if rng.random() < 0.4:
            images = images.clamp(0, 1) ** float(np.exp(rng.uniform(-0.7, 0.7)))
        if rng.random() < 0.3:
            low, high = rng.uniform(-0.2, 0.25), rng.uniform(0.7, 1.1)
            images = ((images - low) / (high - low)).clamp(0, 1)
        if rng.random() < 0.12:
            images = 1 - images
        if rng.random() < 0.2:
            slope = torch.randn(1, 1, 3, 3, generator=self.generator)
            shade = F.interpolate(slope, size, mode="bicubic", align_corners=True)
            images = (images * (rng.uniform(0.1, 0.4) * shade).exp()).clamp(0, 1)
        if rng.random() < 0.25:
            images = self._convolved(images, int(rng.choice([1, 3, 5])), rng.uniform(0.2, 0.9))
        if rng.random() < 0.3:
            images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        if rng.random() < 0.2:
            coarse = int(rng.integers(3 * size[0] // 8, 3 * size[0] // 4))
            images = F.interpolate(images, (coarse, coarse), mode="bilinear", antialias=True)
            images = F.interpolate(images, size, mode="bilinear")
        if rng.random() < 0.2:
            speckle = torch.randn(1, 1, *size, generator=self.generator)
            images = (images * (1 + rng.uniform(0.02, 0.15) * speckle)).clamp(0, 1)
        return images, masks

    def _convolved(self, images: torch.Tensor, side: int, share: float) -> torch.Tensor:
        """Images mixed with what a random convolution makes of them, with the range they had together."""
        kernel = torch.randn(3, 3, side, side, generator=self.generator) / (3 * side * side) ** 0.5
        found = F.conv2d(F.pad(images, [side // 2] * 4, mode="reflect"), kernel)
        mixed = images.lerp((found - found.mean()) / found.std() * images.std() + images.mean(), share)
        low, high = mixed.amin(), mixed.amax()
        return images.amin() + (mixed - low) / (high - low).clamp(min=1e-6) * (images.amax() - images.amin())


@torch.no_grad()
def deviated(
    model: JointModel, latents: LatentSpace, images: torch.Tensor, generator: torch.Generator, largest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lesions from the deviation network: the images plus what its predicted deviation changes in the decoded ones.

    Takes (B, 3, H, W) images and returns them with lesions and (B, H, W) masks, like `add_lesions`, which draws instead
    where a deviation can hardly be seen.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(images.device)):
        z = latents.encode(images).float()
        content = local_contrast(images, (z.shape[-2], z.shape[-1]))
        mask = blob_masks(content, generator, max_area=largest)
        t = torch.randint(N_TIMES // 4, N_TIMES, (len(z),), generator=generator)
        noise = draw_noise(z, model.recipe.deviations, generator)
        normal = Encoded(z, [], content, torch.zeros_like(mask))
        z_anom, _ = model.synthesise(Batch(normal, normal, None, mask, t, noise))
        change = latents.decode(z_anom) - latents.decode(z)
    changed = (images + change.float()).clamp(0, 1)
    difference = (changed - images).abs().mean(1)
    masks = F.interpolate(mask[:, None], images.shape[-2:], mode="nearest")[:, 0] * (difference > 0.02)
    area = masks.flatten(1).sum(1)
    faint = ((difference * masks).flatten(1).sum(1) < MIN_CHANGE * area) | (area < 0.002 * masks[0].numel())
    if faint.any():
        changed[faint], masks[faint] = add_lesions(images[faint], generator, largest)
    return changed, masks


def _field(item: Item, side: int) -> torch.Tensor:
    """(4, side, side) uint8: the image and its lesion mask."""
    image = to_field(load(item.path).float() / 255, side)
    mask = torch.zeros(1, side, side)
    if item.mask:
        with Image.open(item.mask) as file:
            lesion = torch.from_numpy(np.asarray(file.convert("1")).copy()).float()
        mask = (to_field(lesion[None].expand(3, -1, -1), side)[:1] > 0.4).float()
    return (torch.cat([image, mask]) * 255).round().to(torch.uint8)


def episode_loss(probability: torch.Tensor, truth: Truth, calibration: torch.Tensor) -> dict[str, torch.Tensor]:
    """Focal and dice where a mask is known, cross-entropy of the map's highest 2 % where a label is.

    Parameters
    ----------
    probability
        (3·E, h, w) abnormality maps.
    truth
        Of the images they were made from.
    calibration
        (2,) learned scale and shift of the image score's logit.
    """
    size = probability.shape[-2:]
    covered = F.adaptive_avg_pool2d(truth.masks[:, None], size)[:, 0]
    masks = (covered > (0.5 * covered.amax((1, 2), keepdim=True)).clamp(max=0.25)).float()
    known, shown = truth.has_mask, truth.has_mask & (masks.flatten(1).sum(1) > 0)
    flat = probability.flatten(1)
    highest = flat.topk(round(0.02 * flat.shape[1]), dim=1).values.mean(1).clamp(1e-4, 1 - 1e-4)
    logit = calibration[0] * highest.logit() + calibration[1]
    labelled = truth.has_label
    return {
        "focal": focal_loss(probability[known], masks[known]),
        "dice": dice_loss(probability[shown], masks[shown]),
        "image": F.binary_cross_entropy_with_logits(logit[labelled], truth.labels[labelled]),
    }
