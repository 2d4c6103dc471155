"""Scale and probes of the embedded networks, over pool images.

python -m benchmarks.pretrain.statistics --data DIR --weights FOLDER

Goes after ``autoencoder`` and ``clip``, before ``heads``; with ``--keep-scale`` after the trunk was
adapted, because adapters have learned to read features of that scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.data import DEFAULT_DATA, fields_of, read_manifest, split
from oneshot_medad.backbones import read_autoencoder, read_visual
from oneshot_medad.backbones.clip import VisionTower
from oneshot_medad.backbones.medvae import LatentSpace
from oneshot_medad.backbones.specs import STATISTICS, WEIGHTS, get_spec
from oneshot_medad.backbones.statistics import measure


def write(data: str, weights: Path, count: int, keep_scale: bool) -> None:
    """Measure the networks in ``weights`` over ``count`` images and write the file beside them."""
    spec = get_spec("tiny")
    items = split(read_manifest(data, role="pool"), held_out=0)[0][: 1 if keep_scale else count]
    autoencoder = read_autoencoder(weights)
    latents = LatentSpace(autoencoder, torch.zeros(autoencoder.embed_dim), torch.ones(autoencoder.embed_dim))
    vision = VisionTower(read_visual(weights), spec.levels, spec.mean, spec.std, [])
    batches = (fields_of(items[i : i + 8], spec.image_px) for i in range(0, len(items), 8))
    tensors = measure(latents, vision, batches)
    if keep_scale:
        before = load_file(weights / STATISTICS)
        tensors |= {name: value for name, value in before.items() if not name.startswith("probe.")}
    save_file(tensors, weights / STATISTICS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--keep-scale", action="store_true", help="write new probes only")
    args = parser.parse_args()
    write(args.data, args.weights, args.count, args.keep_scale)
