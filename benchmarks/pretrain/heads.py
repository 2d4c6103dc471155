"""Pre-train projection head and deviation network on the pool by regression, on top of the embedded backbones.

python -m benchmarks.pretrain.heads --data DIR --out FILE.safetensors --steps 2500
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.data import DEFAULT_DATA, Item, fields_of, read_manifest, split
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.config import DEVIATIONS
from oneshot_medad.images.augment import normal_views
from oneshot_medad.nn.projection import ProjectionHead
from oneshot_medad.nn.unet import DeviationUNet
from oneshot_medad.synthesis.deviation import N_TIMES, draw_noise, masked_forward
from oneshot_medad.synthesis.lesions import add_lesions
from oneshot_medad.synthesis.masks import blob_masks
from oneshot_medad.training.cache import Encoded, encode, join

CPU = torch.device("cpu")


def encode_items(backbone: Backbone, items: list[Item], generator: torch.Generator) -> Encoded:
    """One varied view of every image, a quarter of them with a drawn lesion, encoded and kept in half precision."""
    parts = []
    for i in range(0, len(items), 32):
        fields = fields_of(items[i : i + 32], backbone.spec.image_px)
        fields = normal_views(fields, 2 * len(fields), generator)[len(fields) :]
        quarter = len(fields) // 4
        if quarter:
            fields[:quarter] = add_lesions(fields[:quarter], generator)[0]
        e = encode(backbone, fields)
        parts.append(Encoded(e.z.half(), [f.half() for f in e.features], e.content, e.mask))
        if i % 1280 == 0:
            print(f"encoded {i + len(fields)} of {len(items)}", flush=True)
    return join(parts)


def fit(module: torch.nn.Module, loss_of, steps: int, lr: float) -> None:
    """Plain AdamW with warm-up and cosine decay."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-3)
    values = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 100) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / steps)))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            loss = loss_of(module)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        values.append(float(loss.detach()))
        if (step + 1) % 200 == 0:
            print(f"{type(module).__name__} step {step + 1} loss {np.mean(values[-200:]):.4f}", flush=True)


def train(data: str, out: Path, steps: int, batch: int = 16, lr: float = 1e-3) -> None:
    """Pre-train both parts and write them under the names a detector gives them."""
    torch.manual_seed(0)
    start, generator = time.time(), torch.Generator().manual_seed(0)
    backbone = load_backbone(get_spec("tiny"), CPU)
    items, held_items = split(read_manifest(data, role="pool"))
    seen, held = encode_items(backbone, items, generator), encode_items(backbone, held_items, generator)
    normal = seen[torch.tensor([i for i, item in enumerate(items) if item.label == "normal"])]
    held_normal = held[torch.tensor([i for i, item in enumerate(held_items) if item.label == "normal"])]
    levels = [(f.shape[1], f.shape[-1]) for f in seen.features]
    projection = ProjectionHead(seen.z.shape[1], levels, seen.z.shape[-1])
    unet = DeviationUNet(seen.z.shape[1])

    def pick(pool: Encoded) -> Encoded:
        return pool[torch.randint(len(pool), (batch,), generator=generator)]

    def projection_loss(module):
        views = pick(seen)
        return torch.stack(
            [F.mse_loss(p.float(), f.float()) for p, f in zip(module(views.z.float()), views.features, strict=True)]
        ).mean()

    def deviation_terms(module, views):
        z = views.z.float()
        mask = blob_masks(views.content, generator, max_area=0.25)
        t = torch.randint(N_TIMES, (len(z),), generator=generator)
        d = masked_forward(z, mask, t, draw_noise(z, dict.fromkeys(DEVIATIONS, 1.0), generator))
        return (module(d.z_noisy, d.t).float() - d.eta).square(), d.eta.square()

    fit(projection, projection_loss, steps, lr)
    fit(unet, lambda m: deviation_terms(m, pick(normal))[0].mean(), steps, lr)

    with torch.no_grad():
        predicted = [projection(z[None].float()) for z in held.z]
        explained = []
        for k, truth in enumerate(held.features):
            error = torch.cat([p[k] for p in predicted]) - truth.float()
            explained.append(1 - float(error.square().mean() / truth.float().var()))
        errors = [deviation_terms(unet, held_normal[i : i + 16]) for i in range(0, len(held_normal), 16)]
    record = {
        "steps_each": steps,
        "minutes": round((time.time() - start) / 60, 1),
        "images": len(items),
        "held_out_images": len(held_items),
        "projection_explained_variance": explained,
        "deviation_relative_error": float(sum(e.sum() for e, _ in errors) / sum(s.sum() for _, s in errors)),
    }
    print(record)
    tensors = {f"projection.{k}": v for k, v in projection.state_dict().items()}
    tensors |= {f"unet.{k}": v for k, v in unet.state_dict().items()}
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, out)
    out.with_suffix(".json").write_text(json.dumps({"record": record}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    train(args.data, args.out, args.steps)
