"""The stage that trains adapters, prompts and scale on encoded episodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.nn.adapters import ContextAdapters, Judged
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.nn.matching import References, match
from oneshot_medad.nn.prompts import Prompts, TextTower
from oneshot_medad.pretraining.episodes import N_IMAGES, N_JUDGED, N_NORMAL
from oneshot_medad.pretraining.features import Encoded

VIEWS = list(range(N_NORMAL, N_IMAGES - N_JUDGED))
SUPPORTS = ((0.35, [0, *VIEWS], 0.0), (0.1, [0, 1], 0.0), (0.15, [0, 1, 2, 3], 0.0), (0.2, list(range(6)), 0.0),
            (0.2, [0, *VIEWS], 0.3))  # fmt: skip
"""How often an episode compares with which references, and the share of their places that is hidden: counterparts that
a test image may not have either."""


@dataclass(frozen=True)
class HeadRecipe:
    """How the heads are trained.

    Parameters
    ----------
    steps, count
        Optimiser steps, and episodes in each.
    learning_rate, weight_decay
        Of AdamW, with a short warm-up and a cosine decay.
    residuals_alone
        Share of the episodes in which the features themselves are hidden (ResAD, Yao et al. 2024).
    noise
        Share of the episodes whose channels are scaled and shifted at random, the same in all images, so that what is
        abnormal is not looked up by the channels' own values.
    seed
        Of all draws.
    """

    steps: int = 2000
    count: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    residuals_alone: float = 0.5
    noise: float = 0.3
    seed: int = 0


class Head(nn.Module):
    """What this stage trains: adapters, prompts, and the logarithm of the scale."""

    def __init__(self, adapters: ContextAdapters, prompts: Prompts, scale: float) -> None:
        super().__init__()
        self.adapters, self.prompts = adapters, prompts
        self.log_scale = nn.Parameter(torch.tensor(scale).log())


def train(
    head: Head, text: TextTower, episodes: Encoded, recipe: HeadRecipe, progress: Callable[[str], None]
) -> tuple[Head, dict[str, float]]:
    """The running mean of the trained head, and the mean losses of the last hundred steps."""
    torch.manual_seed(recipe.seed)
    rng, begun = np.random.default_rng(recipe.seed), time.time()
    device = head.log_scale.device
    averaged = AveragedModel(head, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(head.parameters(), weight_decay=recipe.weight_decay)
    history: list[dict[str, float]] = []
    for step, rows in zip(range(recipe.steps), episodes.batches(recipe.count, rng), strict=False):
        done = step / recipe.steps
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + np.cos(np.pi * done)))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            words = head.prompts(text)
        judged = [_judge(head, words, episodes.features(int(k)), recipe, rng) for k in rows]
        terms = losses(head.adapters, Judged(*(torch.cat(part) for part in zip(*judged, strict=True))), episodes, rows)
        optimiser.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        if torch.isfinite(nn.utils.clip_grad_norm_(head.parameters(), 1.0)):  # one bad episode must not end it all
            optimiser.step()
            averaged.update_parameters(head)
        history.append({name: float(value.detach()) for name, value in terms.items()})
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            means = {k: round(float(np.mean([h[k] for h in history[-100:]])), 4) for k in history[-1]}
            progress(f"step {step + 1}, {time.time() - begun:.0f} s, {means}")
    return cast(Head, averaged.module), means


def _judge(
    head: Head, words: torch.Tensor, features: list[torch.Tensor], recipe: HeadRecipe, rng: np.random.Generator
) -> Judged:
    """What the head makes of one episode's judged images, with references drawn from `SUPPORTS`."""
    _, chosen, hidden = SUPPORTS[int(rng.choice(len(SUPPORTS), p=[p for p, *_ in SUPPORTS]))]
    references = References.of([f[chosen] for f in features])
    judged = [f[-N_JUDGED:] for f in features]
    matches = []
    for f, r in zip(judged, references.levels, strict=True):
        rows = len(r) * r.shape[-2] * r.shape[-1]
        matches.append(match(f, r, hidden=torch.rand(rows) < hidden if hidden else None))
    if rng.random() < recipe.noise:
        for level, f in enumerate(judged):
            factor = torch.exp(0.3 * torch.randn(1, f.shape[1], 1, 1))
            shift = 0.5 * torch.randn(1, f.shape[1], 1, 1)
            judged[level], references.levels[level] = f * factor + shift, references.levels[level] * factor + shift
    alone = rng.random() < recipe.residuals_alone
    return head.adapters(judged, words, head.log_scale.exp(), references, matches, residuals_alone=alone)


def losses(adapters: ContextAdapters, judged: Judged, episodes: Encoded, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Focal and dice of the maps where a mask is known; cross-entropy of whole images where a label is."""
    masks, has_mask, labels, has_label = (
        episodes.tensors[name][rows].flatten(0, 1) for name in ("masks", "has_mask", "labels", "has_label")
    )
    covered = masks.float()
    target = (covered > (0.5 * covered.amax((1, 2), keepdim=True)).clamp(max=0.25)).float()
    shown = has_mask & (target.flatten(1).sum(1) > 0)
    probability, truth = judged.probability.float(), labels[has_label].float()
    score = adapters.image_logit(judged)
    return {
        "focal": 4 * focal_loss(probability[has_mask], target[has_mask]),
        "dice": dice_loss(probability[shown], target[shown]),
        "image": 0.5 * F.binary_cross_entropy_with_logits(score[has_label], truth),
        "whole": 0.25 * F.binary_cross_entropy_with_logits(judged.image[has_label], truth),
    }
