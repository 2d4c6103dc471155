"""Episodes as the trained parts see them: frozen features, encoded once and kept in shards on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad._safetensors import load_tensors
from oneshot_medad.backbones.clip import VisionTower
from oneshot_medad.pretraining.episodes import Episodes

SHARD = 100
"""Episodes in a file."""
STEP = 1 / 16
"""Of the features, which are kept in 8 bits: far finer than what two views of one image differ by."""


@torch.no_grad()
def encode(episodes: Episodes, vision: VisionTower, count: int, folder: Path, progress: Callable[[str], None]) -> None:
    """Write ``count`` episodes to ``folder``; a run that was broken off goes on behind its last whole shard.

    Every shard draws from its own seed, so that the result does not depend on where a run was broken.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vision = vision.to(memory_format=torch.channels_last)
    device = vision.pixel_mean.device
    seed = episodes.generator.initial_seed()
    for shard in range(-(-count // SHARD)):
        path = folder / f"{shard:05}.safetensors"
        if path.exists():
            continue
        episodes.rng = np.random.default_rng([seed, shard])
        episodes.generator.manual_seed(seed * 100_003 + shard)
        kept: dict[str, list[torch.Tensor]] = {}
        for _ in range(min(SHARD, count - shard * SHARD)):
            drawn = episodes.draw()
            images = drawn.images.to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
                features = vision(images)
            size = features[0].shape[-2:]
            found = {f"level{i}": (f / STEP).round().clamp(-127, 127).to(torch.int8) for i, f in enumerate(features)}
            found["masks"] = F.adaptive_avg_pool2d(drawn.masks[:, None], size)[:, 0].half()
            found |= {"has_mask": drawn.has_mask, "labels": drawn.labels.bool(), "has_label": drawn.has_label}
            found["collection"] = torch.tensor(list(episodes.pool.collections).index(drawn.collection))
            for name, value in found.items():
                kept.setdefault(name, []).append(value.cpu().contiguous())
        part = path.with_suffix(".part")
        save_file({name: torch.stack(values).contiguous() for name, values in kept.items()}, part)
        part.replace(path)
        progress(f"{(shard + 1) * SHARD} episodes encoded")


class Encoded:
    """Encoded episodes in memory.

    Parameters
    ----------
    folder
        What `encode` wrote.
    """

    def __init__(self, folder: Path) -> None:
        parts = [load_tensors(path) for path in sorted(folder.glob("*.safetensors"))]
        self.tensors = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
        self.n_levels = sum(name.startswith("level") for name in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def features(self, k: int) -> list[torch.Tensor]:
        """(`N_IMAGES`, C_l, h_l, w_l) features of episode ``k`` at each level."""
        return [self.tensors[f"level{i}"][k].float() * STEP for i in range(self.n_levels)]

    def batches(self, count: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
        """Numbers of ``count`` episodes at a time, each episode once before any comes again."""
        while True:
            yield from torch.from_numpy(rng.permutation(len(self))).split(count)
