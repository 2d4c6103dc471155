"""The frozen autoencoder: MedVAE's 2D architecture at any size (Varma et al. 2025, arXiv 2502.14753)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oneshot_medad.backbones._imports import medvae
from oneshot_medad.errors import WeightsError

LORA_RANK = 4
UNUSED = ("loss", "channel_ds", "channel_proj", "model_ema")
"""Parts of a MedVAE checkpoint that neither encoding nor decoding needs."""


def build_autoencoder(config: Mapping[str, Any]) -> Any:
    """MedVAE's 2D autoencoder with random weights.

    Parameters
    ----------
    config
        ``embed_dim`` and ``ddconfig`` as in MedVAE's own YAML files.
    """
    return medvae("medvae.models").AutoencoderKL_2D(
        ddconfig=dict(config["ddconfig"]), embed_dim=config["embed_dim"], apply_channel_ds=False
    )


def read_medvae(weights: Path, config: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and state of one of MedVAE's 2D checkpoints, read without running anything in it.

    Low-rank updates (LoRA), with which the 4×3 and 8×4 models were adapted, are injected by medvae's own function,
    loaded strictly, and then added into the weights they belong to.

    Parameters
    ----------
    weights
        MedVAE's ``.ckpt``.
    config
        MedVAE's ``.yaml``.

    Raises
    ------
    WeightsError
        A file that is damaged, holds more than tensors, or does not fit its configuration.
    """
    import yaml

    try:
        described = yaml.safe_load(config.read_text())
        described = described.get("model", {}).get("params", described)
        kept = {"embed_dim": described["embed_dim"], "ddconfig": dict(described["ddconfig"])}
        model = build_autoencoder(kept)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"Cannot read MedVAE's configuration {config}: {error!r}. Download it again.") from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        state = {k: v.float() for k, v in state.items() if k.split(".")[0] not in UNUSED}
    except Exception as error:  # torch.load raises whatever the file makes it raise
        raise WeightsError(f"Cannot read {weights}: {error}. The file is damaged; download it again.") from error
    lora = any(".lora_up." in key for key in state)
    if lora:
        inject = medvae("medvae.utils.lora").inject_trainable_lora_extended
        inject(model, {"ResnetBlock", "AttnBlock"}, r=LORA_RANK)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{weights} does not fit {config}: {error}") from error
    if lora:
        _merge_lora(model)
    return kept, {k: v.contiguous() for k, v in model.state_dict().items()}


@torch.no_grad()
def _merge_lora(model: nn.Module) -> None:
    """Replace every convolution with a low-rank update by one convolution that does the same."""
    for parent in list(model.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if not hasattr(child, "lora_up"):
                continue
            up, down = child.lora_up.weight.double(), child.lora_down.weight.double()
            # summed over the rank one by one: the same bits on every machine, unlike a matrix product
            update = sum(up[:, r, None] * down[None, r] for r in range(up.shape[1]))
            child.conv.weight.copy_((child.conv.weight.double() + child.scale * update).float())
            setattr(parent, name, child.conv)


class LatentSpace(nn.Module):
    """Images in [0, 1] to latents with zero mean and unit variance per channel, and back.

    The posterior's mode is taken: encoding one image twice gives one latent.

    Parameters
    ----------
    autoencoder
        A 2D MedVAE autoencoder; it is frozen.
    mean, std
        (C,) statistics of its raw latents.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, autoencoder: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder.eval().requires_grad_(False)
        self.grey = autoencoder.encoder.in_channels == 1
        self.register_buffer("mean", mean.float()[:, None, None])
        self.register_buffer("std", std.float()[:, None, None])

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return len(self.mean)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] → (B, C, h, w) standardised latents."""
        if self.grey:
            images = images.mean(dim=1, keepdim=True)
        # on a processor one at a time, whose activations stay in its cache
        chunks = (images * 2 - 1).to(self._dtype).split(1 if images.device.type == "cpu" else max(1, len(images)))
        modes = torch.cat([self.autoencoder.encode(chunk).mode() for chunk in chunks])
        return (modes.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) standardised latents → (B, 3, H, W) in [0, 1]."""
        images = (self.autoencoder.decode((z * self.std + self.mean).to(self._dtype)).float() + 1) / 2
        return images.clamp(0, 1).expand(-1, 3, -1, -1)
