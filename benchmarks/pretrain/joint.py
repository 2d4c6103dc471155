"""The joint training over the pool: projection head, deviation network, adapters and prompts, by one-shot episodes.

python -m benchmarks.pretrain.joint --data DIR --heads heads.safetensors --adapted adapted.safetensors --out FILE

Starts from the regression of ``heads`` and the adapters of ``adapt``, or from an earlier result given as ``--heads``
alone; the frozen networks are those of the package. They run once over all episodes, and the loop trains on what they
gave.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmarks.data import DEFAULT_DATA
from benchmarks.pretrain.adapt import CPU, pooled, schedule, start
from benchmarks.pretrain.episodes import Pool, Truth, episode_loss
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.nn.head import as_rows
from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.synthesis.deviation import N_TIMES, draw_noise
from oneshot_medad.synthesis.masks import blob_masks, local_contrast
from oneshot_medad.training.cache import Batch, Encoded
from oneshot_medad.training.joint import JointModel


@dataclass(frozen=True)
class Encoded4:
    """Episodes as the frozen networks see them, one row an episode, in half precision.

    Attributes
    ----------
    z, features, content
        (E, 4, …) latents, levels and local contrast of reference, drawn, abnormal and normal image.
    truth
        Masks and labels of the last three, its tensors (E, 3, …).
    """

    z: torch.Tensor
    features: list[torch.Tensor]
    content: torch.Tensor
    truth: Truth

    def pick(self, rows: torch.Tensor) -> Encoded4:
        """Some episodes, in single precision and image by image."""

        def flat(x: torch.Tensor) -> torch.Tensor:
            chosen = x[rows].flatten(0, 1)
            return chosen if chosen.dtype == torch.bool else chosen.float()

        truth = Truth(*(flat(getattr(self.truth, f.name)) for f in fields(Truth)))
        return Encoded4(flat(self.z), [flat(f) for f in self.features], flat(self.content), truth)


@torch.no_grad()
def encode_episodes(backbone: Backbone, pool: Pool, count: int, together: int = 4) -> Encoded4:
    """Draw ``count`` episodes and run the frozen networks over them once."""
    begun, parts = time.time(), []
    for done in range(0, count, together):
        episodes = pool.draw(min(together, count - done))
        images = episodes.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            z, features = backbone.features(images)
        content = local_contrast(images, (z.shape[-2], z.shape[-1]))
        truth = episodes.truth
        masks = F.adaptive_avg_pool2d(truth.masks[:, None], features[0].shape[-2:])[:, 0]
        rows = [x.half().unflatten(0, (-1, 4)) for x in (z, content, *features)]
        known = (masks.half(), truth.has_mask, truth.labels, truth.has_label)
        parts.append((rows, [x.unflatten(0, (-1, 3)) for x in known]))
        if done // together % 100 == 0:
            print(f"{done} episodes encoded, {time.time() - begun:.0f} s", flush=True)
    z, content, *features = (torch.cat(x) for x in zip(*(p[0] for p in parts), strict=True))
    return Encoded4(z, features, content, Truth(*(torch.cat(x) for x in zip(*(p[1] for p in parts), strict=True))))


def losses(model: JointModel, batch: Encoded4, words, calibration, generator) -> dict[str, torch.Tensor]:
    """Every term of one step; the deviations are made from each episode's normal image and judged with the others."""
    z, features = batch.z, batch.features
    count = len(z) // 4
    projected = model.projection(z)
    aligned = [F.mse_loss(p.float(), f) for p, f in zip(projected, features, strict=True)]
    rows = torch.arange(3, len(z), 4)
    mask = blob_masks(batch.content[rows], generator, max_area=0.25)
    noise = draw_noise(z[rows], model.recipe.deviations, generator)
    plain = Encoded(z[rows], [f[rows] for f in features], batch.content[rows], torch.zeros_like(mask))
    times = torch.randint(N_TIMES, (count,), generator=generator)
    z_anom, deviation = model.synthesise(Batch(plain, plain, None, mask, times, noise))
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
        found = episode_loss(torch.cat(judged).float(), batch.truth, calibration)
        fake = torch.cat(made).float()
        terms[f"{branch}_real"] = 4 * found["focal"] + found["dice"] + 0.5 * found["image"]
        terms[f"{branch}_latent"] = 2 * focal_loss(fake, mask) + 0.5 * dice_loss(fake, mask)
    return terms


def train(
    data: str,
    heads: Path,
    adapted: Path | None,
    out: Path,
    episodes: int,
    steps: int,
    count: int = 6,
    lr: float = 7e-4,
    limit: int | None = None,
) -> None:
    """Write all trained parts to ``out``."""
    begun, generator = time.time(), torch.Generator().manual_seed(1)
    backbone = load_backbone(get_spec("tiny"), CPU)
    pool = Pool(data, backbone.spec.image_px, pooled(backbone.vision), seed=1, limit=limit)
    model = start(backbone, pool, seed=1)
    before = {k: v.float() for k, v in load_file(heads).items()}
    if adapted is not None:
        before |= {k: v.float() for k, v in load_file(adapted).items()}
    if not any(k.startswith("adapters.latent") for k in before):
        before |= {k.replace("clip", "latent"): v for k, v in before.items() if k.startswith("adapters.clip")}
    model.load_state_dict(before, strict=False)
    seen = encode_episodes(backbone, pool, episodes)
    calibration = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    parameters = [*model.parameters(), calibration]
    optimiser = torch.optim.AdamW(parameters, weight_decay=1e-2)
    history: list[dict[str, float]] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        batch = seen.pick(torch.randint(episodes, (count,), generator=generator))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            words = model.text_features(backbone.text)
            terms = losses(model, batch, words, calibration, generator)
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
    record.setdefault("joint", []).append(
        {"episodes": episodes, "steps": steps, "episodes_a_step": count, "minutes": minutes, "losses": means}
    )
    out.with_suffix(".json").write_text(json.dumps({"record": record}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--adapted", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="images of each class, for a trial")
    parser.add_argument("--episodes", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    train(args.data, args.heads, args.adapted, args.out, args.episodes, args.steps, limit=args.limit)
