"""The scripts that made the embedded weights still run from images to files that fit, on a few generated images."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from benchmarks.data import read_manifest
from benchmarks.pretrain import adapt, joint, kinds, statistics
from benchmarks.pretrain.episodes import SHARES, Pool, deviated
from oneshot_medad.backbones.specs import WEIGHTS
from oneshot_medad.images.preprocess import to_field

COLUMNS = ("role", "set", "path", "label", "class", "mask", "patient")


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    """A pool of slices in the layout that the scripts read."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for name in SHARES:
        for i, (image, label, mask) in enumerate(zip(sample.images, sample.labels, sample.masks, strict=True)):
            if name == "spine" and label:
                continue
            path, mask_path = f"{name}{i}.png", f"{name}{i}_mask.png"
            Image.fromarray(np.rot90(image, len(rows) % 4).copy()).save(root / path)
            Image.fromarray(np.rot90(mask, len(rows) % 4).copy()).save(root / mask_path)
            masked = bool(label) and name in ("brisc", "fracatlas")
            word = "unlabelled" if name == "spine" else ("abnormal" if label else "normal")
            rows.append(("pool", name, path, word, word, mask_path if masked else "", ""))
    with (root / "MANIFEST.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root


def test_episodes_show_a_reference_a_drawn_an_abnormal_and_a_normal_image(data):
    pool = Pool(str(data), 64, lambda images: images.mean((2, 3)))
    assert len(pool.items) == len(read_manifest(data))
    episodes = pool.draw(6)
    assert episodes.images.shape == (24, 3, 64, 64)
    truth = episodes.truth
    assert truth.labels.tolist() == [1, 1, 0] * 6
    lesion = truth.masks.flatten(1).sum(1) > 0
    assert lesion[::3].all()  # drawn
    assert not lesion[2::3].any()  # normal
    assert (truth.has_mask[1::3] == lesion[1::3]).all()  # a mask is known exactly where the pool has one


def test_lesions_of_the_deviation_network_are_where_their_masks_say(backbone, sample):
    images = torch.stack([to_field(torch.from_numpy(i).expand(3, *i.shape) / 255, 256) for i in sample.images[:4]])
    model, generator = adapt.start(backbone, 0, "pretrained").eval(), torch.Generator().manual_seed(1)
    changed, masks = deviated(model, backbone.latents, images, generator, 0.15)
    assert changed.shape == images.shape
    assert masks.shape == (4, 256, 256)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    change = (changed - images).abs().mean(1)
    for found, mask in zip(change, masks.bool(), strict=True):
        assert mask.any()
        assert found[mask].mean() > 10 * found[~mask].mean()


@pytest.mark.slow
def test_adapt_and_joint_make_files_that_fit_the_package(data, tmp_path, backbone):
    clip, adapted, out = (tmp_path / f"{name}.safetensors" for name in ("clip", "adapted", "joint"))
    adapt.load_backbone.cache_clear()  # the scripts train what they load
    adapt.train(str(data), clip, adapted, steps=2, count=2, more=True, mean_of=(1, 2), deviations=True, keep=0.5)
    adapt.load_backbone.cache_clear()
    before, after = load_file(WEIGHTS / "clip.safetensors"), load_file(clip)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved
    assert all(k.startswith("visual.trunk") for k in moved)

    joint.train(str(data), WEIGHTS / "heads.safetensors", adapted, out, episodes=6, steps=2, count=2)
    shipped = load_file(WEIGHTS / "heads.safetensors")
    assert {k: v.shape for k, v in load_file(out).items()} == {k: v.shape for k, v in shipped.items()}
    assert json.loads(out.with_suffix(".json").read_text())["record"]["joint"][-1]["steps"] == 2

    again = tmp_path / "again.safetensors"
    joint.train(str(data), out, None, again, episodes=6, steps=2, count=2, parts="vision", keep=0.5)
    before, after = load_file(out), load_file(again)
    moved = {k.split(".")[0] + "." + k.split(".")[1] for k in before if not torch.equal(before[k], after[k])}
    assert "adapters.clip" in moved
    assert not [name for name in moved if name.startswith(("unet", "projection", "adapters.latent"))]

    joint.train(str(data), out, None, again, episodes=6, steps=2, count=2, parts="latents")
    after = load_file(again)
    moved = {k.split(".")[0] + "." + k.split(".")[1] for k in before if not torch.equal(before[k], after[k])}
    assert "adapters.latent" in moved
    assert not [name for name in moved if name.startswith(("adapters.clip", "prompts", "log_scale"))]


def test_statistics_of_the_shipped_networks(data, tmp_path):
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = load_file(WEIGHTS / "statistics.safetensors")
    statistics.write(str(data), tmp_path, count=4, keep_scale=True)
    kept = load_file(tmp_path / "statistics.safetensors")
    assert all(torch.allclose(kept[name], value, rtol=1e-3, atol=1e-3) for name, value in before.items())
    statistics.write(str(data), tmp_path, count=4, keep_scale=False)
    measured = load_file(tmp_path / "statistics.safetensors")
    before.pop("least_similarity")  # measured by another script, once the rest stands
    assert {k: v.shape for k, v in measured.items()} == {k: v.shape for k, v in before.items()}
    assert not torch.equal(measured["latent.mean"], before["latent.mean"])


def test_the_limit_of_alike_rejects_one_in_twenty_of_the_own_kind_and_all_of_another():
    torch.manual_seed(0)
    centres = torch.eye(3)
    found = {str(i): F.normalize(c + 0.2 * torch.randn(200, 3), dim=1) for i, c in enumerate(centres)}
    limit, rejected = kinds.measure(found)
    assert 0 < limit < 1
    for name, row in rejected.items():
        assert row.pop(name) < 0.1
        assert min(row.values()) > 0.95


def test_kinds_reads_every_collection(data, backbone):
    found = kinds.gists(backbone, str(data), count=2)
    assert found.keys() == SHARES.keys()
    assert all(torch.allclose(v.norm(dim=1), torch.ones(2)) for v in found.values())
