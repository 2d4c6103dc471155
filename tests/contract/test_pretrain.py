"""The scripts that made the embedded weights still run from images to files that fit, on a few generated images."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from benchmarks.pretrain import kinds, statistics
from oneshot_medad.backbones.specs import WEIGHTS

COLLECTIONS = ("brisc", "covidx", "spine")
COLUMNS = ("role", "set", "path", "label", "class", "mask", "patient")


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    """A pool of slices in the layout that the scripts read."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for name in COLLECTIONS:
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


def test_statistics_of_the_shipped_networks(data, tmp_path):
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = load_file(WEIGHTS / "statistics.safetensors")
    statistics.write(str(data), tmp_path, count=4, keep_scale=True)
    kept = load_file(tmp_path / "statistics.safetensors")
    assert all(torch.allclose(kept[name], value, rtol=1e-3, atol=1e-3) for name, value in before.items())
    statistics.write(str(data), tmp_path, count=4, keep_scale=False)
    measured = load_file(tmp_path / "statistics.safetensors")
    for name in ("least_similarity", "gists.patients", "gists.goods"):  # measured by others, once the rest stands
        before.pop(name)
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
    assert found.keys() == set(COLLECTIONS)
    assert all(torch.allclose(v.norm(dim=1), torch.ones(2)) for v in found.values())
