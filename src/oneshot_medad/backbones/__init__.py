"""The frozen networks: an autoencoder and a CLIP model, each part loaded when it is first used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from oneshot_medad._runtime import has_fast_bf16
from oneshot_medad._safetensors import load_tensors
from oneshot_medad._threads import cached_once, loaded_once
from oneshot_medad.backbones.clip import TextTower, VisionTower, build_clip
from oneshot_medad.backbones.fused import fuse
from oneshot_medad.backbones.kinds import Kinds, plain_kind
from oneshot_medad.backbones.medvae import LatentSpace, build_autoencoder
from oneshot_medad.backbones.specs import STATISTICS, BackboneSpec
from oneshot_medad.backbones.statistics import check_probe, probe_latent, probe_levels
from oneshot_medad.errors import WeightsError


class Backbone:
    """What a detector uses of its frozen networks.

    Parameters
    ----------
    spec
        Where they lie; its folder is set.
    device
        Where they run. Networks whose spec says ``half`` compute in bfloat16 there if that is fast.

    Raises
    ------
    WeightsError
        On first use of a part: a file that is missing, damaged, does not fit its architecture, or gives something else
        than when it was stored.
    """

    def __init__(self, spec: BackboneSpec, device: torch.device) -> None:
        assert spec.folder is not None
        self.spec, self.device, self.folder = spec, device, spec.folder
        self._statistics = _tensors(self.folder / STATISTICS)

    @property
    def least_similarity(self) -> float | None:
        """Similarity that all but one in twenty images of one modality reach; None where nobody measured it."""
        found = self._statistics.get("least_similarity")
        return None if found is None else float(found)

    @loaded_once
    def kinds(self) -> Kinds | None:
        """What tells kinds of images apart; None where nobody learned it."""
        parts = [self._statistics.get(f"kinds.{name}") for name in ("mean", "projection", "cohort")]
        found = [part.float().to(self.device) for part in parts if part is not None]
        return Kinds(*found) if len(found) == len(parts) else None

    def kind(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B, D) what kind of image (B, C_l, h_l, w_l) features belong to, for `kinds.similarity`."""
        return plain_kind(features) if self.kinds is None else self.kinds(features)

    def pool_kinds(self, group: str) -> torch.Tensor | None:
        """(N, D) descriptions of ``patients`` or ``goods`` that initial values were trained on, if any."""
        count = self._statistics.get("kinds.patients")
        if self.kinds is None or count is None:
            return None
        return self.kinds.cohort[: int(count)] if group == "patients" else self.kinds.cohort[int(count) :]

    @property
    def embed_dim(self) -> int:
        """Size of CLIP's joint embedding."""
        return int(_config(self.folder / "clip.json")["embed_dim"])

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen networks compute in."""
        return torch.bfloat16 if self.spec.half and has_fast_bf16(self.device) else torch.float32

    @loaded_once
    def latents(self) -> LatentSpace:
        """The autoencoder."""
        latents = LatentSpace(read_autoencoder(self.folder), *self._scale("latent")).to(self.device)
        self._check({"probe.latent": probe_latent(latents, self.spec.image_px)})
        latents.autoencoder.to(self.dtype).to(memory_format=torch.channels_last)
        return latents

    @loaded_once
    def vision(self) -> VisionTower:
        """The vision tower."""
        scales = [self._scale(f"level{i}") for i in range(len(self.spec.levels))]
        visual = fuse(read_visual(self.folder).eval())  # the probe tells whether it still is the same network
        vision = VisionTower(visual, self.spec.levels, self.spec.mean, self.spec.std, scales).to(self.device)
        self._check(probe_levels(vision, self.spec.image_px))
        vision.visual.to(self.dtype)
        vision.visual.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        return vision

    @loaded_once
    def text(self) -> TextTower:
        """The text tower."""
        return read_text(self.folder).to(self.device, self.dtype)

    @loaded_once
    def initial(self) -> dict[str, torch.Tensor]:
        """Pre-trained initial values of the trained parts, by parameter name; empty if there are none."""
        heads = self.folder / "heads.safetensors"
        return _tensors(heads) if heads.exists() else {}

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Latents and vision features of (B, 3, S, S) images in [0, 1]."""
        return self.latents.encode(images), self.vision(images)

    def _scale(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            return self._statistics[f"{name}.mean"], self._statistics[f"{name}.std"]
        except KeyError:
            raise WeightsError(f"{self.folder / STATISTICS} lacks {name}; it belongs to another spec.") from None

    def _check(self, probes: Mapping[str, torch.Tensor]) -> None:
        for name, got in probes.items():
            check_probe(name, got, self._statistics.get(name, torch.zeros(0)), str(self.folder))


@cached_once(maxsize=2)
def load_backbone(spec: BackboneSpec, device: torch.device) -> Backbone:
    """The frozen networks of a spec with a folder; a process that asks again gets the same ones."""
    return Backbone(spec, device)


def read_autoencoder(folder: Path) -> Any:
    """MedVAE's autoencoder with the weights in a folder."""
    with torch.device("meta"):
        autoencoder = build_autoencoder(_config(folder / "autoencoder.json"))
    return _load(autoencoder, _tensors(folder / "autoencoder.safetensors"), "autoencoder")


def read_visual(folder: Path) -> Any:
    """open_clip's vision tower with the weights in a folder."""
    with torch.device("meta"):
        visual = build_clip(_config(folder / "clip.json"), text=False).visual
    return _load(visual, _tensors(folder / "clip.safetensors", "visual."), "vision")


def read_text(folder: Path) -> TextTower:
    """The text tower with the weights in a folder."""
    config = _config(folder / "clip.json")
    with torch.device("meta"):
        tower = TextTower(build_clip(config, vision=False))
    prefix = "text." if config.get("custom_text") else ""
    _load(tower, _tensors(folder / "clip.safetensors", prefix, tower.state_dict()), "text")
    return tower


def _config(path: Path) -> dict[str, Any]:
    """The architecture in one of a folder's JSON files."""
    try:
        return dict(json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"Cannot read {path}: {error!r}. Reinstall oneshot-medad, or download the backbone again."
        ) from error


def _tensors(path: Path, prefix: str = "", only: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file below ``prefix``, optionally ``only`` some of them, floats in single precision."""
    from safetensors import SafetensorError

    def wanted(name: str) -> bool:
        return name.startswith(prefix) and (only is None or name.removeprefix(prefix) in only)

    try:
        found = load_tensors(path, wanted)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"Cannot read {path}: {error}. Reinstall oneshot-medad, or download the backbone again."
        ) from error
    return {k.removeprefix(prefix): v.float() if v.is_floating_point() else v for k, v in found.items()}


def _load(module: Any, tensors: Mapping[str, torch.Tensor], what: str) -> Any:
    """A module that was built without memory, with its weights."""
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"The {what} weights do not fit their architecture: {error}") from error
    return module
