"""Where frozen networks come from: a folder, the cache, or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from oneshot_medad._brain import load_template
from oneshot_medad._hub import calling, sha256
from oneshot_medad._safetensors import save_tensors
from oneshot_medad.backbones import read_autoencoder, read_text, read_visual
from oneshot_medad.backbones.clip import VisionTower
from oneshot_medad.backbones.medvae import LatentSpace, read_medvae
from oneshot_medad.backbones.specs import SPEC, STATISTICS, BackboneSpec, HubWeights
from oneshot_medad.backbones.statistics import measure
from oneshot_medad.errors import WeightsError


def cache_folder(spec: BackboneSpec) -> Path:
    """Where the networks of a spec are kept: below ``ONESHOT_MEDAD_CACHE``, or the system's cache folder."""
    import pooch

    root = Path(os.environ.get("ONESHOT_MEDAD_CACHE") or pooch.os_cache("oneshot-medad"))
    key = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    return root / "backbones" / f"{spec.name}-{key}"


def resolve(spec: BackboneSpec, fetch: bool = True) -> BackboneSpec:
    """The spec with its folder: its own, the cache's, or the cache's after a download.

    Parameters
    ----------
    spec
        What is wanted.
    fetch
        Whether the Hub may be asked.

    Raises
    ------
    WeightsError
        They are not here and may not be fetched, or what came is not what was wanted.
    HubError
        The Hub refused or could not be reached.
    """
    if spec.folder is not None:
        return spec
    folder = cache_folder(spec)
    if not (folder / SPEC).is_file():
        if not fetch:
            raise WeightsError(
                f"The networks of {spec.name!r} are not in the cache ({folder}) and may not be fetched now. "
                f"Pass fetch='always', or run `oneshot-medad download --backbone {spec.name} --to DIR` where there is "
                "a network and pass backbone='DIR'."
            )
        download(spec, folder)
    return replace(spec, folder=folder)


def download(spec: BackboneSpec, folder: Path) -> Path:
    """Fetch the networks of a spec, check them, and keep them in a folder that needs nothing else.

    Parameters
    ----------
    spec
        With the Hub files of both networks.
    folder
        New or empty. It appears whole or not at all; of processes that want it at the same time one fetches and the
        others wait.

    Returns
    -------
    The folder, which ``AnomalyDetector(backbone=folder)`` takes.

    Raises
    ------
    WeightsError
        A file that is damaged, has another hash or does not fit; or a folder that holds something else.
    HubError
        The Hub refused or could not be reached.
    """
    from filelock import FileLock

    if spec.autoencoder is None or spec.clip is None:
        raise WeightsError(f"The spec {spec.name!r} has neither a folder nor files on the Hub for both networks.")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / SPEC).is_file() and BackboneSpec.from_folder(folder).to_dict() == spec.to_dict():
            return folder
        if folder.exists() and any(folder.iterdir()):
            raise WeightsError(f"{folder} holds other things. Give a new or empty folder.")
        with TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
            made = Path(scratch) / "backbone"
            made.mkdir()
            sources = {
                "autoencoder": _autoencoder(spec.autoencoder, made),
                "clip": _clip(spec, spec.clip, made),
            }
            _statistics(spec, made)
            (made / SPEC).write_text(json.dumps({"spec": spec.to_dict(), "sources": sources}, indent=2) + "\n")
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    return folder


def _fetch(source: HubWeights) -> tuple[Path, Path, dict[str, Any]]:
    """Weights and configuration in the Hub's cache, and a record of what they are."""
    from huggingface_hub import hf_hub_download

    def get(name: str) -> Path:
        return Path(
            calling(
                f"download {name} of {source.repo_id}",
                lambda: hf_hub_download(source.repo_id, name, revision=source.revision),
            )
        )

    weights, config = get(source.weights), get(source.config)
    found = sha256(weights)
    stored = weights.resolve().name  # the Hub's cache names large files by their hash
    wanted = source.sha256 or (stored if len(stored) == 64 else found)
    if found != wanted:
        raise WeightsError(
            f"{source.weights} of {source.repo_id} has SHA-256 {found}; wanted {wanted}. Delete {weights} and try "
            "again; if it stays so, the file on the Hub is not the one this spec means."
        )
    commit = next((p.name for p in weights.parents if p.parent.name == "snapshots"), source.revision)
    return weights, config, {"repo_id": source.repo_id, "revision": commit, "file": source.weights, "sha256": found}


def _write(stem: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    save_tensors(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps({"config": config}, indent=2, sort_keys=True) + "\n")


def _autoencoder(source: HubWeights, made: Path) -> dict[str, Any]:
    weights, config, record = _fetch(source)
    _write(made / "autoencoder", *read_medvae(weights, config))
    return record


def _clip(spec: BackboneSpec, source: HubWeights, made: Path) -> dict[str, Any]:
    weights, described, record = _fetch(source)
    try:
        found = json.loads(described.read_text())
        config = {k: found["model_cfg"][k] for k in ("embed_dim", "vision_cfg", "text_cfg")}
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{source.config} of {source.repo_id} is no open_clip configuration: {error!r}.") from error
    size, stated = config["vision_cfg"].get("image_size"), found["model_cfg"].get("quick_gelu", spec.quick_gelu)
    scale = found.get("preprocess_cfg", {})
    for what, got, wanted in (
        ("image size", size, spec.image_px),
        ("QuickGELU", bool(stated), spec.quick_gelu),
        ("mean", tuple(scale.get("mean", spec.mean)), tuple(spec.mean)),
        ("std", tuple(scale.get("std", spec.std)), tuple(spec.std)),
    ):
        if got != wanted:
            raise WeightsError(f"{source.repo_id} has {what} {got}, the spec {spec.name!r} {wanted}. Correct the spec.")
    config |= {"quick_gelu": spec.quick_gelu, "custom_text": bool(found["model_cfg"].get("custom_text"))}
    if weights.suffix == ".safetensors":
        shutil.copyfile(weights, made / "clip.safetensors")
        (made / "clip.json").write_text(json.dumps({"config": config}, indent=2, sort_keys=True) + "\n")
    else:
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever the file makes it raise
            raise WeightsError(f"Cannot read {weights}: {error}. The file is damaged; download it again.") from error
        state = {k.removeprefix("module."): v for k, v in state.get("state_dict", state).items()}
        _write(made / "clip", config, state)
    return record


def _statistics(spec: BackboneSpec, made: Path) -> None:
    """Measure the scale of the fetched networks and their probes; what does not fit its configuration fails here."""
    read_text(made)
    autoencoder = read_autoencoder(made)
    channels = autoencoder.embed_dim
    latents = LatentSpace(autoencoder, torch.zeros(channels), torch.ones(channels))
    vision = VisionTower(read_visual(made), spec.levels, spec.mean, spec.std, [])
    save_tensors(measure(latents, vision, _slices(spec.image_px)), made / STATISTICS)


def _slices(side: int) -> Iterator[torch.Tensor]:
    """Slices of a brain in three planes, bright on dark and dark on bright."""
    head = torch.from_numpy(load_template())
    for axis in range(3):
        planes = [head.select(axis, int(head.shape[axis] * share)) for share in (0.4, 0.6)]
        stack = torch.stack(planes + [1 - plane for plane in planes])[:, None]
        yield F.interpolate(stack, (side, side), mode="bilinear", antialias=True).clamp(0, 1).expand(-1, 3, -1, -1)
