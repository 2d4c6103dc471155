"""The frozen CLIP model: multi-level vision features, and a text tower that takes embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.errors import WeightsError


def build_clip(config: Mapping[str, Any]) -> Any:
    """An open_clip model with random weights from ``embed_dim``, ``vision_cfg`` and ``text_cfg``.

    Raises
    ------
    WeightsError
        A configuration that would make open_clip or timm fetch something.
    """
    from open_clip.model import CLIP

    asked = {**config["vision_cfg"], **config["text_cfg"]}
    fetches = [k for k, v in asked.items() if k.startswith("hf_") or (k == "timm_model_pretrained" and v)]
    if fetches or not re.fullmatch(r"[a-z0-9_.]*", str(asked.get("timm_model_name") or "")):
        raise WeightsError(f"This CLIP configuration names a model to fetch ({asked}); wanted sizes alone.")

    return CLIP(config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"]))


def tokenize(phrases: Sequence[str], context_length: int = 77) -> torch.Tensor:
    """(N, context_length) token ids of open_clip's own tokenizer."""
    from open_clip import tokenize as open_clip_tokenize

    return open_clip_tokenize(list(phrases), context_length)


class VisionTower(nn.Module):
    """Features of several depths of a frozen vision tower, standardised per channel.

    Parameters
    ----------
    visual
        open_clip's ``model.visual``.
    levels
        Names of the modules whose (B, C_l, h_l, w_l) outputs are returned.
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

    def forward_all(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Standardised level features and (B, D) image embeddings of (B, 3, H, W) images in [0, 1], with gradient."""
        kept: dict[str, torch.Tensor] = {}
        handles = [
            self.visual.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: kept.__setitem__(name, output)
            )
            for name in self.levels
        ]
        try:
            embedded = self.visual((images - self.pixel_mean) / self.pixel_std)
        finally:
            for handle in handles:
                handle.remove()
        return [
            (kept[name].float() - self.get_buffer(f"mean{i}")) / self.get_buffer(f"std{i}")
            for i, name in enumerate(self.levels)
        ], embedded

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) in [0, 1] → standardised (B, C_l, h_l, w_l) features of each level, finest first."""
        return self.forward_all(images)[0]


class TextTower(nn.Module):
    """The text half of an open_clip model, fed with token embeddings so that prompts can be learned.

    Parameters
    ----------
    model
        An open_clip ``CLIP`` whose text attention is causal.
    """

    attn_mask: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = model.transformer
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Size of a token embedding."""
        return self.token_embedding.weight.shape[1]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) token ids → (N, L, width)."""
        return self.token_embedding(tokens)

    def encode(self, embeddings: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """(N, L, width) embeddings and (N,) positions of the end-of-text token → (N, D).

        L may be shorter than the context length: behind the end-of-text token nothing has an influence.
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        mask = self.attn_mask[:length, :length]
        if getattr(self.transformer, "batch_first", False):
            x = self.transformer(x, attn_mask=mask)
        else:
            x = self.transformer(x.permute(1, 0, 2), attn_mask=mask).permute(1, 0, 2)
        x = self.ln_final(x)[torch.arange(len(x), device=x.device), ends]
        return x @ self.text_projection

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) token ids → (N, D) unit-length text features."""
        return F.normalize(self.encode(self.embed(tokens), tokens.argmax(dim=1)), dim=-1)
