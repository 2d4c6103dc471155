"""From a folder of collections to new initial values, on a few generated images."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from oneshot_medad import AnomalyDetector
from oneshot_medad.backbones.kinds import similarity
from oneshot_medad.backbones.specs import WEIGHTS
from oneshot_medad.errors import ConfigError
from oneshot_medad.pretraining.episodes import N_IMAGES, N_JUDGED, Episodes
from oneshot_medad.pretraining.heads import HeadRecipe
from oneshot_medad.pretraining.kinds import COHORT, learn_kinds, least_similarity
from oneshot_medad.pretraining.pool import Pool, Rules, read_manifest
from oneshot_medad.pretraining.run import RULES, pretrain

COLUMNS = ("role", "set", "path", "label", "class", "mask", "patient")


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    """Three collections of slices: with masks and labels, with labels alone, and with normal images alone."""
    root, rows = tmp_path_factory.mktemp("data"), []
    for name in ("masked", "labelled", "normal_only", "lesions"):
        for i, (image, label, mask) in enumerate(zip(sample.images, sample.labels, sample.masks, strict=True)):
            if (name == "normal_only" and label) or (name == "lesions" and not label):
                continue
            path, mask_path = f"{name}{i}.png", f"{name}{i}_mask.png"
            Image.fromarray(image).save(root / path)
            Image.fromarray(mask).save(root / mask_path)
            has = bool(label) and name in ("masked", "lesions")
            word = "abnormal" if label else "normal"
            rows.append(("pool", name, path, word, f"normal-{i % 2}", mask_path if has else "", f"p{i}"))
    with (root / "MANIFEST.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root


def pool_of(data, **rules):
    return Pool(read_manifest(data), Rules(**rules), 64, lambda images: images.mean((2, 3)))


def test_rules_of_the_embedded_weights_can_be_read_and_typing_errors_are_refused():
    rules = Rules.from_dict(json.loads(RULES.read_text()))
    assert "brisc" in rules.no_image_labels
    with pytest.raises(ConfigError, match="window"):
        Rules.from_dict({"window": []})


def test_collections_follow_their_rules(data):
    plain = pool_of(data)
    assert sorted(plain.collections) == ["labelled", "masked", "normal_only"]  # lesions alone have nothing normal
    assert plain.collections["labelled"].abnormal
    assert sum(plain.share.values()) == pytest.approx(1)
    odd = pool_of(data, skip=("masked",), no_image_labels=("labelled",), windows=("lesions",), share={"normal": 0.5})
    assert sorted(odd.collections) == ["labelled", "lesions", "normal_only"]
    assert not odd.collections["labelled"].abnormal  # neither a label nor a mask is left
    assert odd.share["normal_only"] / odd.share["labelled"] < plain.share["normal_only"] / plain.share["labelled"]
    with pytest.raises(ConfigError, match="pool"):
        pool_of(data, skip=("masked", "labelled", "normal_only"))


def test_pairs_share_what_the_rule_says(data):
    collection = pool_of(data, pair_by={"normal_only": "class"}).collections["normal_only"]
    rng = np.random.default_rng(0)
    for k in collection.normal:
        same = [i for i in collection.normal if i % 2 == k % 2 and i != k]
        assert set(collection.near(k, collection.normal, rng, 20)) <= set(same or collection.normal)


def test_episodes_show_references_a_drawn_lesion_an_abnormal_and_normal_images(data):
    episodes = Episodes(pool_of(data, windows=("lesions",)), seed=3)
    seen = set()
    for _ in range(40):
        found = episodes.draw()
        seen.add(found.collection)
        assert found.images.shape == (N_IMAGES, 3, 64, 64)
        assert found.masks.shape == (N_JUDGED, 64, 64)
        assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1 + 1e-5
        assert found.labels[:3].tolist() == [1, 1, 0]
        lesion = found.masks.flatten(1).any(1)
        assert lesion[0]  # drawn
        assert not lesion[2]  # normal
        if found.collection in ("masked", "normal_only"):
            assert found.has_mask.all()
            assert lesion[1]
    assert seen >= {"masked", "labelled", "normal_only"}


def test_windows_beside_lesions_are_normal_and_windows_on_them_are_not(data):
    episodes = Episodes(pool_of(data, windows=("lesions",)), seed=3)
    lesions = episodes.pool.collections["lesions"]
    found = next(filter(None, (episodes._windows(lesions) for _ in range(500))))
    assert found.masks.flatten(1).any(1).tolist() == [True, True, False, False]
    assert found.images.shape == (N_IMAGES, 3, 64, 64)


def test_without_labels_every_lesion_is_drawn(data):
    episodes = Episodes(pool_of(data), seed=3, labels=False)
    for _ in range(20):
        found = episodes.draw()
        assert found.labels.tolist() == [1, 1, 0, 0]
        assert found.masks.flatten(1).any(1).tolist() == [True, True, False, False]


@pytest.mark.slow
def test_a_broken_run_goes_on_and_its_result_fits(data, tmp_path, sample, small, monkeypatch):
    monkeypatch.setattr("oneshot_medad.pretraining.features.SHARD", 2)
    said: list[str] = []
    recipe = HeadRecipe(steps=2, count=2)
    made = pretrain(data, tmp_path / "a", n_episodes=4, recipe=recipe, device="cpu", progress=said.append)
    first = {k: v.clone() for k, v in load_file(made / "heads.safetensors").items()}  # the file is written over
    assert {k: v.shape for k, v in first.items()} == {
        k: v.shape for k, v in load_file(WEIGHTS / "heads.safetensors").items()
    }
    assert json.loads((made / "heads.json").read_text())["record"]["collections"] == [
        "labelled", "masked", "normal_only"
    ]  # fmt: skip
    broken = tmp_path / "a" / "episodes" / "00001.safetensors"
    whole = broken.read_bytes()
    broken.unlink()
    (tmp_path / "a" / "head.safetensors").unlink()
    again = pretrain(data, tmp_path / "a", n_episodes=4, recipe=recipe, device="cpu", progress=said.append)
    assert broken.read_bytes() == whole
    second = load_file(again / "heads.safetensors")
    assert [k for k, v in first.items() if not torch.equal(v, second[k])] == []
    kinds = load_file(made / "statistics.safetensors")
    seen = sum(min(COHORT, len(c.fields)) for c in pool_of(data).collections.values())
    assert len(kinds["kinds.cohort"]) == seen == int(kinds["kinds.patients"])  # these rules say nothing of goods
    assert -1.5 < kinds["least_similarity"] < 1
    detector = AnomalyDetector(backbone=made, recipe=small, random_state=0).fit(sample.support)
    assert np.isfinite(detector.predict(sample.images[:2]).scores).all()


def test_kinds_lie_apart_in_collections_never_learned_from():
    rng = torch.Generator().manual_seed(0)
    within = torch.randn(12, 40, generator=rng)  # what varies within every collection, far more than between them

    def collection() -> torch.Tensor:
        centre = torch.randn(1, 40, generator=rng)
        return centre + 4 * torch.randn(30, 12, generator=rng) @ within / 40**0.5

    pool = {str(i): collection() for i in range(20)}
    limit = least_similarity(pool)
    kinds = learn_kinds(pool)
    whole = [kinds.of_pooled(collection()) for _ in range(6)]
    own = torch.cat([(similarity(k, k) < limit)[~torch.eye(len(k), dtype=torch.bool)] for k in whole])
    other = torch.cat([(similarity(a, b) < limit).flatten() for a in whole for b in whole if a is not b])
    assert own.float().mean() < 0.3
    assert other.float().mean() > 0.9
    plain = [F.normalize(collection(), dim=1) for _ in range(6)]
    same = torch.cat([(p @ p.T)[~torch.eye(len(p), dtype=torch.bool)] for p in plain])
    apart = torch.cat([(a @ b.T).flatten() for a in plain for b in plain if a is not b])
    assert (apart < same.quantile(0.05)).float().mean() < 0.5  # cosines alone cannot tell them
