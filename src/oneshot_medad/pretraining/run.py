"""From a folder of collections to a backbone folder with new initial values, in stages that resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneshot_medad._runtime import has_fast_bf16, resolve_device
from oneshot_medad._safetensors import load_tensors
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.clip import tokenize
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import SPEC, STATISTICS, get_spec
from oneshot_medad.nn.adapters import ContextAdapters, pooled
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES, Prompts
from oneshot_medad.pretraining.episodes import Episodes
from oneshot_medad.pretraining.features import Encoded, encode
from oneshot_medad.pretraining.heads import Head, HeadRecipe, train
from oneshot_medad.pretraining.kinds import COHORT, learn_kinds, least_similarity
from oneshot_medad.pretraining.pool import Pool, Rules, read_manifest

RULES = Path(__file__).parent / "pool.json"
"""Of the pool that the embedded weights were made from."""
HEADS = "heads.safetensors"
N_IMAGES = 60
"""Images of each collection from which kinds are learned."""


def pretrain(
    data: str | Path,
    out: str | Path,
    rules: Rules | None = None,
    n_episodes: int = 6000,
    recipe: HeadRecipe | None = None,
    labels: bool = True,
    backbone: str | Path = "tiny",
    device: str = "auto",
    seed: int = 7,
    progress: Callable[[str], None] = print,
) -> Path:
    """Train adapters, prompts and scale on one-shot episodes over a pool of collections.

    Parameters
    ----------
    data
        Folder with ``MANIFEST.csv``; see `read_manifest`.
    out
        Folder for encoded episodes and the result. A run that was broken off goes on there.
    rules
        What is odd about some collections; None if nothing is.
    n_episodes
        Episodes to encode, 1 MB each with the embedded networks.
    recipe
        How the heads are trained.
    labels
        Use masks and labels of real lesions; without, every lesion is drawn.
    backbone, device
        As for `AnomalyDetector`.
    seed
        Of all draws of episodes.
    progress
        Is told how far it is.

    Returns
    -------
    The folder of the backbone with its new initial values, for ``AnomalyDetector(backbone=...)``.
    """
    out, recipe = Path(out), recipe or HeadRecipe()
    frozen = load_backbone(resolve(get_spec(backbone), True), resolve_device(device))
    pool = Pool(read_manifest(data), rules or Rules(), frozen.spec.image_px, _embedder(frozen))
    progress(f"{len(pool.collections)} collections, {sum(len(c.fields) for c in pool.collections.values())} images")
    encode(Episodes(pool, seed, labels), frozen.vision, n_episodes, out / "episodes", progress)
    head, means = _trained(frozen, out, recipe, progress)
    made = out / "backbone"
    shutil.copytree(frozen.folder, made, dirs_exist_ok=True)
    record = {"episodes": n_episodes, "episodes_seed": seed, "labels": labels, **asdict(recipe), "losses": means}
    kinds = pool_kinds(frozen, pool, (rules or Rules()).goods)
    write(frozen, head, kinds, made, {**record, "collections": list(pool.collections)})
    return made


def _trained(
    backbone: Backbone, out: Path, recipe: HeadRecipe, progress: Callable[[str], None]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Values of the trained head and its last losses; those in ``out`` if they were trained by the same recipe."""
    from safetensors.torch import save_file

    path = out / "head.safetensors"
    said = path.with_suffix(".json")
    if path.exists() and (known := json.loads(said.read_text()))["recipe"] == asdict(recipe):
        return load_tensors(path), known["losses"]
    episodes = Encoded(out / "episodes")
    head, means = train(new_head(backbone, episodes, recipe.seed), backbone.text, episodes, recipe, progress)
    values = {f"adapters.clip.{k}": v for k, v in head.adapters.state_dict().items()}
    values |= {"prompts.context": head.prompts.context, "log_scale": head.log_scale}
    values = {k: v.detach().cpu().half().contiguous() for k, v in values.items()}
    save_file(values, path)
    said.write_text(json.dumps({"recipe": asdict(recipe), "losses": means}, indent=2) + "\n")
    return values, means


def new_head(backbone: Backbone, episodes: Encoded, seed: int) -> Head:
    """Adapters and prompts with random values, for a backbone."""
    torch.manual_seed(seed)
    tokens = [tokenize(phrases) for phrases in (NORMAL_PHRASES, ABNORMAL_PHRASES)]
    embedded = [backbone.text.embed(t.to(backbone.device)).float().cpu() for t in tokens]
    channels = [f.shape[1] for f in episodes.features(0)]
    return Head(ContextAdapters(channels, backbone.embed_dim), Prompts(tokens, embedded), 20.0).to(backbone.device)


def pool_kinds(backbone: Backbone, pool: Pool, goods: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """What tells the kinds of a pool's images apart, patients before goods, and the least similarity of one kind."""
    rng, found = np.random.default_rng(0), {}
    for name in sorted(pool.collections, key=lambda name: name.startswith(goods)):
        fields = pool.collections[name].fields
        images = fields[torch.from_numpy(rng.permutation(len(fields))[:N_IMAGES])][:, :3].float() / 255
        found[name] = torch.cat([pooled(backbone.vision(c.to(backbone.device))).cpu() for c in images.split(8)])
    kinds = learn_kinds(found)
    n_patients = sum(min(len(v), COHORT) for name, v in found.items() if not name.startswith(goods))
    tensors = {"mean": kinds.mean, "projection": kinds.projection.half(), "cohort": kinds.cohort.half()}
    tensors["patients"] = torch.tensor(float(n_patients))
    least = torch.tensor(least_similarity(found))
    return {f"kinds.{name}": v.contiguous() for name, v in tensors.items()} | {"least_similarity": least}


def write(
    backbone: Backbone,
    head: dict[str, torch.Tensor],
    kinds: dict[str, torch.Tensor],
    folder: Path,
    record: dict[str, Any],
) -> None:
    """Put what was trained among the initial values in ``folder``, and the kinds among its statistics."""
    from safetensors.torch import save_file

    kept = {k: v.half() for k, v in backbone.initial.items() if k.startswith(("unet.", "projection."))}
    save_file({**kept, **head}, folder / HEADS)
    (folder / HEADS).with_suffix(".json").write_text(json.dumps({"record": record}, indent=2) + "\n")
    described = {"spec": backbone.spec.to_dict(), "sources": backbone.spec.sources}
    (folder / SPEC).write_text(json.dumps(described, indent=2) + "\n")
    statistics = {k: v for k, v in load_tensors(folder / STATISTICS).items() if not k.startswith("kinds.")}
    save_file({**statistics, **kinds}, folder / STATISTICS)


def _embedder(backbone: Backbone) -> Callable[[torch.Tensor], torch.Tensor]:
    """Image embeddings, fast."""

    @torch.no_grad()
    def embed(images: torch.Tensor) -> torch.Tensor:
        device = backbone.device
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            return backbone.vision.raw(images.to(device).contiguous(memory_format=torch.channels_last))[1].float().cpu()

    return embed
