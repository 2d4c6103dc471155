"""Checkpoints of MediCLIP's published code (Zhang et al. 2024, arXiv 2405.11315) as detectors of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from oneshot_medad._runtime import Drawing
from oneshot_medad.backbones import Backbone
from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.config import Recipe
from oneshot_medad.errors import PersistenceError
from oneshot_medad.scoring import Scorer
from oneshot_medad.training.joint import JointModel, Shapes

PHRASES: Mapping[str, Sequence[str]] = {
    "normal": ("normal", "healthy", "negative", "unremarkable", "clear", "asymptomatic", "normal findings",
               "no findings", "in good health", "no evidence of disease"),
    "abnormal": ("abnormal", "positive", "symptomatic", "disease", "lesion", "pathological", "impaired",
                 "evidence of disease", "abnormal finding", "pathological condition", "pathological abnormality"),
}  # fmt: skip
"""What its published configurations read after the learned tokens."""

RECIPE = replace(
    Recipe.named("reference"),
    deviations={},
    n_lesions=1,
    branches={"clip": 1.0},
    logit_scale=1.0,
    learn_logit_scale=False,
    top_fraction=1e-3,
)
"""The vision branch alone, with 1×1 adapters and no temperature; the score is the highest cell, as MediCLIP's."""


@torch.no_grad()
def read_mediclip(path: str | Path, backbone: Backbone, phrases: Mapping[str, Sequence[str]] = PHRASES) -> Scorer:
    """The detector in a MediCLIP checkpoint: a file with ``adapter_state_dict`` and ``prompt_state_dict``.

    Its adapters read raw features and ours standardised ones, so the scale moves into their weights. Its learned
    tokens go through the text tower once, and what comes out is kept. Three things differ from its own code: images
    keep their aspect ratio, the softmax is taken before the mean over levels, and the map has the latent's resolution.

    Parameters
    ----------
    path
        The checkpoint. It is read without running anything in it.
    backbone
        The networks it was trained on: OpenAI's ViT-L/14 at 224 px with the blocks 12, 18 and 24, ``"medvae-vitl14"``.
    phrases
        ``normal`` and ``abnormal`` phrases of its configuration, in order.

    Raises
    ------
    PersistenceError
        A file that is no such checkpoint, or does not fit the networks or the phrases.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        adapters = {k: v.float() for k, v in found["adapter_state_dict"].items()}
        prompts = {k: v.float() for k, v in found["prompt_state_dict"].items()}
    except Exception as error:  # torch.load raises whatever the file makes it raise
        raise PersistenceError(
            f"Cannot read {path} as a MediCLIP checkpoint ({type(error).__name__}: {error}); wanted a file with "
            "adapter_state_dict and prompt_state_dict, as its train.py saves it."
        ) from error
    side = backbone.spec.image_px
    z, levels = backbone.features(torch.zeros(1, 3, side, side, device=backbone.device))
    widths = tuple((f.shape[1], f.shape[-1]) for f in levels)
    shapes = Shapes(z.shape[1], widths, z.shape[-1], backbone.embed_dim, backbone.text.width)
    with Drawing(0):  # parts that MediCLIP lacks take no part, but stay in the file
        model = JointModel(RECIPE, shapes)
    wanted = {f"{i}_adapter.0.{kind}" for i in range(len(widths)) for kind in ("weight", "bias")}
    _check(adapters.keys() == wanted, path, f"adapters {sorted(adapters)}", f"{sorted(wanted)}")
    for i, adapter in enumerate(model.adapters["clip"].levels):  # type: ignore[arg-type]
        weight, bias = adapters[f"{i}_adapter.0.weight"], adapters[f"{i}_adapter.0.bias"]
        _check(
            weight.shape == adapter.weight.shape, path, f"adapter {tuple(weight.shape)}", tuple(adapter.weight.shape)
        )
        mean, std = (backbone.vision.get_buffer(f"{name}{i}").cpu() for name in ("mean", "std"))
        adapter.weight.copy_(weight * std)
        adapter.bias.copy_(bias + (weight * mean).sum(dim=(1, 2, 3)))
    text = torch.stack(
        [_class_feature(prompts, name, phrases[name], backbone, path) for name in ("normal", "abnormal")]
    )
    return Scorer(model, text.cpu())


def _class_feature(
    prompts: Mapping[str, torch.Tensor], name: str, phrases: Sequence[str], backbone: Backbone, path: Any
) -> torch.Tensor:
    """The unit-length mean of the text features of one class; each phrase may have learned tokens of its own."""
    context = prompts.get(f"ctx.{name}_end", torch.zeros(0))
    tokens = tokenize([f"{phrase}." for phrase in phrases])
    embedded = backbone.text.embed(tokens.to(backbone.device)).float()
    if context.dim() == 2:
        context = context.expand(len(phrases), -1, -1)
    fits = context.dim() == 3 and len(context) == len(phrases) and context.shape[2] == embedded.shape[2]
    _check(fits, path, f"ctx.{name}_end {tuple(context.shape)}", f"({len(phrases)}, n, {embedded.shape[2]})")
    sequence = torch.cat([embedded[:, :1], context.to(backbone.device), embedded[:, 1:]], dim=1)
    sequence = sequence[:, : tokens.shape[1]]
    places = torch.arange(sequence.shape[1], device=backbone.device)
    features = backbone.text.encode(sequence, places, places[:, None] >= places)
    ends = tokens.argmax(dim=1) + context.shape[1]
    return F.normalize(features[torch.arange(len(phrases)), ends].mean(dim=0), dim=0)


def _check(ok: bool, path: Any, got: Any, wanted: Any) -> None:
    if not ok:
        raise PersistenceError(f"{path} has {got}; wanted {wanted}. Give the backbone and phrases it was trained with.")
