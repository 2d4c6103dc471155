"""Adapt the vision trunk to medical images, together with the detector that reads it, by one-shot episodes on the pool.

python -m benchmarks.pretrain.adapt --data DIR --clip clip.safetensors --heads heads.safetensors

The trunk learns whatever helps the adapters to tell lesions from what is normal next to one normal image, and is held
close to ImageNet's by the cosine between its image embeddings and those of a frozen copy, so that the text tower keeps
its meaning.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmarks.data import DEFAULT_DATA
from benchmarks.pretrain.episodes import Pool, episode_loss
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.clip import VisionTower
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.config import Recipe
from oneshot_medad.nn.head import as_rows
from oneshot_medad.training.cache import encode
from oneshot_medad.training.joint import JointModel

CPU = torch.device("cpu")


def schedule(step: int, steps: int) -> float:
    """Warm-up over 50 steps, then cosine decay to a fiftieth."""
    return min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / steps)))


def pooled(tower: VisionTower):
    """From (B, 3, S, S) images to the trunk's pooled features, without gradient."""

    @torch.no_grad()
    def embed(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            return tower.visual.trunk((images - tower.pixel_mean) / tower.pixel_std)

    return embed


def start(backbone: Backbone, seed: int) -> JointModel:
    """The trained parts of a default detector with both learned branches, from random values."""
    torch.manual_seed(seed)
    side = backbone.spec.image_px
    example = encode(backbone, torch.rand(1, 3, side, side))
    recipe = replace(Recipe.named("default"), branches={"clip": 0.5, "latent": 0.5})
    return JointModel.build(recipe, backbone, example, "random")


def train(
    data: str, clip: Path, heads: Path, steps: int, count: int = 5, lr: float = 1e-3, lr_trunk: float = 2e-4, limit=None
):
    """Write the adapted CLIP model to ``clip`` and adapters, prompts and scale to ``heads``."""
    begun = time.time()
    backbone = load_backbone(get_spec("tiny"), CPU)
    vision = backbone.vision.to(memory_format=torch.channels_last)
    pool = Pool(data, backbone.spec.image_px, pooled(vision), limit=limit)
    print(f"{len(pool.items)} images, {time.time() - begun:.0f} s", flush=True)
    model = start(backbone, seed=0)
    trunk = vision.visual.trunk
    teacher = copy.deepcopy(vision.visual)
    calibration = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    head = [*model.adapters["clip"].parameters(), *model.prompts.parameters(), model.log_scale, calibration]
    groups = [{"params": head, "base": lr}, {"params": list(trunk.requires_grad_(True).parameters()), "base": lr_trunk}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    history: list[dict[str, float]] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * schedule(step, steps)
        episodes = pool.draw(count)
        images = episodes.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            words = model.text_features(backbone.text)
            features, embedded = vision.forward_all(images)
            maps = []
            for e in range(count):
                reference, judged = (
                    [f[4 * e : 4 * e + 1] for f in features],
                    [f[4 * e + 1 : 4 * e + 4] for f in features],
                )
                maps.append(model.branch_map("clip", judged, as_rows(reference), words))
            with torch.no_grad():
                kept = teacher((images[::4] - vision.pixel_mean) / vision.pixel_std)
        terms = episode_loss(torch.cat(maps).float(), episodes.truth, calibration)
        terms["distil"] = (1 - F.cosine_similarity(embedded[::4].float(), kept.float())).mean()
        loss = 4 * terms["focal"] + terms["dice"] + 0.5 * terms["image"] + terms["distil"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimiser.step()
        history.append({k: float(v.detach()) for k, v in terms.items()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            means = {k: round(float(np.mean([h[k] for h in history[-100:]])), 4) for k in history[-1]}
            print(step + 1, f"{time.time() - begun:.0f} s", means, flush=True)
    tensors = load_file(backbone.spec.folder / "clip.safetensors")
    tensors |= {f"visual.trunk.{k}": v.half() if v.is_floating_point() else v for k, v in trunk.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, clip)
    described = json.loads((backbone.spec.folder / "clip.json").read_text())
    described["record"]["adapted"] = {
        "steps": steps, "episodes_a_step": count, "minutes": round((time.time() - begun) / 60, 1), "losses": means
    }  # fmt: skip
    clip.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    kept_parts = {
        k: v for k, v in model.state_dict().items() if k.startswith(("adapters.clip", "prompts", "log_scale"))
    }
    save_file({k: v.half().contiguous() for k, v in kept_parts.items()}, heads)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="images of each class, for a trial")
    parser.add_argument("--steps", type=int, default=1800)
    args = parser.parse_args()
    train(args.data, args.clip, args.heads, args.steps, limit=args.limit)
