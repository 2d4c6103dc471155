"""Repositories as MedVAE and open_clip publish them, with random weights of any size."""

from __future__ import annotations

import io
import json

import torch
import yaml
from safetensors.torch import save

from oneshot_medad.backbones.clip import build_clip
from oneshot_medad.backbones.specs import BackboneSpec, HubWeights, medvae

SMALL_DD = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
FULL_DD = {**SMALL_DD, "resolution": 256, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
"""The geometry of MedVAE's 8×4 model: that of a KL-f8 autoencoder."""

SMALL_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
VIT_L14 = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}


def medvae_model(dd: dict, lora: bool = True, seed: int = 0):
    """MedVAE's autoencoder as its own builder makes it, low-rank updates that do something included."""
    from medvae.models import AutoencoderKL_2D
    from medvae.utils.lora import inject_trainable_lora_extended

    torch.manual_seed(seed)
    model = AutoencoderKL_2D(ddconfig=dd, embed_dim=4)
    if lora:
        inject_trainable_lora_extended(model, {"ResnetBlock", "AttnBlock"}, r=4)
        for name, parameter in model.named_parameters():
            if "lora_up" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def medvae_repo(dd: dict, lora: bool = True) -> dict[str, bytes]:
    """Checkpoint and YAML under the names that stanfordmimi/MedVAE gives its 8×4 model."""
    names = medvae("medvae_8_4_2d")
    file = io.BytesIO()
    torch.save({"state_dict": medvae_model(dd, lora).state_dict(), "epoch": 3, "loss.logvar": torch.zeros(())}, file)
    described = {"ddconfig": dd, "embed_dim": 4}
    config = {"model": {"params": described}} if lora else described
    return {names.weights: file.getvalue(), names.config: yaml.safe_dump(config).encode()}


GREY = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def clip_repo(config: dict, half: bool = False, seed: int = 0, scale=GREY) -> dict[str, bytes]:
    """Weights and configuration as open_clip pushes them."""
    torch.manual_seed(seed)
    state = build_clip({**config, "quick_gelu": True}).state_dict()
    weights = save({k: (v.half() if half else v).contiguous() for k, v in state.items() if k != "attn_mask"})
    described = {
        "model_cfg": {**config, "quick_gelu": True},
        "preprocess_cfg": {"mean": scale[0], "std": scale[1]},
    }
    return {"open_clip_model.safetensors": weights, "open_clip_config.json": json.dumps(described).encode()}


def small_spec(**changes) -> BackboneSpec:
    """The spec of the two small repositories."""
    values = {
        "name": "small",
        "image_px": 64,
        "mean": GREY[0],
        "std": GREY[1],
        "levels": tuple(f"transformer.resblocks.{i}" for i in (1, 2, 3)),
        "license": "mit",
        "autoencoder": medvae("medvae_8_4_2d"),
        "clip": HubWeights("clinic/clip", "open_clip_model.safetensors", "open_clip_config.json"),
        "quick_gelu": True,
    }
    return BackboneSpec(**{**values, **changes})
