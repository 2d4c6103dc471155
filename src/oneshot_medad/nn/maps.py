"""From embeddings to probabilities: cosines with the text features, and MediCLIP's similarity maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


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
