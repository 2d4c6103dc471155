"""Which frozen networks a detector is built on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oneshot_medad.errors import ConfigError, WeightsError

WEIGHTS = Path(__file__).parent / "weights"
SPEC = "backbone.json"
"""In a folder that `download` made: the spec, and where every file came from."""

STATISTICS = "statistics.safetensors"
NETWORKS = ("autoencoder.json", "autoencoder.safetensors", "clip.json", "clip.safetensors")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""(mean, std) of the images that vision towers were trained on."""


@dataclass(frozen=True)
class HubWeights:
    """One pre-trained network on the Hugging Face Hub: a weights file and the configuration beside it.

    Attributes
    ----------
    repo_id, weights, config
        Repository and the paths of the two files in it.
    revision
        40-digit commit where it is known; a branch takes what it points to at the first download, and the commit is
        recorded in the folder.
    sha256
        Of the weights file; None trusts the first download. Its hash is recorded, and every detector carries the hashes
        of the networks it was fitted on.
    """

    repo_id: str
    weights: str
    config: str
    revision: str = "main"
    sha256: str | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """A frozen autoencoder and a frozen CLIP model that are used together.

    Attributes
    ----------
    name
        What ``AnomalyDetector(backbone=...)`` takes.
    image_px
        Side of the square field both networks see.
    mean, std
        Of the vision tower's input, per colour channel, for images in [0, 1].
    levels
        Names of the vision tower's modules whose outputs are the feature levels, finest first.
    license
        Of the weights.
    folder
        Where ``autoencoder`` and ``clip`` lie, each as ``.safetensors`` with its architecture in a ``.json`` beside
        it, and ``statistics.safetensors``; None looks in the cache and then on the Hub.
    autoencoder, clip
        Where to fetch them from: one of MedVAE's 2D models, and an open_clip model.
    quick_gelu
        The activation of OpenAI's weights; other weights give silently wrong features with it.
    half
        Compute in bfloat16 where the device is fast at that.
    recipe
        What ``recipe="default"`` means here.

    Examples
    --------
    Another CLIP model, with the features of its blocks 4, 8 and 12:

    >>> from oneshot_medad import BackboneSpec, HubWeights
    >>> spec = BackboneSpec(
    ...     name="medvae-vitb16",
    ...     image_px=224,
    ...     mean=(0.48145466, 0.4578275, 0.40821073),
    ...     std=(0.26862954, 0.26130258, 0.27577711),
    ...     levels=tuple(f"transformer.resblocks.{i}" for i in (3, 7, 11)),
    ...     license="mit",
    ...     autoencoder=HubWeights(
    ...         "stanfordmimi/MedVAE", "model_weights/vae_8x_4c_2D.ckpt", "model_weights/medvae_8x4.yaml"
    ...     ),
    ...     clip=HubWeights("owner/some-clip", "open_clip_model.safetensors", "open_clip_config.json"),
    ... )
    """

    name: str
    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    levels: tuple[str, ...]
    license: str
    folder: Path | None = None
    autoencoder: HubWeights | None = None
    clip: HubWeights | None = None
    quick_gelu: bool = False
    half: bool = True
    recipe: str = "scratch"

    @property
    def files(self) -> list[Path]:
        """What makes the frozen networks the ones they are, but for the initial values of the trained parts.

        Statistics that were measured here after a download are not among them: another machine's may differ in a last
        digit.
        """
        assert self.folder is not None
        measured_here = self.autoencoder is not None
        return [self.folder / name for name in (*NETWORKS, *([] if measured_here else [STATISTICS]))]

    @property
    def sources(self) -> dict[str, dict[str, str]]:
        """Repository, commit, file and SHA-256 that each network came from; empty for the embedded ones."""
        path = self.folder / SPEC if self.folder else None
        return dict(json.loads(path.read_text())["sources"]) if path and path.is_file() else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the folder, ready for JSON."""
        values = asdict(self)
        del values["folder"]
        return values

    @classmethod
    def from_folder(cls, folder: Path) -> BackboneSpec:
        """The spec of a folder that `download` made.

        Raises
        ------
        WeightsError
            Not such a folder, or one whose description is damaged.
        """
        path = folder / SPEC
        try:
            values = json.loads(path.read_text())["spec"]
            for part in ("autoencoder", "clip"):
                values[part] = values[part] and HubWeights(**values[part])
            for name in ("mean", "std", "levels"):
                values[name] = tuple(values[name])
            return cls(**values, folder=folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"Got {folder}, whose {SPEC} is missing or damaged ({error}); wanted a folder made by "
                "`oneshot-medad download --backbone NAME --to DIR`."
            ) from error


def medvae(model: str, revision: str = "main", sha256: str | None = None) -> HubWeights:
    """The files of one of MedVAE's 2D models by its name there, for example ``"medvae_8_4_2d"``.

    Raises
    ------
    ConfigError
        No 2D model of MedVAE.
    """
    found = {f"medvae_{factor}_{channels}_2d": (factor, channels) for factor, channels in MEDVAE_2D}
    if model not in found:
        raise ConfigError(f"Got MedVAE model {model!r}; wanted one of {', '.join(map(repr, found))}.")
    factor, channels = found[model]
    return HubWeights(
        "stanfordmimi/MedVAE",
        f"model_weights/vae_{factor}x_{channels}c_2D.ckpt",
        f"model_weights/medvae_{factor}x{channels}.yaml",
        revision,
        sha256,
    )


MEDVAE_2D = ((4, 1), (4, 3), (4, 4), (8, 1), (8, 4))
"""(factor, latent channels) of MedVAE's 2D models."""


def _vit_l14(image_px: int, name: str) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        image_px=image_px,
        mean=OPENAI[0],
        std=OPENAI[1],
        levels=tuple(f"transformer.resblocks.{block - 1}" for block in (12, 18, 24)),  # as MediCLIP
        license="mit",
        autoencoder=medvae("medvae_8_4_2d"),
        clip=HubWeights(
            f"timm/vit_large_patch14_clip_{image_px}.openai", "open_clip_model.safetensors", "open_clip_config.json"
        ),
        quick_gelu=True,
    )


BACKBONES: Mapping[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            name="tiny",
            image_px=256,
            mean=IMAGENET[0],
            std=IMAGENET[1],
            levels=("trunk.blocks.2", "trunk.blocks.4", "trunk.blocks.6"),
            license="apache-2.0",
            folder=WEIGHTS,
            half=False,
            recipe="default",
        ),
        _vit_l14(224, "medvae-vitl14"),
        _vit_l14(336, "medvae-vitl14-336"),
    )
}


def get_spec(backbone: str | Path | BackboneSpec) -> BackboneSpec:
    """The registry entry of a name, the spec of a downloaded folder, or the spec itself."""
    if isinstance(backbone, BackboneSpec):
        return backbone
    if str(backbone) in BACKBONES:
        return BACKBONES[str(backbone)]
    if Path(backbone).is_dir():
        return BackboneSpec.from_folder(Path(backbone))
    known = ", ".join(map(repr, BACKBONES))
    raise ConfigError(f"Got backbone {backbone!r}; wanted one of {known}, a downloaded folder, or a BackboneSpec.")
