"""The trained parts of a detector and their joint loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.backbones import Backbone
from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.config import Recipe
from oneshot_medad.nn.adapters import Adapters, ContextAdapters, Judged
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.nn.matching import Match, References
from oneshot_medad.nn.projection import ProjectionHead
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES, Prompts, TextTower
from oneshot_medad.nn.unet import DeviationUNet
from oneshot_medad.synthesis.deviation import masked_forward
from oneshot_medad.training.cache import Batch, Encoded


@dataclass(frozen=True)
class Shapes:
    """What the trained parts must know of the frozen ones.

    Attributes
    ----------
    channels
        Latent channels.
    levels
        (channels, side) of each level of vision features.
    grid
        Side of the latent grid, which is also the grid of the maps.
    embed_dim
        Size of CLIP's joint embedding.
    text_width
        Size of a token embedding.
    """

    channels: int
    levels: tuple[tuple[int, int], ...]
    grid: int
    embed_dim: int
    text_width: int


class JointModel(nn.Module):
    """Deviation network, projection head, adapters and prompts: everything one optimiser moves.

    Parameters
    ----------
    recipe
        Decides which branches exist and how the loss is put together.
    shapes
        Of the frozen parts.
    prompts
        The learnable prompts; None makes some without phrases, whose text features are stored elsewhere.
    """

    def __init__(self, recipe: Recipe, shapes: Shapes, prompts: Prompts | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.shapes = shapes
        self.unet = DeviationUNet(shapes.channels)
        self.projection = ProjectionHead(shapes.channels, shapes.levels, shapes.grid)
        trained = [b for b in recipe.branches if b in ("clip", "latent")]
        kind = ContextAdapters if recipe.context else Adapters
        widths = [c for c, _ in shapes.levels]
        self.adapters = nn.ModuleDict({branch: kind(widths, shapes.embed_dim) for branch in trained})
        self.prompts = prompts or Prompts([], [], width=shapes.text_width)
        self.log_scale = nn.Parameter(torch.tensor(recipe.logit_scale).log(), requires_grad=recipe.learn_logit_scale)

    @classmethod
    def build(cls, recipe: Recipe, backbone: Backbone, example: Encoded, init: str = "pretrained") -> JointModel:
        """A model for ``backbone`` whose shapes fit ``example``.

        ``init="pretrained"`` starts every part that the backbone has initial values for from those, ``"random"`` none.
        """
        tokens = [tokenize(phrases) for phrases in (NORMAL_PHRASES, ABNORMAL_PHRASES)]
        embeddings = [backbone.text.embed(t.to(backbone.device)).float().cpu() for t in tokens]
        levels = tuple((f.shape[1], f.shape[-1]) for f in example.features)
        shapes = Shapes(example.z.shape[1], levels, example.z.shape[-1], backbone.embed_dim, backbone.text.width)
        model = cls(recipe, shapes, Prompts(tokens, embeddings))
        if init == "pretrained":
            moved = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            initial = dict(backbone.initial)
            seen = {k: v for k, v in initial.items() if k.startswith("adapters.clip.")}
            # projected latents are judged as the features that they stand for
            initial |= {k.replace(".clip.", ".latent."): v for k, v in seen.items()}
            model.load_state_dict({k: v for k, v in initial.items() if k in moved}, strict=False)
        return model

    def text_features(self, text: TextTower) -> torch.Tensor:
        """(2, D) features of the learned normal and abnormal prompts."""
        return self.prompts(text)

    @torch.no_grad()
    def references(self, batch: Batch) -> dict[str, References | None]:
        """What the adapters of each branch compare with."""
        found: dict[str, References | None] = {"clip": batch.compared, "latent": None}
        if self.recipe.context and "latent" in self.adapters:
            found["latent"] = References.of(self.projection(batch.reference.z))
        return found

    def judge(
        self,
        branch: str,
        features: Sequence[torch.Tensor],
        text: torch.Tensor,
        references: References | None = None,
        matches: Sequence[Match] | None = None,
    ) -> Judged:
        """What the adapters of one branch make of (B, C_l, h_l, w_l) features.

        ``text`` is the result of `text_features`, ``matches`` what `match` finds in ``references`` if that is known.
        """
        judged: Judged = self.adapters[branch](features, text, self.log_scale.exp(), references, matches)
        return judged

    def synthesise(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """z_anom = z_n + C · pred_eta, and loss_deco = MSE(pred_eta, true_eta)."""
        assert batch.disturb_mask is not None
        assert batch.t is not None
        assert batch.noise is not None
        disturbed = masked_forward(batch.normal.z, batch.disturb_mask, batch.t, batch.noise)
        predicted = self.unet(disturbed.z_noisy, disturbed.t).float()
        severity = torch.full_like(disturbed.strength, self.recipe.severity)
        if self.recipe.severity_follows_time:
            severity = severity * disturbed.strength
        used = predicted.detach() if self.recipe.detach_deviation else predicted
        return batch.normal.z + severity[:, None, None, None] * used, F.mse_loss(predicted, disturbed.eta)

    def forward(self, batch: Batch, text: TextTower) -> dict[str, torch.Tensor]:
        """Losses of one batch: ``loss`` is the weighted sum of ``detection``, ``deviation`` and ``alignment``.

        Every sample meets the detection loss with its own mask: all zero for normal views, the disturbed cells for
        z_anom, the drawn lesion for pixel lesions.
        """
        recipe, normal = self.recipe, batch.normal
        deviation = normal.z.new_zeros(())
        anomalous = []
        if batch.disturb_mask is not None:
            z_anom, deviation = self.synthesise(batch)
            anomalous.append(z_anom)
        # one pass for both: the smaller the batch, the less a processor makes of a convolution
        both = self.projection(torch.cat([normal.z, *anomalous]))
        projected, changed = (
            [level[part] for level in both] for part in (slice(len(normal)), slice(len(normal), None))
        )
        real = recipe.residual_transfer
        references = self.references(batch)
        seen: dict[str, list[tuple[Sequence[torch.Tensor], Sequence[Match] | None, torch.Tensor]]]
        seen = {branch: [] for branch in self.adapters}

        def show(clip: Sequence[torch.Tensor], latent: Sequence[torch.Tensor], of: Encoded, mask: torch.Tensor) -> None:
            for branch, features in (("clip", clip), ("latent", latent)):
                if branch in seen:
                    seen[branch].append((features, of.matches if features is of.features else None, mask))

        show(normal.features if real else projected, projected, normal, normal.mask)
        if batch.disturb_mask is not None:
            moved = [f + c - p for f, c, p in zip(normal.features, changed, projected, strict=True)]
            show(moved if real else changed, changed, normal, batch.disturb_mask)
        alignment = _mean([F.mse_loss(p.float(), f) for p, f in zip(projected, normal.features, strict=True)])
        if batch.lesion is not None:
            latent = self.projection(batch.lesion.z) if "latent" in seen else []
            show(batch.lesion.features, latent, batch.lesion, batch.lesion.mask)

        words = self.prompts(text, batch.phrases)
        losses = []
        for branch, samples in seen.items():
            # each sort by itself: only the moved features need a gradient of their own
            judged = [self.judge(branch, f, words, references[branch], found) for f, found, _ in samples]
            probability = torch.cat([one.probability for one in judged])
            mask = torch.cat([m for _, _, m in samples])
            target = F.interpolate(mask[:, None], probability.shape[-2:], mode="nearest")[:, 0]
            shown = target.flatten(1).any(dim=1) if recipe.dice_on_lesions_only else slice(None)
            losses.append(focal_loss(probability, target) + dice_loss(probability[shown], target[shown]))
        detection = _mean(losses) if losses else torch.zeros_like(deviation)
        loss = (
            recipe.weight_detection * detection
            + recipe.weight_deviation * deviation
            + recipe.weight_alignment * alignment
        )
        return {"loss": loss, "detection": detection, "deviation": deviation, "alignment": alignment}


def _mean(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).mean()
