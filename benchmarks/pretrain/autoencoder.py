"""Train the embedded autoencoder on the pool.

python -m benchmarks.pretrain.autoencoder --data DIR --out FILE.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.data import DEFAULT_DATA, jitter, load, random_crop, read_manifest
from oneshot_medad.backbones.medvae import build_autoencoder
from oneshot_medad.images.preprocess import to_field

CONFIG = {
    "embed_dim": 16,
    "ddconfig": {
        "double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "attn_type": "none", "dropout": 0.0,
    },
}  # fmt: skip


def losses(x: torch.Tensor, out: torch.Tensor, posterior) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mean absolute error on [0, 1]): L1 of values and of gradients, and a slight pull to unit variance."""
    error = (out - x).float()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    values = error.abs().mean()
    return values + edges + 1e-6 * posterior.kl().mean() / 16, values.detach() / 2


def train(data: str, out: Path, crop_steps: int, field_steps: int, resume: Path | None, lr: float = 6e-4) -> None:
    """Train on crops, then on whole fields, and write fp16 weights plus a JSON record beside them.

    Group normalisation sees other statistics in a crop than in a field with empty borders, hence the second phase.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = [load(item.path) for item in read_manifest(data, role="pool")]
    model = build_autoencoder(CONFIG)
    if resume:
        model.load_state_dict({k: v.float() for k, v in load_file(resume).items()})

    def forward(x):
        posterior = model.encode(x)
        return model.decode(posterior.sample()), posterior

    def draw(step: int) -> torch.Tensor:
        if step <= crop_steps:
            picked = [random_crop(images[i], 128, rng) for i in rng.integers(len(images), size=8)]
        else:
            picked = [to_field(images[i].float() / 255, 256) for i in rng.integers(len(images), size=2)]
        return torch.stack([jitter(x, rng) for x in picked]) * 2 - 1

    run, steps = torch.compile(forward, dynamic=False), crop_steps + field_steps
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.99))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    start, errors = time.time(), []
    pool = ThreadPoolExecutor(1)  # draws the next batch while the current one trains
    following = pool.submit(draw, 1)
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, step / 100) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / steps)))
        x, following = following.result(), pool.submit(draw, step + 1)
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction, posterior = run(x)
        loss, mae = losses(x, reconstruction, posterior)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(model)
        errors.append(float(mae))
        if step % 200 == 0:
            print(f"step {step} minutes {(time.time() - start) / 60:.1f} mae {np.mean(errors[-200:]):.4f}", flush=True)
        if step % 500 == 0 or step == steps:
            record = {"crop_steps": min(step, crop_steps), "field_steps": max(0, step - crop_steps)}
            record |= {"minutes": round((time.time() - start) / 60, 1), "train_mae": float(np.mean(errors[-500:]))}
            write(out, average.module, record)


def write(out: Path, model: torch.nn.Module, record: dict) -> None:
    """Save fp16 weights, and their architecture with the record of the run beside them."""
    save_file({k: v.detach().half().contiguous() for k, v in model.state_dict().items()}, out)
    out.with_suffix(".json").write_text(json.dumps({"config": CONFIG, "record": record}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crop-steps", type=int, default=4000)
    parser.add_argument("--field-steps", type=int, default=2500)
    parser.add_argument("--resume", type=Path, help="weights to start from instead of random ones")
    args = parser.parse_args()
    train(args.data, args.out, args.crop_steps, args.field_steps, args.resume)
