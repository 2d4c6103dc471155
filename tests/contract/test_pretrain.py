"""The scripts that made the embedded weights still run from images to files that fit, on a few generated images."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from benchmarks import refusals
from benchmarks.pretrain import statistics
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
    for name in (
        "least_similarity",
        "kinds.mean",
        "kinds.projection",
        "kinds.cohort",
        "kinds.patients",
    ):  # measured by others, once the rest stands
        before.pop(name)
    assert {k: v.shape for k, v in measured.items()} == {k: v.shape for k, v in before.items()}
    assert not torch.equal(measured["latent.mean"], before["latent.mean"])


def test_refusals_are_few_in_the_own_collection_and_many_elsewhere(data, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.refusals.modality", lambda name: name)
    torch.manual_seed(0)
    centres = torch.eye(3)
    found = {}
    for name, centre in zip("abc", centres, strict=True):
        kinds = F.normalize(centre + 0.2 * torch.randn(50, 3), dim=1)
        found[name] = torch.cat([kinds, torch.zeros(50, 1)], dim=1), np.arange(50) < 10
    table = refusals.refused(found, ["a", "b"], 0.5)
    shares = refusals.summary(table)
    assert shares["own collection"] < 0.1
    assert shares["other modality"] > 0.95
    assert np.isnan(shares["same modality"])


def test_refusals_read_every_collection(data):
    found = refusals.kinds_of(str(data), "pool", count=2)
    assert found.keys() == set(COLLECTIONS)
    assert all(torch.allclose(kinds[:, :-1].norm(dim=1), torch.ones(2)) for kinds, _ in found.values())
