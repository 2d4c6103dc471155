"""Adapters from vision features into CLIP's joint embedding: MediCLIP's, and those that see normal references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.nn.maps import embedded_cosines, similarity_map
from oneshot_medad.nn.matching import Match, References, as_rows, match
from oneshot_medad.nn.projection import Residual

SMALLEST = 1e-4
"""Probabilities and distances are kept this far from 0, and probabilities from 1, before a logarithm."""
HIGHEST = 0.02
"""Share of a map whose mean stands for it in an image's score while adapters are trained."""


class Judged(NamedTuple):
    """What adapters make of B images.

    Attributes
    ----------
    probability
        (B, h, w) of abnormal, on the grid of the finest level.
    image
        (B,) logit of the image as a whole.
    """

    probability: torch.Tensor
    image: torch.Tensor


class Adapters(nn.Module):
    """MediCLIP's adapters: one 1×1 convolution per feature level into the joint embedding.

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
        scale: torch.Tensor | float,
        references: References | None = None,
        matches: Sequence[Match] | None = None,
    ) -> Judged:
        """Similarity maps of (B, C_l, h_l, w_l) features; references are ignored, and no image is judged as a whole."""
        cosines = []
        for adapter, f in zip(self.levels, features, strict=True):
            embedded = adapter(f)
            products = F.conv2d(embedded, text[:, :, None, None].to(embedded.dtype)).float()
            length = embedded.float().norm(dim=1, keepdim=True)  # cheaper than scaling the embeddings
            cosines.append(products / length.clamp(min=1e-6))
        size = (features[0].shape[-2], features[0].shape[-1])
        probability = similarity_map(cosines, scale, size)
        return Judged(probability, probability.new_zeros(len(probability)))

    def image_logit(self, judged: Judged, fraction: float = HIGHEST, whole: float = 1.0) -> torch.Tensor:
        """(B,) score of each image: the logit of the mean of its map's highest ``fraction``."""
        return highest(judged.probability, fraction).clamp(SMALLEST, 1 - SMALLEST).logit()

    def map_logit(self, judged: Judged) -> torch.Tensor:
        """(B, h, w) map in the unit of `image_logit`."""
        return judged.probability.clamp(SMALLEST, 1 - SMALLEST).logit()


class ContextAdapters(nn.Module):
    """Adapters that see each place beside its normal counterparts, and the image beside the references.

    At every level the features f, what the closest normal feature leaves of them, f − f_nearest (InCTRL's residual
    learning, Zhu & Pang 2024), anywhere and near the same place, and the lengths of these residuals, also in units of
    the references' own spread, are mixed. The same is done with the mean and deviation of whole images. Coarser levels
    pass their context down to finer ones, beginning with the whole image.

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
        self.mix = nn.ModuleList(nn.Conv2d(3 * c + 4, width, 1) for c in channels)
        self.blocks = nn.ModuleList(Residual(width) for _ in channels)
        self.out = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for _ in channels)
        self.whole = nn.Linear(2 * 2 * sum(channels) + 3 + 4 * len(channels), 2 * width)
        self.whole_block = nn.Sequential(nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU())
        self.whole_out = nn.Conv2d(2 * width, embed_dim, 1)
        self.down = nn.Linear(2 * width, width)
        self.calibration = nn.Parameter(torch.tensor([1.0, 0.0, 1.0]))

    def forward(
        self,
        features: Sequence[torch.Tensor],
        text: torch.Tensor,
        scale: torch.Tensor | float,
        references: References | None = None,
        matches: Sequence[Match] | None = None,
        residuals_alone: bool = False,
    ) -> Judged:
        """Judge (B, C_l, h_l, w_l) features against the references, in the words of (2, D) unit text features.

        Parameters
        ----------
        features, text
            Of the images and of the normal and abnormal prompts.
        scale
            Factor on the cosines.
        references
            What is compared with.
        matches
            What `match` finds at each level, if it is known.
        residuals_alone
            Hide the features themselves, so that what differs from the references must carry the decision.
        """
        assert references is not None
        if matches is None:
            matches = [match(f.detach(), r) for f, r in zip(features, references.levels, strict=True)]
        mixed, lengths = [], []
        for level, (f, found) in enumerate(zip(features, matches, strict=True)):
            b, c, h, w = f.shape
            rows = as_rows(references.levels[level])
            normal = [rows[found.rows[i].flatten()].reshape(b, h, w, c).permute(0, 3, 1, 2) for i in (0, 1)]
            residuals = [f - n for n in normal]
            distance = torch.stack([r.square().mean(dim=1) for r in residuals])
            relative = (distance.clamp(min=1e-3) / references.spread[level][:, None, None, None]).log()
            scalars = torch.cat([distance, relative]).transpose(0, 1)
            mixed.append(self.mix[level](torch.cat([f * 0 if residuals_alone else f, *residuals, scalars], dim=1)))
            lengths.append(scalars.mean(dim=(2, 3)))
        hidden = self.whole_block(self.whole(self._whole(features, references, lengths, residuals_alone)))
        cosines = embedded_cosines(hidden[:, :, None, None], self.whole_out, text)[:, :, 0, 0] * scale
        below = self.down(hidden)[:, :, None, None]
        maps: list[torch.Tensor] = []
        for level in reversed(range(len(features))):
            h = mixed[level]
            up = below if below.shape[-1] == 1 else F.interpolate(below, h.shape[-2:], mode="bilinear")
            below = self.blocks[level](h + up)
            last = self.out[level]
            assert isinstance(last, nn.Conv2d)
            maps.append(embedded_cosines(F.silu(below), last, text))
        size = (features[0].shape[-2], features[0].shape[-1])
        return Judged(similarity_map(maps, scale, size), cosines[:, 1] - cosines[:, 0])

    def _whole(
        self,
        features: Sequence[torch.Tensor],
        references: References,
        lengths: list[torch.Tensor],
        residuals_alone: bool,
    ) -> torch.Tensor:
        """What an image as a whole shows: its pooled features, how they differ from the closest reference's."""
        image, normal = pooled(features), pooled(references.levels)
        distance = torch.linalg.vector_norm(image.float()[:, None] - normal.float(), dim=2)
        closest = distance.argmin(dim=1)
        size = image.shape[1] ** 0.5
        if len(normal) > 1:
            apart = torch.linalg.vector_norm(normal.float()[:, None] - normal.float(), dim=2)
            others = apart + 1e4 * torch.eye(len(normal), device=normal.device)
            spread = others.amin(dim=1).mean()
        else:
            spread = distance.new_tensor(3.0)
        least = distance.amin(dim=1)
        relative = (least / spread.clamp(min=0.3)).clamp(min=SMALLEST).log()  # an image may equal a reference
        scalars = [least / size, relative, (spread / size).expand(len(least))]
        shown = image * 0 if residuals_alone else image
        return torch.cat([shown, image - normal[closest], torch.stack(scalars, dim=1), *lengths], dim=1)

    def image_logit(self, judged: Judged, fraction: float = HIGHEST, whole: float = 1.0) -> torch.Tensor:
        """(B,) score of each image, from its map's highest ``fraction`` and, ``whole`` times as trained, all of it."""
        local = highest(judged.probability, fraction).clamp(SMALLEST, 1 - SMALLEST).logit()
        return self.calibration[0] * local + self.calibration[1] + whole * self.calibration[2] * judged.image

    def map_logit(self, judged: Judged) -> torch.Tensor:
        """(B, h, w) map in the unit of `image_logit`."""
        return self.calibration[0] * judged.probability.clamp(SMALLEST, 1 - SMALLEST).logit() + self.calibration[1]


def pooled(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, 2·ΣC_l) mean and standard deviation over all places of each level's channels."""
    found = []
    for f in features:
        flat = f.flatten(2)
        mean = flat.mean(dim=2, keepdim=True)
        std = torch.linalg.vector_norm(flat - mean, dim=2) / (flat.shape[2] - 1) ** 0.5  # three times as fast as std
        found.append(torch.cat([mean[:, :, 0], std], dim=1))
    return torch.cat(found, dim=1)


def highest(maps: torch.Tensor, fraction: float) -> torch.Tensor:
    """(B,) mean of the highest ``fraction`` of (B, h, w) maps."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(fraction * flat.shape[1])), dim=1).values.mean(dim=1)
