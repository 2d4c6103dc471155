"""What the embedded weights are worth: reconstruction, projection and zero-shot accuracy.

python -m benchmarks.pretrain.measure --data DIR
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.data import DEFAULT_DATA, fields_of, read_manifest, split
from benchmarks.pretrain.captions import MODALITIES
from oneshot_medad import Recipe
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.training.cache import encode
from oneshot_medad.training.joint import JointModel


@torch.no_grad()
def on_unseen_images(backbone: Backbone, data: str, count: int = 60) -> dict[str, dict[str, object]]:
    """Of ``count`` random images per eval set: reconstruction error in [0, 1] and what P explains of each level."""
    measured = {}
    for name in ("headct", "covidx", "lgg", "mias"):
        items = read_manifest(data, role="eval", sets=[name])
        picks = [items[k] for k in np.random.default_rng(0).permutation(len(items))[:count]]
        fields = fields_of(picks, backbone.spec.image_px)
        seen = encode(backbone, fields)
        back = torch.cat([backbone.latents.decode(z) for z in seen.z.split(8)])
        projected = JointModel.build(Recipe.named("default"), backbone, seen).eval().projection(seen.z)
        explained = [
            1 - float((p - f).square().mean() / (f - f.mean((0, 2, 3), keepdim=True)).square().mean())
            for p, f in zip(projected, seen.features, strict=True)
        ]
        measured[name] = {
            "mean_absolute_error": round(float((back - fields).abs().mean()), 4),
            "projection_explained_variance": [round(e, 3) for e in explained],
        }
    return measured


@torch.no_grad()
def zero_shot_modality(backbone: Backbone, data: str) -> float:
    """Share of held-out pool images whose collection's modality is the nearest prompt."""
    _, items = split(read_manifest(data, role="pool"))
    names = sorted(MODALITIES)
    tokens = tokenize([f"a medical image: {MODALITIES[name][0]}" for name in names])
    words = backbone.text(tokens)
    right = 0
    for start in range(0, len(items), 32):
        chunk = items[start : start + 32]
        _, embedded = backbone.vision.forward_all(fields_of(chunk, backbone.spec.image_px))
        found = (F.normalize(embedded, dim=-1) @ words.T).argmax(1)
        right += sum(names[k] == item.set for k, item in zip(found.tolist(), chunk, strict=True))
    return right / len(items)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    args = parser.parse_args()
    tiny = load_backbone(get_spec("tiny"), torch.device("cpu"))
    print(json.dumps({"unseen": on_unseen_images(tiny, args.data)}, indent=2))
    print(json.dumps({"zero_shot_modality_accuracy": zero_shot_modality(tiny, args.data)}))
