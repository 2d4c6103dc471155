"""From features to one heatmap and one score: branches, and a fusion that is fixed at fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad._runtime import Drawing
from oneshot_medad.backbones import Backbone
from oneshot_medad.config import Recipe
from oneshot_medad.evaluation import auroc
from oneshot_medad.nn.head import as_rows
from oneshot_medad.synthesis.deviation import N_TIMES
from oneshot_medad.training.cache import Encoded, Views
from oneshot_medad.training.joint import JointModel, Shapes
from oneshot_medad.training.loop import train

BANK_SIZE = 8192
NEAREST_CAP = 0.5
"""Most of another patient lies far from the features of one: next to other branches, distance may add this much."""

EXACT = ("scale", "weights")
"""What is stored in full precision."""


class NearestBank(nn.Module):
    """Distance to the nearest local feature of the normal views (PatchCore, Roth et al. 2022).

    Parameters
    ----------
    reference
        (V, C_l, h_l, w_l) features of the normal views at each level; from more than `BANK_SIZE` places, every n-th is
        kept.
    """

    patches: torch.Tensor

    def __init__(self, reference: list[torch.Tensor]) -> None:
        super().__init__()
        patches = join_levels(reference).flatten(2).permute(0, 2, 1).flatten(0, 1)
        self.register_buffer("patches", patches[:: -(-len(patches) // BANK_SIZE)].contiguous(), persistent=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(B, h, w) Euclidean distances on the grid of the finest level."""
        patches = join_levels(features)
        b, c, h, w = patches.shape
        flat = patches.permute(0, 2, 3, 1).reshape(-1, c)
        half = 0.5 * self.patches.square().sum(dim=1)
        # |a − b|² = |a|² + 2·(|b|²/2 − a·b): one product, and a minimum without its place is the cheapest pass
        least = torch.cat([torch.addmm(half, c, self.patches.T, alpha=-1).amin(dim=1) for c in flat.split(1024)])
        return (flat.square().sum(dim=1) + 2 * least).clamp(min=0).sqrt().reshape(b, h, w)


@dataclass(frozen=True)
class Fitted:
    """A calibrated scorer, the losses of every step, and the image scores of the held-out normal and lesion views."""

    scorer: Scorer
    history: list[dict[str, float]]
    normal: torch.Tensor
    lesion: torch.Tensor


def fit_scorer(
    recipe: Recipe,
    backbone: Backbone,
    views: Views,
    generator: torch.Generator,
    init: str = "pretrained",
    progress: bool = False,
) -> Fitted:
    """Train on encoded views and fix scale and fusion: all of a fit that comes behind the frozen networks."""
    device, tower = backbone.device, backbone.text
    with Drawing(generator.initial_seed()):
        model = JointModel.build(recipe, backbone, views.normal, init).to(device)
    half = backbone.dtype == torch.bfloat16
    history = train(model, views, tower, generator, device, progress, half)
    with torch.no_grad():
        text = model.text_features(tower)
    scorer = Scorer.of_fit(model, text, views).to(device).eval()
    return Fitted(scorer, history, *scorer.calibrate(views, device))


def join_levels(features: list[torch.Tensor]) -> torch.Tensor:
    """The two finest levels, averaged over 3×3 neighbourhoods, on the finest grid."""
    size = features[0].shape[-2:]
    smooth = [F.avg_pool2d(f, 3, stride=1, padding=1, count_include_pad=False) for f in features[:2]]
    return torch.cat([F.interpolate(f, size, mode="bilinear", align_corners=False) for f in smooth], dim=1)


class Scorer(nn.Module):
    """All branches of a fitted detector and their fusion.

    Parameters
    ----------
    model
        The trained parts.
    text
        (2, D) text features, computed once.
    reference
        (V, C_l, h_l, w_l) vision features of the reference views at each level; empty if no branch compares.
    latent_rows
        (N_l, C_l) projected latents of the same views, for a recipe whose latent branch compares.
    gists
        (V, G) `VisionTower.with_gist` of the same views; None judges every image as if it were of their kind.

    Notes
    -----
    All of it is rounded to half precision here, so that a stored detector of half the size gives the same bits.
    """

    text: torch.Tensor
    gists: torch.Tensor
    scale: torch.Tensor
    weights: torch.Tensor
    sha256: str = ""
    "`fingerprint` of the fitted detector, once it has been asked for."

    def __init__(
        self,
        model: JointModel,
        text: torch.Tensor,
        reference: list[torch.Tensor],
        latent_rows: list[torch.Tensor],
        gists: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.recipe: Recipe = model.recipe
        self.model = model
        self.register_buffer("text", text)
        self.register_buffer("gists", torch.zeros(0, _gist_size(model.shapes)) if gists is None else gists)
        for name, levels in (("reference", reference), ("latent_rows", latent_rows)):
            for level, values in enumerate(levels):
                self.register_buffer(f"{name}{level}", values.contiguous())
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.copy_(tensor.half())
        for level, rows in enumerate(as_rows(reference)):
            self.register_buffer(f"rows{level}", rows.half().float(), persistent=False)
        self.bank = NearestBank(self._levels("reference")) if "nearest" in self.recipe.branches else None
        self.register_buffer("scale", torch.ones(len(self.recipe.branches), 2))
        self.register_buffer("weights", torch.ones(len(self.recipe.branches)))

    @classmethod
    def of_fit(cls, model: JointModel, text: torch.Tensor, views: Views) -> Scorer:
        """What a trained model needs of the reference views; `calibrate` must follow."""
        seen = views.reference
        reference = seen.features if model.recipe.compares else []
        return cls(model, text, reference, model.normal_rows(seen).get("latent", []), seen.gists)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Everything a prediction depends on, ready to be stored: half precision but for scale and weights."""
        return {k: v.cpu() if k in EXACT else v.cpu().half() for k, v in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, recipe: Recipe, shapes: Shapes, tensors: dict[str, torch.Tensor]) -> Scorer:
        """The scorer whose `to_tensors` is ``tensors``.

        Raises
        ------
        ValueError
            A tensor that is missing, too much, or of another shape or type than recipe and shapes call for.
        """
        for name, tensor in tensors.items():
            wanted = torch.float32 if name in EXACT else torch.float16
            if tensor.dtype != wanted:
                raise ValueError(f"{name} is {tensor.dtype}; wanted {wanted}")
        count = tensors["reference0"].shape[0] if "reference0" in tensors and tensors["reference0"].dim() else 0
        reference, latent_rows = [], []
        for level, (width, side) in enumerate(shapes.levels if recipe.compares else ()):
            reference.append(_expect(tensors, f"reference{level}", (count, width, side, side)))
            if recipe.context and "latent" in recipe.branches:
                latent_rows.append(_expect(tensors, f"latent_rows{level}", (count * side * side, width)))
        count = tensors["gists"].shape[:1].numel() if "gists" in tensors else 0
        gists = torch.zeros(count, _gist_size(shapes))
        with Drawing(0):  # values that are read over
            model = JointModel(recipe, shapes)
        scorer = cls(model, torch.zeros(2, shapes.embed_dim), reference, latent_rows, gists)
        try:
            scorer.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return scorer

    def _levels(self, name: str) -> list[torch.Tensor]:
        return [value for key, value in self.named_buffers(recurse=False) if key.startswith(name)]

    @torch.no_grad()
    def branch_maps(
        self, z: torch.Tensor | None, features: list[torch.Tensor], mirrored: list[torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Raw (B, h, w) map of every branch, on the latent grid.

        ``z`` may be None if no branch reads it; the features of the mirror images are needed if the recipe says so.
        """
        size = (self.model.shapes.grid, self.model.shapes.grid)
        maps = {}
        for branch in self.recipe.branches:
            if branch in ("clip", "nearest"):
                found = self._of_features(branch, features)
                if mirrored is not None:
                    found = (found + self._of_features(branch, mirrored).flip(-1)) / 2
            else:
                assert z is not None
                if branch == "deviation":
                    found = self._deviation(z)
                else:
                    rows = self._levels("latent_rows")
                    found = self.model.branch_map(branch, self.model.projection(z), rows, self.text)
            maps[branch] = F.interpolate(found[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return maps

    def _of_features(self, branch: str, features: list[torch.Tensor]) -> torch.Tensor:
        if branch == "clip":
            return self.model.branch_map(branch, features, self._levels("rows"), self.text)
        assert self.bank is not None
        return self.bank(features)

    def _deviation(self, z: torch.Tensor) -> torch.Tensor:
        """Mean square deviation that the network predicts for the untouched latent, over all timesteps."""
        total = torch.zeros(len(z), *z.shape[-2:], device=z.device)
        for t in range(0, N_TIMES, 3):
            total += self.model.unet(z, torch.full((len(z),), t, device=z.device)).square().mean(dim=1)
        return total

    @property
    def knows_kind(self) -> bool:
        """Whether `similarity` has anything to compare with."""
        return len(self.gists) > 0

    @torch.no_grad()
    def similarity(self, gists: torch.Tensor) -> torch.Tensor:
        """(B,) cosine between the kind of (B, G) images and that of the closest reference view; 1 without any."""
        if not self.knows_kind:
            return torch.ones(len(gists), device=gists.device)
        return (gists @ self.gists.T).amax(dim=1)

    def image_score(self, maps: torch.Tensor) -> torch.Tensor:
        """(B,) mean of the highest ``top_fraction`` of (B, h, w) maps."""
        flat = maps.flatten(1)
        return flat.topk(max(1, round(self.recipe.top_fraction * flat.shape[1])), dim=1).values.mean(dim=1)

    @torch.no_grad()
    def calibrate(self, views: Views, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Fix scale and fusion on the held-out views; return their fused (normal, lesion) image scores.

        Each branch is shifted and scaled so that the median normal view scores 0 and the median lesion view 1. Its
        weight is the recipe's trust in it times the square of how well it separates the two, 2·AUROC − 1.
        """
        normal = self.branch_maps(*_inputs(views.held_normal, device))
        lesion = self.branch_maps(*_inputs(views.held_lesion, device))
        for i, (branch, trust) in enumerate(self.recipe.branches.items()):
            low, high = self.image_score(normal[branch]).cpu(), self.image_score(lesion[branch]).cpu()
            gap = max(float(high.median() - low.median()), 0.25 * float(low.std()), 1e-6)
            self.scale[i] = torch.tensor([float(low.median()), gap])
            labels = [0] * len(low) + [1] * len(high)
            self.weights[i] = trust * max(0.0, 2 * auroc(labels, torch.cat([low, high]).numpy()) - 1) ** 2
        if float(self.weights.sum()) < 1e-6:
            self.weights.copy_(torch.tensor(list(self.recipe.branches.values())))
        self.weights /= self.weights.sum()
        return self.image_score(self.fuse(normal)), self.image_score(self.fuse(lesion))

    def fuse(self, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weighted mean of the scaled branch maps, (B, h, w)."""
        fused = torch.zeros_like(next(iter(maps.values())))
        for branch, (low, gap), weight in zip(self.recipe.branches, self.scale, self.weights, strict=True):
            scaled = (maps[branch] - low) / gap
            fused += weight * (scaled.clamp(max=NEAREST_CAP) if branch == "nearest" and len(maps) > 1 else scaled)
        return fused

    def forward(
        self, z: torch.Tensor | None, features: list[torch.Tensor], mirrored: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) scores and (B, h, w) heatmaps; higher is more abnormal. See `branch_maps`."""
        heatmaps = self.fuse(self.branch_maps(z, features, mirrored))
        return self.image_score(heatmaps), heatmaps


def _gist_size(shapes: Shapes) -> int:
    return shapes.embed_dim + shapes.levels[-1][0]


def _expect(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    found = tuple(tensors[name].shape) if name in tensors else "missing"
    if found != shape or 0 in shape:
        raise ValueError(f"{name} is {found}; wanted {shape}, not empty")
    return tensors[name].float()


def _inputs(views: Encoded, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor] | None]:
    there = views.to(device)
    return there.z, there.features, there.mirrored
