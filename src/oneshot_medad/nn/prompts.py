"""MediCLIP's learnable prompts (Zhang et al. 2024, arXiv 2405.11315)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

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
