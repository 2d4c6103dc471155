"""How alike two images of one modality are to the vision tower: the limit below which a detector does not judge.

python -m benchmarks.pretrain.kinds --data DIR --weights FOLDER

Goes last. One half of the images sets ``least_similarity`` in ``statistics.safetensors``, the other half says what
share of each collection it rejects, beside each other one; both are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.data import DEFAULT_DATA, fields_of, read_manifest
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.specs import STATISTICS, WEIGHTS, get_spec

RATE = 0.05


def gists(backbone: Backbone, data: str, count: int) -> dict[str, torch.Tensor]:
    """(count, G) of random images of each collection of the pool."""
    rng, found = np.random.default_rng(0), {}
    items = read_manifest(data, role="pool")
    for name in sorted({item.set for item in items}):
        members = [item for item in items if item.set == name]
        chosen = [members[i] for i in rng.permutation(len(members))[:count]]
        chunks = [chosen[i : i + 16] for i in range(0, len(chosen), 16)]
        found[name] = torch.cat([backbone.vision.with_gist(fields_of(c, backbone.spec.image_px))[1] for c in chunks])
    return found


def measure(found: dict[str, torch.Tensor]) -> tuple[float, dict[str, dict[str, float]]]:
    """The limit, and the share of images that it rejects by (collection of the reference, collection of the image)."""
    first, second = ({k: v[i::2] for k, v in found.items()} for i in (0, 1))
    own = [(v @ v.T)[~torch.eye(len(v), dtype=torch.bool)] for v in first.values()]
    limit = float(np.quantile(torch.cat([x[torch.randperm(len(x))[:1000]] for x in own]).numpy(), RATE))
    rejected = {}
    for name, references in second.items():
        rejected[name] = {}
        for other, images in second.items():
            alike = references @ images.T
            if other == name:
                alike = alike[~torch.eye(len(images), dtype=torch.bool)]
            rejected[name][other] = round(float((alike < limit).float().mean()), 3)
    return limit, rejected


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    limit, rejected = measure(gists(load_backbone(get_spec("tiny"), torch.device("cpu")), args.data, args.count))
    own = np.mean([row[name] for name, row in rejected.items()])
    others = np.mean([share for name, row in rejected.items() for other, share in row.items() if other != name])
    print(f"limit {limit:.3f}; rejected: {own:.3f} of the own collection, {others:.3f} of others")
    for name, row in rejected.items():
        print(name, row)
    tensors = load_file(args.weights / STATISTICS)
    save_file({**tensors, "least_similarity": torch.tensor(limit)}, args.weights / STATISTICS)
