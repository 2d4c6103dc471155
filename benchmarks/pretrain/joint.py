"""The joint training over the pool: projection head, deviation network, adapters and prompts, by one-shot episodes.

python -m benchmarks.pretrain.joint --data DIR --heads heads.safetensors --adapted adapted.safetensors --out FILE

Starts from the regression of ``heads`` and the adapters of ``adapt``, or from an earlier result given as ``--heads``
alone; the frozen networks are those of the package. They run once over all episodes, and the loop trains on what they
gave. ``--parts vision`` leaves what reads latents as it is, and the autoencoder does not run; ``--parts latents``
leaves the vision branch and the prompts. ``--keep`` mixes the values before into the result, which holds on to what
they knew of other modalities (WiSE-FT, Wortsman et al. 2022).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.data import DEFAULT_DATA
from benchmarks.pretrain.adapt import CPU, pooled, schedule, start
from benchmarks.pretrain.episodes import Pool, Truth, episode_loss
from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.nn.head import as_rows
from oneshot_medad.synthesis.deviation import N_TIMES, draw_noise, masked_forward, strengths
from oneshot_medad.synthesis.masks import blob_masks, local_contrast
from oneshot_medad.training.joint import JointModel


@dataclass(frozen=True)
class EncodedEpisodes:
    """Episodes as the frozen networks see them, one row an episode, in half precision.

    Attributes
    ----------
    z
        (E, 5, C, h, w) latents of reference, drawn, abnormal and normal image, and of the clean one that was drawn on;
        without channels if the autoencoder did not run.
    features
        (E, 4, C_l, h_l, w_l) levels of the first four.
    content
        (E, 4, h, w) their local contrast.
    truth
        Masks and labels of the middle three, its tensors (E, 3, …).
    """

    z: torch.Tensor
    features: list[torch.Tensor]
    content: torch.Tensor
    truth: Truth

    def pick(self, rows: torch.Tensor) -> EncodedEpisodes:
        """Some episodes, in single precision."""

        def chosen(x: torch.Tensor) -> torch.Tensor:
            return x[rows] if x.dtype == torch.bool else x[rows].float()

        truth = Truth(*(chosen(getattr(self.truth, f.name)).flatten(0, 1) for f in fields(Truth)))
        return EncodedEpisodes(chosen(self.z), [chosen(f) for f in self.features], chosen(self.content), truth)

    def flipped(self) -> EncodedEpisodes:
        """As if all images were mirrored, which for convolutions is nearly so."""
        truth = replace(self.truth, masks=self.truth.masks.flip(-1))
        z, content, *levels = (x.flip(-1) for x in (self.z, self.content, *self.features))
        return EncodedEpisodes(z, levels, content, truth)

    def save(self, path: Path) -> None:
        """Keep them for another run."""
        truth = {f.name: getattr(self.truth, f.name).contiguous() for f in fields(Truth)}
        levels = {f"level{i}": f for i, f in enumerate(self.features)}
        save_file({"z": self.z, "content": self.content, **levels, **truth}, path)

    @classmethod
    def load(cls, path: Path) -> EncodedEpisodes:
        """What `save` kept."""
        found = load_file(path)
        levels = [found[f"level{i}"] for i in range(sum(name.startswith("level") for name in found))]
        return cls(found["z"], levels, found["content"], Truth(*(found[f.name] for f in fields(Truth))))


@torch.no_grad()
def encode_episodes(
    backbone: Backbone, pool: Pool, count: int, vision_only: bool = False, together: int = 4
) -> EncodedEpisodes:
    """Draw ``count`` episodes and run the frozen networks over them once."""
    begun, parts = time.time(), []
    for done in range(0, count, together):
        episodes = pool.draw(min(together, count - done))
        images = episodes.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            features = backbone.vision(images)
            size = features[0].shape[-2:]
            z, clean = (
                x.new_zeros(len(x), 0, *size) if vision_only else backbone.latents.encode(x)
                for x in (images, episodes.clean)
            )
        content = local_contrast(images, (z.shape[-2], z.shape[-1]))
        truth = episodes.truth
        masks = F.adaptive_avg_pool2d(truth.masks[:, None], features[0].shape[-2:])[:, 0]
        content, *levels = (x.half().unflatten(0, (-1, 4)) for x in (content, *features))
        latents = torch.cat([z.half().unflatten(0, (-1, 4)), clean.half()[:, None]], dim=1)
        known = (masks.half(), truth.has_mask, truth.labels, truth.has_label)
        parts.append(([latents, content, *levels], [x.unflatten(0, (-1, 3)) for x in known]))
        if done // together % 100 == 0:
            print(f"{done} episodes encoded, {time.time() - begun:.0f} s", flush=True)
    z, content, *features = (torch.cat(x) for x in zip(*(p[0] for p in parts), strict=True))
    truth = Truth(*(torch.cat(x) for x in zip(*(p[1] for p in parts), strict=True)))
    return EncodedEpisodes(z, features, content, truth)


def losses(model: JointModel, batch: EncodedEpisodes, words, calibration, generator) -> dict[str, torch.Tensor]:
    """Every term of one step.

    The deviation network learns the masked forward process on normal images, to take away the lesion where one was
    drawn, and nothing where nothing is.
    """
    count, clean = len(batch.z), batch.z[:, 4]
    z, features = batch.z[:, :4].flatten(0, 1), [f.flatten(0, 1) for f in batch.features]
    if not z.shape[1]:
        return {"clip": judged(model, "clip", features, words, batch.truth, calibration)}
    projected = model.projection(z)
    aligned = [F.mse_loss(p.float(), f) for p, f in zip(projected, features, strict=True)]
    normal = torch.cat([batch.z[:, 0], batch.z[:, 3]])
    mask = blob_masks(torch.cat([batch.content[:, 0], batch.content[:, 3]]), generator, max_area=0.25)
    noise = draw_noise(normal, model.recipe.deviations, generator)
    disturbed = masked_forward(normal, mask, torch.randint(N_TIMES, (2 * count,), generator=generator), noise)
    corrected = model.corrected(z)
    taken = (z - corrected).unflatten(0, (count, 4)) / strengths()[N_TIMES // 2]
    drawn = (batch.z[:, 1] - clean) / strengths()[N_TIMES // 2]
    terms = {
        "alignment": torch.stack(aligned).mean(),
        "deviation": F.mse_loss(model.unet(disturbed.z_noisy, disturbed.t), disturbed.eta),
        "drawn": F.mse_loss(taken[:, 1], drawn) + 0.5 * taken[:, [0, 3]].square().mean(),
    }
    for branch, seen in (("clip", features), ("latent", projected)):
        if any(p.requires_grad for p in model.adapters[branch].parameters()):
            terms[branch] = judged(model, branch, seen, words, batch.truth, calibration)
    return terms


def judged(model: JointModel, branch: str, seen, words, truth: Truth, calibration) -> torch.Tensor:
    """Loss of one branch that compares each episode's other images with its first."""
    maps = []
    for e in range(len(seen[0]) // 4):
        rows, others = as_rows([f[4 * e : 4 * e + 1].detach() for f in seen]), slice(4 * e + 1, 4 * e + 4)
        maps.append(model.branch_map(branch, [f[others] for f in seen], rows, words))
    found = episode_loss(torch.cat(maps).float(), truth, calibration)
    return 4 * found["focal"] + found["dice"] + 0.5 * found["image"]


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
    encoded: Path | None = None,
    parts: str = "all",
    seed: int = 1,
    keep: float = 0.0,
) -> None:
    """Write the running mean of all trained parts to ``out``; ``encoded`` is read if it exists and written if not."""
    begun, generator = time.time(), torch.Generator().manual_seed(seed)
    backbone = load_backbone(get_spec("tiny"), CPU)
    if encoded is not None and encoded.exists():
        seen = EncodedEpisodes.load(encoded)
        episodes = len(seen.z)
    else:
        pool = Pool(data, backbone.spec.image_px, pooled(backbone.vision), seed=seed, limit=limit)
        seen = encode_episodes(backbone, pool, episodes, parts == "vision")
        if encoded is not None:
            seen.save(encoded)
    model = start(backbone, seed=1)
    before = {k: v.float() for k, v in load_file(heads).items()}
    if adapted is not None:
        before |= {k: v.float() for k, v in load_file(adapted).items()}
    if not any(k.startswith("adapters.latent") for k in before):
        before |= {k.replace("clip", "latent"): v for k, v in before.items() if k.startswith("adapters.clip")}
    model.load_state_dict(before, strict=False)
    calibration = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    if parts == "latents":
        for part in (model.adapters["clip"], model.prompts):
            part.requires_grad_(False)
        model.log_scale.requires_grad_(False)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    parameters = [*(p for p in model.parameters() if p.requires_grad), calibration]
    optimiser = torch.optim.AdamW(parameters, weight_decay=1e-2)
    history: list[dict[str, float]] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * schedule(step, steps)
        batch = seen.pick(torch.randint(episodes, (count,), generator=generator))
        if torch.rand(1, generator=generator) < 0.5:
            batch = batch.flipped()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(CPU)):
            words = model.text_features(backbone.text)
            terms = losses(model, batch, words, calibration, generator)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        averaged.update_parameters(model)
        history.append({k: float(v.detach()) for k, v in terms.items()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            means = {k: round(float(np.mean([h[k] for h in history[-100:]])), 4) for k in history[-1]}
            print(step + 1, f"{time.time() - begun:.0f} s", means, flush=True)
            values = averaged.module.state_dict()
            mixed = {k: v.lerp(before[k], keep) if keep else v for k, v in values.items()}
            save_file({k: v.half().contiguous() for k, v in mixed.items()}, out)
    record = json.loads(heads.with_suffix(".json").read_text())["record"]
    minutes = round((time.time() - begun) / 60, 1)
    record.setdefault("joint", []).append(
        {
            "episodes": episodes,
            "steps": steps,
            "episodes_a_step": count,
            "parts": parts,
            "kept_of_before": keep,
            "minutes": minutes,
            "losses": means,
        }
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
    parser.add_argument("--encoded", type=Path, help="file that keeps the encoded episodes for another run")
    parser.add_argument("--count", type=int, default=6, help="episodes of a step")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--parts", choices=("all", "vision", "latents"), default="all", help="what is trained")
    parser.add_argument("--keep", type=float, default=0.0, help="share of the values before in the result")
    parser.add_argument("--seed", type=int, default=1, help="of episodes and training")
    train(**vars(parser.parse_args()))
