"""Adapt the vision trunk to medical images, together with the detector that reads it, by one-shot episodes on the pool.

python -m benchmarks.pretrain.adapt --data DIR --clip clip.safetensors --heads heads.safetensors
python -m benchmarks.pretrain.adapt --data DIR --clip clip.safetensors --heads heads.safetensors --more

The trunk learns whatever helps the adapters to tell lesions from what is normal next to one normal image, and is held
close to ImageNet's by the cosine between its image embeddings and those of a frozen copy, so that the text tower keeps
its meaning. ``--more`` goes on from the package's adapted trunk and heads, and writes all parts of the latter.
``--mean-of`` takes the mean of the values after some steps (model soups, Wortsman et al. 2022), ``--keep`` mixes the
values before into the result; both know more of other modalities than the last values. With ``--deviations`` half of
the drawn lesions are the deviation network's, decoded.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.data import DEFAULT_DATA
from benchmarks.pretrain.episodes import Pool, deviated, episode_loss
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


def start(backbone: Backbone, seed: int, init: str = "random") -> JointModel:
    """The trained parts of a default detector with both learned branches."""
    torch.manual_seed(seed)
    side = backbone.spec.image_px
    example = encode(backbone, torch.rand(1, 3, side, side))
    recipe = replace(Recipe.named("default"), branches={"clip": 0.5, "latent": 0.5})
    return JointModel.build(recipe, backbone, example, init)


def train(
    data: str,
    clip: Path,
    heads: Path,
    steps: int,
    count: int = 5,
    lr: float = 1e-3,
    lr_trunk: float = 2e-4,
    limit: int | None = None,
    more: bool = False,
    mean_of: Sequence[int] = (),
    seed: int = 0,
    deviations: bool = False,
    keep: float = 0.0,
) -> None:
    """Write the running mean of the adapted CLIP model to ``clip``, and of adapters, prompts and scale to ``heads``."""
    begun = time.time()
    backbone = load_backbone(get_spec("tiny"), CPU)
    vision = backbone.vision.to(memory_format=torch.channels_last)
    # a model of its own, whose deviation network stays as it is
    deviate = partial(deviated, start(backbone, seed, "pretrained").eval(), backbone.latents) if deviations else None
    pool = Pool(data, backbone.spec.image_px, pooled(vision), seed=seed, limit=limit, deviate=deviate)
    print(f"{len(pool.items)} images, {time.time() - begun:.0f} s", flush=True)
    model = start(backbone, seed, "pretrained" if more else "random")
    trunk = vision.visual.trunk
    trained = torch.nn.ModuleDict({"trunk": trunk, "heads": model})
    averaged = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    teacher = copy.deepcopy(vision.visual)
    old = {k: v.clone() for k, v in trained.state_dict().items()}
    calibration = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    head = [*model.adapters["clip"].parameters(), *model.prompts.parameters(), model.log_scale, calibration]
    groups = [{"params": head, "base": lr}, {"params": list(trunk.requires_grad_(True).parameters()), "base": lr_trunk}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    history: list[dict[str, float]] = []
    kept: list[dict[str, torch.Tensor]] = []
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
                taught = teacher((images[::4] - vision.pixel_mean) / vision.pixel_std)
        terms = episode_loss(torch.cat(maps).float(), episodes.truth, calibration)
        terms["distil"] = (1 - F.cosine_similarity(embedded[::4].float(), taught.float())).mean()
        loss = 4 * terms["focal"] + terms["dice"] + 0.5 * terms["image"] + terms["distil"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimiser.step()
        averaged.update_parameters(trained)
        history.append({k: float(v.detach()) for k, v in terms.items()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            means = {k: round(float(np.mean([h[k] for h in history[-100:]])), 4) for k in history[-1]}
            print(step + 1, f"{time.time() - begun:.0f} s", means, flush=True)
        if step + 1 in (mean_of or [steps]):
            kept.append({k: v.clone() for k, v in averaged.module.state_dict().items()})
    mean = {k: torch.stack([found[k] for found in kept]).float().mean(0) for k in kept[0]}
    mean = {k: v.lerp(old[k].float(), keep) for k, v in mean.items()}
    tensors = load_file(backbone.spec.folder / "clip.safetensors")
    save(mean, tensors, backbone.initial if more else {}, clip, heads)
    described = json.loads((backbone.spec.folder / "clip.json").read_text())
    record = {"steps": steps, "episodes_a_step": count, "mean_of": list(mean_of), "seed": seed}
    record |= {"deviations": deviations, "kept_of_before": keep}
    record |= {"minutes": round((time.time() - begun) / 60, 1), "losses": means}
    described["record"].setdefault("adapted", []).append(record)
    clip.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")


def save(
    values: dict[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    parts: Mapping[str, torch.Tensor],
    clip: Path,
    heads: Path,
) -> None:
    """The CLIP model ``tensors`` with the adapted trunk to ``clip``, ``parts`` with what was trained to ``heads``."""
    tensors, parts = dict(tensors), {k: v.half() for k, v in parts.items()}
    for name, value in values.items():
        kind, _, rest = name.partition(".")
        if kind == "trunk":
            tensors[f"visual.trunk.{rest}"] = value.to(tensors[f"visual.trunk.{rest}"].dtype)
        elif rest.startswith(("adapters.clip", "prompts", "log_scale")):
            parts[rest] = value.half()
    for found, path in ((tensors, clip), (parts, heads)):
        save_file({k: v.contiguous() for k, v in found.items()}, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="images of each class, for a trial")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--lr", type=float, default=1e-3, help="of adapters and prompts")
    parser.add_argument("--lr-trunk", type=float, default=2e-4)
    parser.add_argument("--more", action="store_true", help="go on from the package's values")
    parser.add_argument("--mean-of", type=int, nargs="+", default=(), help="steps; default the last one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=float, default=0.0, help="share of the values before in the result")
    parser.add_argument("--deviations", action="store_true", help="half of the drawn lesions by the deviation network")
    train(**vars(parser.parse_args()))
