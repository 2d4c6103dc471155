"""Which frozen networks a detector is built on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oneshot_medad.errors import ConfigError

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class BackboneSpec:
    """A frozen autoencoder and a frozen CLIP model that are used together.

    Attributes
    ----------
    name
        What ``AnomalyDetector(backbone=...)`` takes.
    image_px
        Side of the square field both networks see.
    folder
        Where ``autoencoder``, ``clip`` and ``heads`` lie, each as ``.safetensors`` (heads optional) with its
        architecture in a ``.json`` beside it.
    mean, std
        Of the vision tower's input, per colour channel, for images in [0, 1].
    levels
        Names of the vision tower's modules whose outputs are the feature levels, finest first.
    license
        Of the weights.
    """

    name: str
    image_px: int
    folder: Path
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    levels: tuple[str, ...]
    license: str

    @property
    def files(self) -> list[Path]:
        """What the frozen networks are read from; the initial values of the trained parts are not among them."""
        return [self.folder / f"{part}.{kind}" for part in ("autoencoder", "clip") for kind in ("json", "safetensors")]


BACKBONES = {
    "tiny": BackboneSpec(
        name="tiny",
        image_px=256,
        folder=WEIGHTS,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        levels=("trunk.blocks.2", "trunk.blocks.4", "trunk.blocks.6"),
        license="apache-2.0",
    )
}


def get_spec(backbone: str | BackboneSpec) -> BackboneSpec:
    """The registry entry of a name; a spec is returned as it is."""
    if isinstance(backbone, BackboneSpec):
        return backbone
    if backbone not in BACKBONES:
        known = ", ".join(map(repr, BACKBONES))
        raise ConfigError(f"Got backbone {backbone!r}; wanted one of {known}, or a BackboneSpec.")
    return BACKBONES[backbone]
