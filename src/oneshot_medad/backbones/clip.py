"""The frozen CLIP model: multi-level vision features, and a text tower that takes embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.backbones._imports import open_clip
from oneshot_medad.errors import WeightsError

NO_VISION = {"image_size": 8, "patch_size": 8, "width": 64, "layers": 1}
NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 64, "heads": 1, "layers": 1}
"""Next to nothing, in place of the half that is not wanted."""


def build_clip(config: Mapping[str, Any], *, vision: bool = True, text: bool = True) -> Any:
    """An open_clip model without weights from ``embed_dim``, ``vision_cfg``, ``text_cfg`` and ``quick_gelu``.

    ``vision=False`` or ``text=False`` leaves next to nothing of that half.

    Raises
    ------
    WeightsError
        A configuration that would make open_clip or timm fetch something, or a text tower that does not read from left
        to right, in which prompts could not be cut.
    """
    asked = {**config["vision_cfg"], **config["text_cfg"]}
    fetches = [k for k, v in asked.items() if k.startswith("hf_") or (k == "timm_model_pretrained" and v)]
    if fetches or not re.fullmatch(r"[a-z0-9_.]*", str(asked.get("timm_model_name") or "")):
        raise WeightsError(f"This CLIP configuration names a model to fetch ({asked}); wanted sizes alone.")
    if asked.get("no_causal_mask") or asked.get("embed_cls"):
        raise WeightsError("This CLIP model's text tower is not causal; wanted one that reads from left to right.")
    models = open_clip("open_clip.model")
    kind = models.CustomTextCLIP if config.get("custom_text") else models.CLIP
    return kind(
        config["embed_dim"],
        dict(config["vision_cfg"] if vision else NO_VISION),
        dict(config["text_cfg"] if text else NO_TEXT),
        quick_gelu=bool(config.get("quick_gelu")),
    )


def tokenize(phrases: Sequence[str], context_length: int = 77) -> torch.Tensor:
    """(N, context_length) token ids of open_clip's own tokenizer."""
    return open_clip("open_clip").tokenize(list(phrases), context_length)


class VisionTower(nn.Module):
    """Features of several depths of a frozen vision tower, standardised per channel.

    Parameters
    ----------
    visual
        open_clip's ``model.visual``.
    levels
        Names of the modules whose outputs are returned: (B, C, h, w) of convolutional towers, or the tokens of a
        transformer, from which class and register tokens are dropped.
    mean, std
        Of the input, per colour channel.
    statistics
        (mean, std) of each level's raw features, each (C_l,).
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        visual: nn.Module,
        levels: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        statistics: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        super().__init__()
        self.visual = visual.eval().requires_grad_(False)
        known = {name for name, _ in visual.named_modules()}
        for name in levels:
            if name not in known:
                raise WeightsError(f"The vision tower has no module {name!r}; set the spec's levels to some it has.")
        self.levels = tuple(levels)
        self.register_buffer("pixel_mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("pixel_std", torch.tensor(std)[:, None, None])
        for i, (level_mean, level_std) in enumerate(statistics):
            self.register_buffer(f"mean{i}", level_mean.float()[:, None, None])
            self.register_buffer(f"std{i}", level_std.float()[:, None, None])

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return [len(self.get_buffer(f"mean{i}")) for i in range(len(self.levels))]

    def raw(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(B, C_l, h_l, w_l) level features as the tower gives them, and (B, D) image embeddings."""
        kept: dict[str, torch.Tensor] = {}
        visual = _tapped(self.visual, self.levels, kept)
        scaled = ((images - self.pixel_mean) / self.pixel_std).to(next(self.visual.parameters()).dtype)
        embedded = visual(scaled.contiguous(memory_format=torch.channels_last))  # as the weights lie
        return [self._grid(name, kept[name]).float() for name in self.levels], embedded.float()

    def _grid(self, name: str, output: torch.Tensor) -> torch.Tensor:
        """The patch tokens of a transformer block as (B, C, h, w); the output of a convolution as it is."""
        if output.dim() == 4:
            return output
        tokens = output
        if name.startswith("transformer.") and not getattr(self.visual.transformer, "batch_first", False):
            tokens = output.transpose(0, 1)  # older open_clip puts the tokens before the batch
        side = isqrt(tokens.shape[1])
        patches = tokens[:, tokens.shape[1] - side * side :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, side, side)

    def forward_all(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Standardised level features and (B, D) image embeddings of (B, 3, H, W) images in [0, 1], with gradient."""
        levels, embedded = self.raw(images)
        return [
            (level - self.get_buffer(f"mean{i}")) / self.get_buffer(f"std{i}") for i, level in enumerate(levels)
        ], embedded

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) in [0, 1] → standardised (B, C_l, h_l, w_l) features of each level, finest first."""
        return self.forward_all(images)[0]


def _tapped(module: nn.Module, names: Sequence[str], kept: dict[str, torch.Tensor], path: str = "") -> nn.Module:
    """A copy of a module, its parameters shared, that puts the outputs of the named modules inside it into ``kept``.

    Hooks would be seen by every thread that runs the module. The copy belongs to one call; only the modules on the way
    to the named ones are copied, none of their tensors.
    """
    twin = copy(module)
    twin._modules = dict(module._modules)
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if any(f"{level}.".startswith(f"{below}.") for level in names):
            twin._modules[name] = _tapped(child, names, kept, below)
    if path in names:

        def forward(*inputs: Any, **options: Any) -> Any:
            kept[path] = output = type(module).forward(twin, *inputs, **options)
            return output

        twin.forward = forward
    return twin


class TextTower(nn.Module):
    """The text half of an open_clip model, fed with token embeddings so that prompts can be learned.

    Parameters
    ----------
    model
        An open_clip model whose text attention is causal.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        text = getattr(model, "text", model)
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Size of a token embedding."""
        return self.token_embedding.weight.shape[1]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) token ids → (N, L, width)."""
        return self.token_embedding(tokens)

    def encode(self, embeddings: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Features of every token of (N, L, width) embeddings, (N, L, D).

        Parameters
        ----------
        embeddings
            Of the tokens.
        positions
            (L,) place of each token in its own text, from 0.
        allowed
            (L, L), true where the token of the row may look at the token of the column. One sequence may so hold many
            texts, or many texts with a beginning in common.
        """
        x = embeddings.to(self.positional_embedding.dtype) + self.positional_embedding[positions]
        mask = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device).masked_fill(~allowed, float("-inf"))
        if getattr(self.transformer, "batch_first", False):
            x = self.transformer(x, attn_mask=mask)
        else:
            x = self.transformer(x.permute(1, 0, 2), attn_mask=mask).permute(1, 0, 2)
        x = self.ln_final(x)
        project = self.text_projection
        return (project(x) if isinstance(project, nn.Module) else x @ project).float()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) token ids → (N, D) unit-length text features."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        found = self.encode(self.embed(tokens), places, places[:, None] >= places[None])
        ends = tokens.argmax(dim=1)  # the end-of-text token has the highest id
        return F.normalize(found[torch.arange(len(tokens), device=tokens.device), ends], dim=-1)
