"""What the frozen networks give for the views of a fit, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F

from oneshot_medad.backbones import Backbone
from oneshot_medad.config import Recipe
from oneshot_medad.images.augment import normal_views
from oneshot_medad.nn.adapters import pooled
from oneshot_medad.nn.matching import Match, References, match
from oneshot_medad.nn.pose import known_poses, layout
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES
from oneshot_medad.synthesis.deviation import N_TIMES, draw_noise
from oneshot_medad.synthesis.lesions import add_lesions
from oneshot_medad.synthesis.masks import blob_masks, local_contrast

ENCODE_BATCH = 8
MOST_REFERENCES = 16
"""Images that others are compared with; of more, the most different ones."""
MOST_SLICES = 32
"""The same for slices of volumes, each of which is compared with those near its position alone."""
COVER = 3.0
"""How much more than what they show counts where slices lie, when those to compare with are chosen."""
TURNED = 4
"""Images of which turned copies are encoded."""
_Indexed = TypeVar("_Indexed", torch.Tensor, "Encoded")


@dataclass(frozen=True)
class Encoded:
    """Views as the trained parts see them, on the CPU.

    Attributes
    ----------
    z
        (V, C, h, w) standardised latents.
    features
        (V, C_l, h_l, w_l) standardised vision features of each level.
    content
        (V, h, w) local contrast: where an anomaly may be placed.
    mask
        (V, h, w), 1 where a lesion was drawn.
    matches
        What `match` finds among the reference views at each level, if it was looked up.
    kinds
        (V, D) what kind of image each is, from `Backbone.kind`.
    mirrored
        Like ``features``, of the mirror images; None where nobody asked for them.
    positions
        (V,) where along its volume the slice behind each view lies; None where not all are slices of volumes.
    """

    z: torch.Tensor
    features: list[torch.Tensor]
    content: torch.Tensor
    mask: torch.Tensor
    matches: list[Match] | None = None
    kinds: torch.Tensor | None = None
    mirrored: list[torch.Tensor] | None = None
    positions: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: torch.Tensor | slice) -> Encoded:
        matches = [m[index] for m in self.matches] if self.matches is not None else None
        return replace(self._each(lambda x: x[index]), matches=matches)

    def to(self, device: torch.device) -> Encoded:
        """The same on another device."""
        moved = self._each(lambda x: x.to(device))
        return replace(moved, matches=[m.to(device) for m in self.matches] if self.matches is not None else None)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Encoded:
        features = [change(f) for f in self.features]
        kinds = change(self.kinds) if self.kinds is not None else None
        mirrored = [change(f) for f in self.mirrored] if self.mirrored is not None else None
        positions = change(self.positions) if self.positions is not None else None
        z, content, mask = map(change, (self.z, self.content, self.mask))
        return Encoded(z, features, content, mask, None, kinds, mirrored, positions)


class OnDemand:
    """Views that are encoded when they are first asked for: a short training draws half of them.

    Parameters
    ----------
    count
        Number of views.
    encode
        From numbers of views to what `Encoded` holds of these.
    """

    def __init__(self, count: int, encode: Callable[[torch.Tensor], Encoded]) -> None:
        self._count, self._encode = count, encode
        self._known: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: torch.Tensor) -> Encoded:
        wanted = index.tolist()
        new = sorted(set(wanted) - self._known.keys())
        if new:
            found = self._encode(torch.tensor(new))
            self._known |= {k: found[i : i + 1] for i, k in enumerate(new)}
        return join([self._known[k] for k in wanted])


def join(parts: list[Encoded]) -> Encoded:
    """One `Encoded` of all views in order, with their matches where all have some."""
    features, mirrored = (
        [torch.cat(level) for level in zip(*seen, strict=True)]
        for seen in ([p.features for p in parts], [p.mirrored or [] for p in parts])
    )
    z, content, mask = (torch.cat(seen) for seen in zip(*((p.z, p.content, p.mask) for p in parts), strict=True))
    matches = [Match.join(level) for level in zip(*(p.matches or [] for p in parts), strict=True)]
    return Encoded(z, features, content, mask, matches or None, mirrored=mirrored or None)


def encode(
    backbone: Backbone,
    images: torch.Tensor,
    masks: torch.Tensor | None = None,
    size: tuple[int, int] | None = None,
    mirror: bool = False,
) -> Encoded:
    """Run the frozen networks once over (V, 3, S, S) images with optional (V, S, S) lesion masks.

    With the ``size`` of the latent grid the autoencoder is left out, and the latents have no channels. ``mirror`` adds
    the features of the mirror images.
    """
    device = backbone.device
    z, levels, kinds, mirrored = [], [], [], []
    with torch.no_grad():
        for chunk in images.split(ENCODE_BATCH):
            there = chunk.to(device)
            z.append(backbone.latents.encode(there).cpu() if size is None else chunk.new_zeros(len(chunk), 0, *size))
            features = backbone.vision(there)
            levels.append([f.cpu() for f in features])
            kinds.append(backbone.kind(features).cpu())
            if mirror:
                mirrored.append([f.cpu() for f in backbone.vision(there.flip(-1))])
    latent = torch.cat(z)
    size = (latent.shape[-2], latent.shape[-1])
    if masks is None:
        mask = torch.zeros(len(images), *size)
    else:
        covered = F.adaptive_avg_pool2d(masks[:, None], size)[:, 0]
        enough = (0.5 * covered.amax((1, 2), keepdim=True)).clamp(max=0.25)  # the smallest lesion keeps a cell
        mask = (covered > enough).float()
    features, others = ([torch.cat(f) for f in zip(*seen, strict=True)] for seen in (levels, mirrored))
    return Encoded(latent, features, local_contrast(images, size), mask, None, torch.cat(kinds), others or None)


@dataclass(frozen=True)
class Views:
    """The encoded views of one fit.

    Attributes
    ----------
    reference
        What others are compared with: the normal images themselves, with some views if there is but one.
    compared
        Its vision features with their spread; None for recipes that compare with nothing.
    normal, lesion
        What the loop trains on; ``lesion`` is encoded as it is drawn, and None for recipes without pixel lesions.
    held_normal, held_lesion
        Other views, kept from training to set the scale, the fusion and the threshold.
    turned
        (V, C_l, h_l, w_l) features of turned copies of some normal images at each level; None for recipes without
        distances.
    layouts
        (P, K, L) what lies where in some normal images in all `POSES`; None like ``turned``.
    n_images
        Number of normal images.
    """

    reference: Encoded
    compared: References | None
    normal: Encoded
    lesion: OnDemand | None
    held_normal: Encoded
    held_lesion: Encoded
    turned: list[torch.Tensor] | None
    layouts: torch.Tensor | None
    n_images: int


def make_views(
    backbone: Backbone,
    images: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    positions: torch.Tensor | None = None,
) -> Views:
    """Augment (K, 3, S, S) normal images, draw lesions, and encode everything once.

    ``positions`` (K,) are those of slices of volumes, None if not all are such.
    """
    k = len(images)
    if positions is not None:  # views are made of the first images first: let these lie all over the volume
        order = _scattered(positions)
        images, positions = images[order], positions[order]

    def views(count: int) -> torch.Tensor:
        """``count`` views without the images themselves."""
        return normal_views(images, k + count, generator)[k:]

    def encoded(pixels: torch.Tensor, masks: torch.Tensor | None = None, mirror: bool = False) -> Encoded:
        seen = encode(backbone, pixels, masks, size, mirror)
        return seen if positions is None else replace(seen, positions=positions[torch.arange(len(seen)) % k])

    trained, held = views(recipe.n_views), views(recipe.n_held)
    drawn = add_lesions(views(recipe.n_lesions), generator, recipe.max_area) if recipe.n_lesions else None
    held_drawn = add_lesions(held, generator, recipe.max_area)
    normal = encode(backbone, trained)
    # latents of others than the normal views are left out where no branch reads them
    size = None if recipe.reads_latents else (normal.z.shape[-2], normal.z.shape[-1])
    reference = encoded(images if k > 1 else normal_views(images, recipe.n_reference, generator))
    as_they_are = [f[: min(k, TURNED)] for f in reference.features]
    if k > (most := MOST_REFERENCES if positions is None else MOST_SLICES):
        points = pooled(reference.features)
        if positions is not None:
            points = torch.cat([_unit(points), COVER * _unit(positions[:, None])], dim=1)
        reference = replace(reference[_most_different(points, most)], kinds=reference.kinds)
    compared = References.of(reference.features, reference.positions) if recipe.compares else None

    def looked_up(seen: Encoded) -> Encoded:
        if compared is None or not (recipe.context and "clip" in recipe.branches):
            return seen
        return replace(seen, matches=[match(f, r) for f, r in zip(seen.features, compared.levels, strict=True)])

    lesion = None
    if drawn:
        pixels, masks = drawn
        lesion = OnDemand(len(pixels), lambda index: looked_up(encode(backbone, pixels[index], masks[index], size)))
    turned = layouts = None
    if "distance" in recipe.branches:
        some = images[:TURNED]
        turned = encoded(_turned(some)).features
        quarters = layout(turned).unflatten(0, (7, len(some)))[1::2]
        inverted = layout(encoded(1 - some).features)
        layouts = known_poses(torch.cat([layout(as_they_are)[None], quarters, inverted[None]]))
    return Views(
        reference,
        compared,
        looked_up(normal),
        lesion,
        encoded(held, mirror=recipe.mirror),
        encoded(*held_drawn, mirror=recipe.mirror),
        turned,
        layouts,
        k,
    )


def _turned(images: torch.Tensor) -> torch.Tensor:
    """(7·K, 3, S, S) images in all other orientations that are multiples of 45 degrees."""
    angles = torch.arange(1, 8) * torch.pi / 4
    copies = []
    for cos, sin in zip(angles.cos().tolist(), angles.sin().tolist(), strict=True):
        theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        copies.append(F.grid_sample(images, grid, mode="bilinear", align_corners=False))
    return torch.cat(copies)


def _scattered(positions: torch.Tensor) -> torch.Tensor:
    """An order of (K,) positions whose every beginning lies all over their range: steps of the golden section."""
    ranks = positions.argsort(stable=True).argsort(stable=True).double()
    return (ranks * 0.6180339887498949 % 1).argsort(stable=True)


def _unit(points: torch.Tensor) -> torch.Tensor:
    """(N, D) points moved and scaled so that their mean square is 1."""
    centred = points - points.mean(dim=0)
    return centred / centred.square().sum(dim=1).mean().sqrt().clamp(min=1e-6)


def _most_different(points: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of ``count`` of (N, D) points, each the one farthest from those before (greedy k-centre)."""
    chosen = [int(torch.cdist(points, points.mean(0, keepdim=True))[:, 0].argmin())]
    distance = torch.cdist(points, points[chosen])[:, 0]
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = distance.minimum(torch.cdist(points, points[chosen[-1:]])[:, 0])
    return torch.tensor(sorted(chosen))


@dataclass(frozen=True)
class Batch:
    """One training step's data and random draws.

    Attributes
    ----------
    reference, normal, lesion
        Encoded views; ``lesion`` may be None.
    compared
        As in `Views`.
    disturb_mask, t, noise
        m (B, h, w), t (B,) and ε (B, C, h, w) of the masked forward process; None without deviations.
    phrases
        (2, n) numbers of the phrases whose mean stands for each class in this step; None takes all.
    """

    reference: Encoded
    compared: References | None
    normal: Encoded
    lesion: Encoded | None
    disturb_mask: torch.Tensor | None
    t: torch.Tensor | None
    noise: torch.Tensor | None
    phrases: torch.Tensor | None = None

    def share(self, process: int, count: int) -> Batch:
        """What one of ``count`` processes takes of the batch."""

        def part(x: _Indexed | None) -> _Indexed | None:
            return x[process::count] if x is not None else None

        normal, mask, t, noise = self.normal[process::count], part(self.disturb_mask), part(self.t), part(self.noise)
        return Batch(self.reference, self.compared, normal, part(self.lesion), mask, t, noise, self.phrases)


def draw_batch(views: Views, recipe: Recipe, generator: torch.Generator, device: torch.device) -> Batch:
    """Draw ``batch_size`` normal views with their disturbances, and as many lesion views."""

    def pick(pool: Encoded | OnDemand) -> Encoded:
        return pool[torch.randint(len(pool), (recipe.batch_size,), generator=generator)]

    reference, normal = views.reference.to(device), pick(views.normal)
    compared = views.compared.to(device) if views.compared is not None else None
    lesion = pick(views.lesion).to(device) if views.lesion is not None else None
    phrases = None
    if recipe.n_phrases:
        counts = (len(NORMAL_PHRASES), len(ABNORMAL_PHRASES))
        drawn = [torch.randperm(count, generator=generator)[: recipe.n_phrases] for count in counts]
        phrases = torch.stack(drawn).to(device)
    if not recipe.deviations:
        return Batch(reference, compared, normal.to(device), lesion, None, None, None, phrases)
    mask = blob_masks(normal.content, generator, max_area=recipe.max_area)
    t = torch.randint(N_TIMES, (len(normal),), generator=generator)
    noise = draw_noise(normal.z, recipe.deviations, generator)
    return Batch(
        reference, compared, normal.to(device), lesion, mask.to(device), t.to(device), noise.to(device), phrases
    )
