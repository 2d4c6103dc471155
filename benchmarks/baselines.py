"""Simple methods on the same frozen features, for the table of `benchmarks.run`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from oneshot_medad.backbones import Backbone
from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.images.augment import normal_views
from oneshot_medad.nn.matching import as_rows
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES
from oneshot_medad.training.cache import encode

PADIM_VIEWS = 24
PADIM_CHANNELS = 100
BANK_SIZE = 8192
"""Normal places that are compared with; of more, every n-th."""


def join_levels(features: list[torch.Tensor]) -> torch.Tensor:
    """The two finest levels, averaged over 3×3 neighbourhoods, on the finest grid (PatchCore, Roth et al. 2022)."""
    size = features[0].shape[-2:]
    smooth = [F.avg_pool2d(f, 3, stride=1, padding=1, count_include_pad=False) for f in features[:2]]
    return torch.cat([F.interpolate(f, size, mode="bilinear", align_corners=False) for f in smooth], dim=1)


@torch.no_grad()
def nearest(normal: list[torch.Tensor], features: list[torch.Tensor]) -> torch.Tensor:
    """(B, h, w) Euclidean distances to the nearest local feature of normal images, as PatchCore's without its coreset.

    Parameters
    ----------
    normal, features
        (K, C_l, h_l, w_l) and (B, C_l, h_l, w_l) features of the normal images and of those to judge.
    """
    bank = as_rows(join_levels(normal))
    bank = bank[:: -(-len(bank) // BANK_SIZE)]
    tested = join_levels(features)
    b, _, h, w = tested.shape
    return torch.cat([torch.cdist(c, bank).amin(dim=1) for c in as_rows(tested).split(1024)]).reshape(b, h, w)


@torch.no_grad()
def padim(backbone: Backbone, fields: torch.Tensor, features: list[torch.Tensor], seed: int) -> torch.Tensor:
    """(B, h, w) Mahalanobis distances to a Gaussian at every place (PaDiM, Defard et al. 2021).

    One image has no covariance: the Gaussians are those of its augmented views, over a random choice of channels.

    Parameters
    ----------
    fields
        (K, 3, S, S) normal images.
    features
        (B, C_l, h_l, w_l) features of the images to judge.
    """
    generator = torch.Generator().manual_seed(seed)
    views = normal_views(fields, max(PADIM_VIEWS, len(fields)), generator)
    normal = join_levels(encode(backbone, views, size=(1, 1)).features)
    chosen = torch.randperm(normal.shape[1], generator=generator)[:PADIM_CHANNELS]
    n, _, h, w = normal.shape
    rows = normal[:, chosen].flatten(2).permute(2, 0, 1).double()
    mean = rows.mean(dim=1, keepdim=True)
    centred = rows - mean
    covariance = centred.transpose(1, 2) @ centred / max(n - 1, 1) + 0.01 * torch.eye(len(chosen), dtype=torch.double)
    factor = torch.linalg.cholesky(covariance)
    tested = join_levels(features)[:, chosen].flatten(2).permute(2, 1, 0).double()
    solved = torch.linalg.solve_triangular(factor, tested - mean.transpose(1, 2), upper=False)
    return solved.norm(dim=1).T.reshape(-1, h, w).float()


class Given(torch.nn.Module):
    """A feature extractor that gives what it is told."""

    features: dict[str, torch.Tensor]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.features


@torch.no_grad()
def anomalib_patchcore(
    backbone: Backbone, fields: torch.Tensor, features: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) scores and (B, S, S) maps of anomalib's PatchCore with its own settings, on the embedded vision features.

    Its memory holds the normal images alone, and it reads features before they are standardised, as it always does.

    Parameters
    ----------
    fields
        (K, 3, S, S) normal images.
    features
        (B, C_l, h_l, w_l) features of the images to judge.
    """
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    tower, layers = backbone.vision, ("blocks.2", "blocks.4")

    def raw(levels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        scales = [(tower.get_buffer(f"std{i}"), tower.get_buffer(f"mean{i}")) for i in range(len(layers))]
        return {name: f * std + mean for name, f, (std, mean) in zip(layers, levels, scales, strict=False)}

    model = PatchcoreModel(layers, "efficientnet_lite0", pre_trained=False)
    model.feature_extractor = given = Given()
    given.features = raw(tower(fields))
    model.train()(fields)
    model.subsample_embedding(0.1)
    model.eval()
    scores, maps = [], []
    for chunk in torch.arange(len(features[0])).split(16):
        given.features = raw([f[chunk] for f in features])
        found = model(fields[:1].expand(len(chunk), -1, -1, -1))
        scores.append(found.pred_score.flatten())
        maps.append(found.anomaly_map[:, 0])
    return torch.cat(scores), torch.cat(maps)


@torch.no_grad()
def zero_shot(backbone: Backbone, embedded: torch.Tensor) -> torch.Tensor:
    """(B,) cosine of (B, D) image embeddings with the abnormal phrases minus that with the normal ones, as they are."""
    means = [F.normalize(backbone.text(tokenize(p)).mean(0), dim=0) for p in (NORMAL_PHRASES, ABNORMAL_PHRASES)]
    return F.normalize(embedded, dim=1) @ (means[1] - means[0])
