"""The joint training over the pool: projection head, deviation network, adapters and prompts, by one-shot episodes.

python -m benchmarks.pretrain.joint --data DIR --heads heads.safetensors --adapted adapted.safetensors --out FILE

Starts from the regression of ``heads`` and the adapters of ``adapt``; the frozen networks are those of the package.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmarks.data import DEFAULT_DATA
from benchmarks.pretrain.adapt import CPU, pooled, schedule, start
from benchmarks.pretrain.episodes import Episodes, Pool, episode_loss
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones import load_backbone
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.nn.head import as_rows
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.synthesis.deviation import N_TIMES, draw_noise
from oneshot_medad.synthesis.masks import blob_masks, local_contrast
from oneshot_medad.training.cache import Batch, Encoded
from oneshot_medad.training.joint import JointModel


def losses(
    model: JointModel, episodes: Episodes, z, features, words, calibration, generator
) -> dict[str, torch.Tensor]:
    """Every term of one step; the deviations are made from each episode's normal image and judged with the others."""
    count = len(z) // 4
    projected = model.projection(z)
    aligned = [F.mse_loss(p.float(), f) for p, f in zip(projected, features, strict=True)]
    rows = torch.arange(3, len(z), 4)
    content = local_contrast(episodes.images[rows], (z.shape[-2], z.shape[-1]))
    mask = blob_masks(content, generator, max_area=0.25)
    noise = draw_noise(z[rows], model.recipe.deviations, generator)
    plain = Encoded(z[rows], [f[rows] for f in features], content, torch.zeros_like(mask))
    batch = Batch(plain, plain, None, mask, torch.randint(N_TIMES, (count,), generator=generator), noise)
    z_anom, deviation = model.synthesise(batch)
    changed = model.projection(z_anom)
    moved = [f[rows] + c - p[rows].detach() for f, c, p in zip(features, changed, projected, strict=True)]
    terms = {"deviation": deviation, "alignment": torch.stack(aligned).mean()}
    for branch, seen, disturbed in (("clip", features, moved), ("latent", projected, changed)):
        judged, made = [], []
        for e in range(count):
            normal = as_rows([f[4 * e : 4 * e + 1].detach() for f in seen])
            together = [
                torch.cat([f[4 * e + 1 : 4 * e + 4], d[e : e + 1]]) for f, d in zip(seen, disturbed, strict=True)
            ]
            found = model.branch_map(branch, together, normal, words)
            judged.append(found[:3])
            made.append(found[3:])
        found = episode_loss(torch.cat(judged).float(), episodes, calibration)
        fake = torch.cat(made).float()
        terms[f"{branch}_real"] = 4 * found["focal"] + found["dice"] + 0.5 * found["image"]
        terms[f"{branch}_latent"] = 2 * focal_loss(fake, mask) + 0.5 * dice_loss(fake, mask)
    return terms


def train(
    data: str, heads: Path, adapted: Path, out: Path, steps: int, count: int = 4, lr: float = 1e-3, limit=None
) -> None:
    """Write all trained parts to ``out``."""
    begun, generator = time.time(), torch.Generator().manual_seed(1)
    backbone = load_backbone(get_spec("tiny"), CPU)
    pool = Pool(data, backbone.spec.image_px, pooled(backbone.vision), seed=1, limit=limit)
    model = start(backbone, pool, seed=1, init="random")
    before = {k: v for k, v in load_file(heads).items() if k.startswith(("projection", "unet"))}
    before |= load_file(adapted)
    latent = {k.replace("clip", "latent"): v for k, v in before.items() if k.startswith("adapters.clip")}
    model.load_state_dict({k: v.float() for k, v in {**before, **latent}.items()}, strict=False)
    calibration = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    parameters = [*model.parameters(), calibration]
    optimiser = torch.optim.AdamW(parameters, weight_decay=1e-2)
    history: list[dict[str, float]] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        episodes = pool.draw(count)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            z, features = backbone.features(episodes.images)
            words = model.text_features(backbone.text)
            terms = losses(model, episodes, z, features, words, calibration, generator)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        history.append({k: float(v.detach()) for k, v in terms.items()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            means = {k: round(float(np.mean([h[k] for h in history[-100:]])), 4) for k in history[-1]}
            print(step + 1, f"{time.time() - begun:.0f} s", means, flush=True)
            save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, out)
    record = json.loads(heads.with_suffix(".json").read_text())["record"]
    minutes = round((time.time() - begun) / 60, 1)
    record["joint"] = {"steps": steps, "episodes_a_step": count, "minutes": minutes, "losses": means}
    out.with_suffix(".json").write_text(json.dumps({"record": record}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DEFAULT_DATA)
    for name in ("--heads", "--adapted", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--limit", type=int, help="images of each class, for a trial")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    train(args.data, args.heads, args.adapted, args.out, args.steps, limit=args.limit)
