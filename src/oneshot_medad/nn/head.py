"""MediCLIP's detector: adapters, learnable prompts and similarity maps (Zhang et al. 2024, arXiv 2405.11315)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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

    def encode(self, embeddings: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """(N, L, width) embeddings, (L,) positions and (L, L) permitted looks → (N, L, D) features of every token."""


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
    Text attention is causal, so everything behind the end-of-text token is cut, and all phrases of a class share what
    stands before them: start token and context are read once, and each phrase looks at them and at itself. The result
    is that of separate prompts of full length at a tenth of the cost.
    """

    groups: torch.Tensor
    fixed: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    allowed: torch.Tensor
    ends: torch.Tensor

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
        kept: list[torch.Tensor] = []
        rows: list[int] = []
        positions: list[int] = []
        groups: list[tuple[int, int]] = []  # class, and phrase from 1; 0 is the beginning that they share
        ends: list[int] = []
        n_fixed = sum(1 + int(ids.argmax(dim=1).sum()) for ids in tokens)
        for k, (ids, embedded) in enumerate(zip(tokens, embeddings, strict=True)):
            rows += [len(kept), *range(n_fixed + k * n_context, n_fixed + (k + 1) * n_context)]
            kept.append(embedded[0, 0])
            positions += range(1 + n_context)
            groups += [(k, 0)] * (1 + n_context)
            for n, end in enumerate(ids.argmax(dim=1).tolist()):  # the end-of-text token has the highest id
                rows += range(len(kept), len(kept) + end)
                kept += embedded[n, 1 : end + 1].unbind()
                positions += range(1 + n_context, 1 + n_context + end)
                groups += [(k, n + 1)] * end
                ends.append(len(groups) - 1)
        of_class, of_phrase = torch.tensor(groups).T
        same = of_class[:, None] == of_class
        order = torch.arange(len(groups))
        self.register_buffer("groups", torch.tensor(groups), persistent=False)
        allowed = same & ((of_phrase == 0) | (of_phrase[:, None] == of_phrase)) & (order[:, None] >= order)
        for name, value in (
            ("fixed", torch.stack(kept)),
            ("rows", torch.tensor(rows)),
            ("positions", torch.tensor(positions)),
            ("allowed", allowed),
            ("ends", torch.tensor(ends)),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, text: TextTower, phrases: torch.Tensor | None = None) -> torch.Tensor:
        """(2, D): the unit-length mean text feature of the normal and of the abnormal phrases.

        ``phrases`` (2, n) are the numbers of the phrases of each class to take the mean of; None takes all.
        """
        rows, positions, allowed, ends, counts = self.rows, self.positions, self.allowed, self.ends, self.counts
        if phrases is not None:
            of_class, of_phrase = self.groups.T
            chosen = (phrases[of_class] + 1 == of_phrase[:, None]).any(dim=1)
            kept = (chosen | (of_phrase == 0)).nonzero()[:, 0]
            rows, positions, allowed = rows[kept], positions[kept], allowed[kept][:, kept]
            ends = (torch.cumsum(chosen | (of_phrase == 0), dim=0) - 1)[ends[chosen[ends]]]
            counts = [phrases.shape[1]] * 2
        sequence = torch.cat([self.fixed, self.context.flatten(0, 1)])[rows]
        found = text.encode(sequence[None], positions, allowed)[0, ends]
        parts = F.normalize(found, dim=-1).split(counts)
        return torch.stack([F.normalize(part.mean(0), dim=0) for part in parts])


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

    def forward(
        self,
        features: Sequence[torch.Tensor],
        text: torch.Tensor,
        normal: Sequence[torch.Tensor] = (),
        places: Sequence[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Cosines (B, 2, h_l, w_l) of each level's embeddings with the (2, D) unit-length text features.

        The rest is there for `ContextAdapters` and ignored.
        """
        cosines = []
        for adapter, f in zip(self.levels, features, strict=True):
            embedded = adapter(f)
            products = F.conv2d(embedded, text[:, :, None, None].to(embedded.dtype)).float()
            length = embedded.float().norm(dim=1, keepdim=True)  # cheaper than scaling the embeddings
            cosines.append(products / length.clamp(min=1e-6))
        return cosines


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

    def forward(
        self,
        features: Sequence[torch.Tensor],
        text: torch.Tensor,
        normal: Sequence[torch.Tensor],
        places: Sequence[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Cosines (B, 2, h_l, w_l) of the embeddings of (B, C_l, h_l, w_l) features with (2, D) unit text features.

        ``normal`` are the (N_l, C_l) features of normal images at each level, ``places`` the `closest` of them if they
        are known already.
        """
        below: torch.Tensor | None = None
        cosines: list[torch.Tensor] = []
        for level in reversed(range(len(features))):
            found = places[level] if places is not None else closest(features[level], normal[level])
            f = features[level].permute(0, 2, 3, 1)
            residual = f - normal[level][found]
            length = residual.square().mean(dim=-1, keepdim=True)
            mix: Any = self.mix[level]
            out: Any = self.out[level]
            c = f.shape[-1]
            of_f, of_residual, of_length = mix.weight.flatten(1).split((c, c, 1), dim=1)
            # what mix would make of the three joined, without joining them
            mixed = F.linear(f, of_f, mix.bias) + F.linear(residual, of_residual) + length * of_length[:, 0]
            h = mixed.permute(0, 3, 1, 2)
            if below is not None:
                h = h + F.interpolate(below, h.shape[-2:], mode="bilinear", align_corners=False)
            below = self.blocks[level](h)
            cosines.append(embedded_cosines(F.silu(below), out, text))
        return cosines[::-1]


def embedded_cosines(hidden: torch.Tensor, last: nn.Conv2d, text: torch.Tensor) -> torch.Tensor:
    """Cosines of W·h + b with each text feature t, without making these embeddings of many channels.

    The product with t is (Wᵀt)·h + b·t, the squared length hᵀ(WᵀW)h + 2(Wᵀb)·h + b·b.

    Parameters
    ----------
    hidden
        h, (B, C, h, w).
    last
        The 1×1 convolution of W (D, C, 1, 1) and b (D,).
    text
        (2, D) unit-length features.

    Returns
    -------
    (B, 2, h, w), in single precision.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # squares of many terms
        h, weight = hidden.float().permute(0, 2, 3, 1), last.weight.flatten(1).float()
        assert last.bias is not None
        bias, text = last.bias.float(), text.float()
        products = F.linear(h, text @ weight, text @ bias)
        square = (F.linear(h, weight.T @ weight, 2 * bias @ weight) * h).sum(dim=-1, keepdim=True) + bias @ bias
        return (products / square.clamp(min=1e-12).sqrt()).permute(0, 3, 1, 2)


def as_rows(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """(B, C_l, h_l, w_l) features of each level as (B·h_l·w_l, C_l) rows."""
    return [f.permute(0, 2, 3, 1).flatten(0, 2) for f in features]


@torch.no_grad()
def closest(features: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """(B, h, w) number of the row of (N, C) ``normal`` that is closest to each place of (B, C, h, w) ``features``."""
    b, c, h, w = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(-1, c)
    half = 0.5 * normal.square().sum(dim=1)
    found = [torch.addmm(half, chunk, normal.T, alpha=-1).argmin(dim=1) for chunk in flat.split(2048)]
    return torch.cat(found).reshape(b, h, w)


def similarity_map(cosines: Sequence[torch.Tensor], scale: torch.Tensor | float, size: tuple[int, int]) -> torch.Tensor:
    """Probability of abnormal at each cell, averaged over levels.

    Parameters
    ----------
    cosines
        (B, 2, h_l, w_l) of each level with the text features, normal first.
    scale
        Factor on them.
    size
        (h, w) of the map; coarser levels are enlarged before the softmax.

    Returns
    -------
    (B, h, w) in [0, 1].
    """
    enlarged = [F.interpolate(scale * level, size, mode="bilinear", align_corners=False) for level in cosines]
    return torch.stack([logits.softmax(dim=1)[:, 1] for logits in enlarged]).mean(dim=0)
