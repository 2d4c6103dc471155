"""MediCLIP's detector: adapters, learnable prompts and similarity maps (Zhang et al. 2024, arXiv 2405.11315)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.nn.projection import Residual

NORMAL_PHRASES = (
    "healthy tissue",
    "a normal scan",
    "normal anatomy",
    "an unremarkable finding",
    "no sign of disease",
    "intact structure",
    "a regular organ",
    "normal appearance",
    "no abnormality",
    "a healthy patient",
)
ABNORMAL_PHRASES = (
    "diseased tissue",
    "an abnormal scan",
    "abnormal anatomy",
    "a lesion",
    "a tumor",
    "bleeding",
    "inflammation",
    "a fracture",
    "an opacity",
    "a suspicious mass",
    "a patient with disease",
)


class TextTower(Protocol):
    """What `Prompts` needs of a frozen text encoder."""

    def encode(self, embeddings: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """(N, L, width) embeddings and (N,) positions of the end-of-text token → (N, D) text features."""


class Prompts(nn.Module):
    """Learnable context tokens, one set per class, in front of fixed phrases.

    Parameters
    ----------
    tokens
        Token ids of the normal and of the abnormal phrases, each (N, L) with start- and end-of-text tokens.
    embeddings
        The frozen embeddings of those ids, each (N, L, width).
    n_context
        Number of learnable tokens.
    width
        Size of a token embedding; needed only where there are no phrases, as in a detector that was read back and
        whose text features are stored.

    Notes
    -----
    Text attention is causal, so everything behind the end-of-text token is cut: the output is the same and the cost a
    fraction.
    """

    ends: torch.Tensor
    fixed: torch.Tensor

    def __init__(
        self,
        tokens: Sequence[torch.Tensor],
        embeddings: Sequence[torch.Tensor],
        n_context: int = 8,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.counts = [len(t) for t in tokens]
        self.context = nn.Parameter(torch.randn(2, n_context, width or embeddings[0].shape[-1]) * 0.02)
        if not tokens:
            return
        ends = [t.argmax(dim=1) for t in tokens]  # the end-of-text token has the highest id
        longest = int(max(e.max() for e in ends)) + 1
        self.register_buffer("ends", torch.cat(ends) + n_context, persistent=False)
        self.register_buffer("fixed", torch.cat([e[:, :longest] for e in embeddings]), persistent=False)

    def forward(self, text: TextTower) -> torch.Tensor:
        """(2, D): the unit-length mean text feature of the normal and of the abnormal phrases."""
        counts = torch.tensor(self.counts, device=self.context.device)
        context = self.context.repeat_interleave(counts, dim=0)
        sequence = torch.cat([self.fixed[:, :1], context, self.fixed[:, 1:]], dim=1)
        features = F.normalize(text.encode(sequence, self.ends), dim=-1)
        return torch.stack([F.normalize(part.mean(0), dim=0) for part in features.split(self.counts)])


class Adapters(nn.Module):
    """One 1×1 adapter per feature level into the joint embedding.

    Parameters
    ----------
    channels
        Channels of each level.
    embed_dim
        Size of the joint embedding.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(c, embed_dim, 1) for c in channels)

    def forward(self, features: Sequence[torch.Tensor], normal: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """Embeddings (B, D, h_l, w_l) of each level; ``normal`` is there for `ContextAdapters` and ignored."""
        return [adapter(f) for adapter, f in zip(self.levels, features, strict=True)]


class ContextAdapters(nn.Module):
    """Adapters that see each place together with its nearest normal counterpart and its surroundings.

    At every level the features f, what the closest normal feature leaves of them, f − f_nearest (InCTRL's residual
    learning, Zhu & Pang 2024), and the length of that residual are mixed; coarser levels pass their context down to
    finer ones.

    Parameters
    ----------
    channels
        Channels of each level, finest first.
    embed_dim
        Size of the joint embedding.
    width
        Channels of the mixing layers, a multiple of 8.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int, width: int = 64) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(2 * c + 1, width, 1) for c in channels)
        self.blocks = nn.ModuleList(Residual(width) for _ in channels)
        self.out = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for _ in channels)

    def forward(self, features: Sequence[torch.Tensor], normal: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Embeddings of (B, C_l, h_l, w_l) features, given the (N_l, C_l) features of normal images at each level."""
        below: torch.Tensor | None = None
        embeddings: list[torch.Tensor] = []
        for level in reversed(range(len(features))):
            f = features[level]
            residual = f - nearest(f, normal[level])
            length = residual.square().mean(dim=1, keepdim=True)
            h = self.mix[level](torch.cat([f, residual, length], dim=1))
            if below is not None:
                h = h + F.interpolate(below, h.shape[-2:], mode="bilinear", align_corners=False)
            below = self.blocks[level](h)
            embeddings.append(self.out[level](F.silu(below)))
        return embeddings[::-1]


def as_rows(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """(B, C_l, h_l, w_l) features of each level as (B·h_l·w_l, C_l) rows."""
    return [f.permute(0, 2, 3, 1).flatten(0, 2) for f in features]


def nearest(features: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """For every place of (B, C, h, w) ``features`` the closest row of (N, C) ``normal``, in the same shape."""
    b, c, h, w = features.shape
    flat = features.detach().permute(0, 2, 3, 1).reshape(-1, c)
    half = 0.5 * normal.detach().square().sum(dim=1)
    found = torch.cat([(half - chunk @ normal.detach().T).argmin(dim=1) for chunk in flat.split(2048)])
    return normal[found].reshape(b, h, w, c).permute(0, 3, 1, 2)


def similarity_map(
    embeddings: Sequence[torch.Tensor], text: torch.Tensor, scale: torch.Tensor | float, size: tuple[int, int]
) -> torch.Tensor:
    """Probability of abnormal at each cell, averaged over levels.

    Parameters
    ----------
    embeddings
        (B, D, h_l, w_l) embeddings of each level, of any length.
    text
        (2, D) unit-length text features, normal first.
    scale
        Factor on the cosine similarities.
    size
        (h, w) of the map; coarser levels are enlarged before the softmax.

    Returns
    -------
    (B, h, w) in [0, 1].
    """
    maps = []
    for level in embeddings:
        products = F.conv2d(level, text[:, :, None, None].to(level.dtype)).float()
        cosines = products / level.float().norm(dim=1, keepdim=True).clamp(min=1e-6)  # cheaper than scaling the level
        logits = F.interpolate(scale * cosines, size, mode="bilinear", align_corners=False)
        maps.append(logits.softmax(dim=1)[:, 1])
    return torch.stack(maps).mean(dim=0)
