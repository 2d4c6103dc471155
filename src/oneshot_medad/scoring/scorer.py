"""All branches of a fitted detector, and their fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad._runtime import Drawing
from oneshot_medad.backbones.kinds import similarity
from oneshot_medad.config import Recipe
from oneshot_medad.evaluation import auroc
from oneshot_medad.nn.adapters import Judged, highest
from oneshot_medad.nn.matching import Match, References, match
from oneshot_medad.nn.pose import POSES, layout, pose_numbers
from oneshot_medad.scoring.distances import LEAST, Subspace, distance_map, distance_score
from oneshot_medad.scoring.stored import loose, stored_references, stored_subspace
from oneshot_medad.synthesis.deviation import N_TIMES
from oneshot_medad.training.cache import Encoded, Views
from oneshot_medad.training.joint import JointModel, Shapes

EXACT = ("offsets", "weights", "spread", "latent_spread", "positions", "subspace.")
"""Beginnings of the names of what is stored in full precision."""

HEADROOM = {"clip": (1.75, 2.0), "latent": (1.75, 2.0), "distance": (1.1, 0.4), "deviation": (1.0, 1.0)}
"""How far nine of ten further normal images lie above views of the fit's own, in each branch's unit: with one normal
image, and with very many. Typical of head CT, chest radiographs and lung ultrasound."""
RETURN = 0.5
"""A learned branch has its zero between normal and abnormal, and a lone normal image that seems uncommonly normal says
more of itself than of others: they are expected that share of its logit closer to zero."""
MOST_HEADROOM = 5.0

WHOLE = 2.0
"""The image as a whole counts double what the training on its pool gave it: outside the pool it is steadier."""

Found = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Of each branch a (B, h, w) map and (B,) scores in one unit: logits, or logarithms of distances."""


class Scorer(nn.Module):
    """All branches of a fitted detector and their fusion.

    Parameters
    ----------
    model
        The trained parts.
    text
        (2, D) text features, computed once.
    references
        Vision features of the reference views and their spread; None if no branch compares.
    latent
        The same of their projected latents, for a recipe whose latent branch compares.
    subspace
        Of the normal views' features, for a recipe with distances.
    kinds
        (V, D) `Backbone.kind` of the same views; None judges every image as if it were of their kind.
    layouts
        (P, K, L) of some normal images in all `POSES`; None or no K tells nothing of how an image lies.
    n_images
        Number of normal images.

    Notes
    -----
    All but `EXACT` is rounded to half precision here, so that a stored detector of half the size gives the same bits.
    """

    text: torch.Tensor
    kinds: torch.Tensor
    layouts: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor
    n_images: torch.Tensor
    sha256: str = ""
    "`fingerprint` of the fitted detector, once it has been asked for."

    def __init__(
        self,
        model: JointModel,
        text: torch.Tensor,
        references: References | None = None,
        latent: References | None = None,
        subspace: Subspace | None = None,
        kinds: torch.Tensor | None = None,
        layouts: torch.Tensor | None = None,
        n_images: int = 1,
    ) -> None:
        super().__init__()
        self.recipe: Recipe = model.recipe
        self.model = model
        self.register_buffer("text", text)
        self.register_buffer("kinds", torch.zeros(0, 1) if kinds is None else kinds)
        self.register_buffer("layouts", torch.zeros(len(POSES), 0, 1) if layouts is None else layouts)
        for prefix, found in (("", references), ("latent_", latent)):
            if found is not None:
                if found.positions is not None:
                    self.register_buffer("positions", found.positions)
                self.register_buffer(f"{prefix}spread", found.spread)
                for level, values in enumerate(found.levels):
                    self.register_buffer(f"{prefix}reference{level}", values.contiguous())
        self.subspace = subspace
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if not name.startswith(EXACT):
                    tensor.copy_(tensor.half())
        self.register_buffer("n_images", torch.tensor(float(n_images)))
        self.register_buffer("offsets", torch.zeros(len(self.recipe.branches)))
        self.register_buffer("weights", torch.ones(len(self.recipe.branches)) / len(self.recipe.branches))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Everything a prediction depends on, ready to be stored: half precision but for `EXACT`."""
        return {k: v.cpu() if k.startswith(EXACT) else v.cpu().half() for k, v in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, recipe: Recipe, shapes: Shapes, tensors: dict[str, torch.Tensor]) -> Scorer:
        """The scorer whose `to_tensors` is ``tensors``.

        Raises
        ------
        ValueError
            A tensor that is missing, too much, or of another shape or type than recipe and shapes call for.
        """
        for name, tensor in tensors.items():
            wanted = torch.float32 if name.startswith(EXACT) else torch.float16
            if tensor.dtype != wanted:
                raise ValueError(f"{name} is {tensor.dtype}; wanted {wanted}")
        references = stored_references(tensors, "", shapes) if recipe.compares else None
        latent = (
            stored_references(tensors, "latent_", shapes) if recipe.context and "latent" in recipe.branches else None
        )
        subspace = stored_subspace(tensors, shapes) if "distance" in recipe.branches else None
        kinds, layouts = loose(tensors, "kinds", 2), loose(tensors, "layouts", 3)
        with Drawing(0):  # values that are read over
            model = JointModel(recipe, shapes)
        scorer = cls(model, torch.zeros(2, shapes.embed_dim), references, latent, subspace, kinds, layouts)
        try:
            scorer.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return scorer

    def references(self, prefix: str = "") -> References | None:
        """What vision features, or with ``latent_`` projected latents, are compared with."""
        named = dict(self.named_buffers(recurse=False))
        if f"{prefix}spread" not in named:
            return None
        levels = [named[f"{prefix}reference{i}"] for i in range(len(self.model.shapes.levels))]
        return References(levels, named[f"{prefix}spread"], named.get("positions"))

    @property
    def span(self) -> tuple[float, float] | None:
        """Positions of the first and the last slice that a slice of a volume can be compared with; None for images."""
        known = dict(self.named_buffers(recurse=False)).get("positions")
        return None if known is None else (float(known.min()), float(known.max()))

    @torch.no_grad()
    def branches(
        self,
        z: torch.Tensor | None,
        features: list[torch.Tensor],
        mirrored: list[torch.Tensor] | None = None,
        positions: torch.Tensor | None = None,
        apart: bool = False,
    ) -> Found:
        """Map, on the latent grid, and image scores of every branch.

        ``z`` may be None if no branch reads it; the features of the mirror images are needed if the recipe says so.
        ``positions`` (B,) are those of slices in their volumes, NaN where they are not known: a slice is compared with
        references near its own position (``apart`` from those at just this one), if these have any. A detector of
        slices scores by the highest places alone: as a whole, slices differ more by where they were cut than by health.
        """
        near = positions, apart
        found = _each(self._of_pairs, [*features, *(mirrored or [])], self.references(), *near)
        if z is not None and "latent" in self.recipe.branches:
            found |= _each(self._of_latents, self.model.projection(z), self.references("latent_"), *near)
        if z is not None and "deviation" in self.recipe.branches:
            maps = self._deviation(z).clamp(min=LEAST).log()
            found["deviation"] = maps, highest(maps, self.recipe.top_fraction)
        size = (self.model.shapes.grid, self.model.shapes.grid)
        for branch, (maps, scores) in found.items():
            maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
            found[branch] = maps, highest(maps, self.recipe.top_fraction) if self.span else scores
        return found

    def _of_latents(self, projected: list[torch.Tensor], references: References | None) -> Found:
        return {"latent": self._learned("latent", self.model.judge("latent", projected, self.text, references))}

    def _of_pairs(self, features: list[torch.Tensor], references: References | None) -> Found:
        """The same, averaged with what the mirror images say whose levels may follow those of the images."""
        levels = len(self.model.shapes.levels)
        found = self._of_features(features[:levels], references)
        if len(features) > levels:
            for branch, (maps, scores) in self._of_features(features[levels:], references).items():
                maps_before, scores_before = found[branch]
                found[branch] = (maps_before + maps.flip(-1)) / 2, (scores_before + scores) / 2
        return found

    def _of_features(self, features: list[torch.Tensor], references: References | None) -> Found:
        """The branches that read vision features; what they compare with is looked up once."""
        matches = None
        if references is not None:
            matches = [match(f, r) for f, r in zip(features, references.levels, strict=True)]
        found: Found = {}
        if "clip" in self.recipe.branches:
            found["clip"] = self._learned("clip", self.model.judge("clip", features, self.text, references, matches))
        if "distance" in self.recipe.branches:
            found["distance"] = self._distance(features, references, matches)
        return found

    def _learned(self, branch: str, judged: Judged) -> tuple[torch.Tensor, torch.Tensor]:
        adapters = self.model.adapters[branch]
        score = adapters.image_logit(judged, self.recipe.top_fraction, WHOLE)  # type: ignore[operator]
        return adapters.map_logit(judged), score  # type: ignore[operator]

    def _distance(
        self, features: Sequence[torch.Tensor], references: References | None, matches: Sequence[Match] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert references is not None
        assert matches is not None
        assert self.subspace is not None
        maps = distance_map(matches, references, self.subspace(features), self.n_images.round())
        return maps.clamp(min=LEAST).log(), distance_score(maps)

    def _deviation(self, z: torch.Tensor) -> torch.Tensor:
        """Mean square deviation that the network predicts for the untouched latent, over all timesteps."""
        total = torch.zeros(len(z), *z.shape[-2:], device=z.device)
        for t in range(0, N_TIMES, 3):
            total += self.model.unet(z, torch.full((len(z),), t, device=z.device)).square().mean(dim=1)
        return total

    @property
    def knows_kind(self) -> bool:
        """Whether `similarity` has anything to compare with."""
        return len(self.kinds) > 0

    @torch.no_grad()
    def similarity(self, kinds: torch.Tensor) -> torch.Tensor:
        """(B,) `kinds.similarity` between the kind of (B, D) images and the closest reference view; 1 without any."""
        if not self.knows_kind:
            return torch.ones(len(kinds), device=kinds.device)
        return similarity(kinds, self.kinds).amax(dim=1)

    @torch.no_grad()
    def poses(self, features: list[torch.Tensor], mirrored: list[torch.Tensor] | None = None) -> list[str]:
        """How each of B images lies beside the normal ones, one of `POSES`; empty for as they do."""
        return [POSES[i] for i in self.pose_numbers(features, mirrored).tolist()]

    def pose_numbers(self, features: list[torch.Tensor], mirrored: list[torch.Tensor] | None = None) -> torch.Tensor:
        """(B,) places in `POSES`."""
        if not self.layouts.shape[1]:
            return torch.zeros(len(features[0]), dtype=torch.long, device=features[0].device)
        return pose_numbers(self.layouts, *(layout(seen) for seen in (features, mirrored) if seen is not None))

    @torch.no_grad()
    def calibrate(
        self, views: Views, device: torch.device, trust: dict[str, float] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fix offsets and weights on the held-out views; return their fused (normal, lesion) image scores.

        A branch counts with the recipe's weight, times ``trust``, times the square of how well it separates the two,
        2·AUROC − 1. The whole is shifted and scaled so that the median normal view scores 0, and 1 is what nine of ten
        further normal images are expected to stay below (`HEADROOM`).
        """
        # views of slices stand for slices of other volumes, whose own image is not among the references
        normal = self.branches(*_inputs(views.held_normal, device), apart=True)
        lesion = self.branches(*_inputs(views.held_lesion, device), apart=True)
        weights = []
        for i, (branch, weight) in enumerate(self.recipe.branches.items()):
            low, high = normal[branch][1].cpu(), lesion[branch][1].cpu()
            self.offsets[i] = low.median()
            labels = [0] * len(low) + [1] * len(high)
            parted = max(0.0, 2 * auroc(labels, torch.cat([low, high]).numpy()) - 1) ** 2
            weights.append(weight * (trust or {}).get(branch, 1.0) * parted)
        if sum(weights) < 1e-6:
            weights = list(self.recipe.branches.values())
        headroom = 0.0
        for branch, weight, offset in zip(self.recipe.branches, weights, self.offsets.tolist(), strict=True):
            one, many = HEADROOM[branch]
            if branch in self.model.adapters:
                one = min(max(one - RETURN * offset, 1.0), MOST_HEADROOM)
            headroom += weight * (many + (one - many) / views.n_images)
        self.weights.copy_(torch.tensor(weights) / headroom)
        self.offsets += self.fuse(normal)[0].median() / self.weights.sum()
        return self.fuse(normal)[0], self.fuse(lesion)[0]

    def fuse(self, found: Found) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) scores and (B, h, w) heatmaps: weighted sums over the branches.

        A heatmap is shifted so that the mean of its highest ``top_fraction`` is the image's score: what branches say of
        the image as a whole raises or lowers all of it.
        """
        pairs = [found[branch] for branch in self.recipe.branches]
        maps = sum(w * (m - o) for (m, _), w, o in zip(pairs, self.weights, self.offsets, strict=True))
        scores = sum(w * (s - o) for (_, s), w, o in zip(pairs, self.weights, self.offsets, strict=True))
        assert isinstance(maps, torch.Tensor)
        assert isinstance(scores, torch.Tensor)
        return scores, maps + (scores - highest(maps, self.recipe.top_fraction))[:, None, None]

    def forward(
        self,
        z: torch.Tensor | None,
        features: list[torch.Tensor],
        mirrored: list[torch.Tensor] | None = None,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) scores and (B, h, w) heatmaps; higher is more abnormal. See `branches`."""
        return self.fuse(self.branches(z, features, mirrored, positions))


def _each(
    compute: Callable[[list[torch.Tensor], References | None], Found],
    features: list[torch.Tensor],
    references: References | None,
    positions: torch.Tensor | None,
    apart: bool,
) -> Found:
    """What is found in a batch at once, or image by image where each is compared with references near its position."""
    if positions is None or references is None or references.positions is None:
        return compute(features, references)
    parts = [
        compute([f[i : i + 1] for f in features], references.near(float(p), apart)) for i, p in enumerate(positions)
    ]
    return {
        branch: (torch.cat([part[branch][0] for part in parts]), torch.cat([part[branch][1] for part in parts]))
        for branch in parts[0]
    }


def _inputs(views: Encoded, device: torch.device) -> tuple[Any, Any, Any, Any]:
    there = views.to(device)
    return there.z, there.features, there.mirrored, there.positions
