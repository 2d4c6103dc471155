"""The benchmark runner, from a folder of images to the table, on generated images."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_repos import SMALL_CLIP, SMALL_DD, clip_repo, medvae_repo, small_spec
from PIL import Image

from benchmarks import ceiling, explain, heatmaps, run, volumes
from benchmarks.baselines import padim
from benchmarks.data import Item
from benchmarks.heads import KINDS, simulate
from oneshot_medad import AnomalyDetector, config
from oneshot_medad.backbones.resolve import download


@pytest.fixture
def data(sample, tmp_path):
    rows = []
    for i, (image, label, mask) in enumerate(zip(sample.images, sample.labels, sample.masks, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
        word = "abnormal" if label else "normal"
        rows.append(("eval", "made", f"{i}.png", word, word, f"{i}_mask.png" if label else "", f"patient {i}"))
    with (tmp_path / "MANIFEST.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("role", "set", "path", "label", "class", "mask", "patient"), *rows])
    return tmp_path


@pytest.mark.slow
def test_every_kind_of_method_ends_in_the_table(data, small, tmp_path):
    config = {
        "sets": ["made"],
        "methods": ["short", "padim", "zero-shot"],
        "seeds": 2,
        "recipes": {"short": asdict(small)},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "found.json"
    run.main(["--config", str(tmp_path / "config.json"), "--data", str(data), "--out", str(out)])
    runs = json.loads(out.read_text())["runs"]
    assert [r["method"] for r in runs] == config["methods"]
    for found in runs:
        assert len(found["seeds"]) == 2
        for seed in found["seeds"]:
            assert 0 <= seed["image_auroc"] <= 1
            assert seed["support"][0] in {f"{i}.png" for i in range(4)}  # a normal image
            assert ("pixel_auroc" in seed) == (found["method"] != "zero-shot")  # that one has no map
    assert len(out.with_suffix(".md").read_text().splitlines()) == 2 + len(runs)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"n_lesions": 0, "branches": {"clip": 1.0}, "mirror": False}])
def test_scores_are_those_of_the_detector(data, small, changed, monkeypatch):
    recipe = replace(small, **changed)
    monkeypatch.setattr(run, "DEFAULT", small)
    collection = run.read_collection(str(data), "made")
    support, test = run.draw_support(collection, 1, seed=3)
    found = run.score(collection, recipe, support, test, seed=3).scores.numpy()
    detector = AnomalyDetector(recipe=recipe, random_state=3).fit(collection.items[support[0]].path)
    assert found == pytest.approx(detector.predict([collection.items[i].path for i in test]).scores, abs=1e-4)


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_folder_of_other_networks_gives_the_table(hub, data, small, tmp_path, monkeypatch):
    hub.put("stanfordmimi/MedVAE", medvae_repo(SMALL_DD))
    hub.put("clinic/clip", clip_repo(SMALL_CLIP))
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setattr(run, "chosen", "tiny")
    monkeypatch.setitem(config.RECIPES, "scratch", replace(small, mirror=False))
    folder, out = download(small_spec(), tmp_path / "networks"), tmp_path / "found.json"
    run.main(["--data", str(data), "--sets", "made", "--methods", "default", "--seeds", "1",
              "--backbone", str(folder), "--out", str(out)])  # fmt: skip
    found = json.loads(out.read_text())
    assert found["backbone"] == str(folder)
    assert 0 <= found["runs"][0]["seeds"][0]["image_auroc"] <= 1
    assert run.networks().spec.name == "small"


def test_the_picture_of_hits_and_failures(small, tmp_path, monkeypatch):
    monkeypatch.setitem(config.RECIPES, "default", small)
    heatmaps.draw(tmp_path / "heatmaps.png")
    with Image.open(tmp_path / "heatmaps.png") as picture:
        assert picture.width == 3 * 3 * (246 // 2)  # three columns of image, heatmap and both at half size


def test_more_images_add_to_fewer_and_are_tested_on_the_same_others(monkeypatch):
    items = [Item(Path(f"{i}.png"), "eval", "made", "normal", "normal", None, f"patient {i // 2}") for i in range(60)]
    made = run.Collection("made", items, None, [(1, 1)] * 60, np.zeros(60))
    seen = {}

    def score(collection, method, support, test, seed, init):
        seen[len(support)] = support.tolist(), test.tolist()
        return run.Found(torch.zeros(len(test)), None, 0.0, {})

    monkeypatch.setattr(run, "score", score)
    for name in ("auroc", "average_precision", "bootstrap_interval"):  # there are no abnormal images here
        monkeypatch.setattr(run, name, lambda *args, **kwargs: 0.5)
    for shots in (1, 4, 16):
        run.evaluate(made, "padim", shots, seed=1, limit=20, drawn=16)
    (one, test), (four, _), (sixteen, _) = seen[1], seen[4], seen[16]
    assert one == four[:1]
    assert four == sixteen[:4]
    assert [others for _, others in seen.values()] == [test] * 3
    assert len(test) == 20
    assert not {made.patients[i] for i in sixteen} & {made.patients[i] for i in test}


def test_a_probe_finds_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    items = [
        Item(Path(f"{i}.png"), "eval", "made", word, word, None, f"patient {i // 2}")
        for i, word in enumerate(["normal", "abnormal"] * 40)
    ]
    made = run.Collection("made", items, None, [], np.zeros(80))
    told = rng.normal(size=(80, 4)) + 3 * made.labels[:, None]
    assert ceiling.probe(made, told) > 0.95
    assert 0.3 < ceiling.probe(made, rng.normal(size=(80, 4))) < 0.7


def test_unknown_methods_are_refused_before_anything_runs(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--data", str(data), "--sets", "made", "--methods", "magic", "--out", str(tmp_path / "x.json")])
    assert "magic" in capsys.readouterr().err


def test_padim_finds_what_no_view_of_the_normal_image_has(backbone, sample):
    field = torch.from_numpy(sample.support)[None, None].expand(1, 3, -1, -1) / 255
    field = torch.nn.functional.interpolate(field, (backbone.spec.image_px,) * 2)
    other = field.clone()
    other[..., 100:140, 100:140] = 1 - other[..., 100:140, 100:140]
    maps = padim(backbone, field, backbone.vision(torch.cat([field, other])), seed=0)
    change = (maps[1] - maps[0]).numpy()
    scale = change.shape[0] / backbone.spec.image_px
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert 90 < row / scale < 150
    assert 90 < column / scale < 150


def test_simulated_heads_differ_and_show_their_lesions():
    healthy, again, other = simulate(3), simulate(3), simulate(4)
    assert np.array_equal(healthy.values, again.values)
    assert healthy.values.shape != other.values.shape or (healthy.values != other.values).mean() > 0.3
    assert not healthy.lesion.any()
    sick = {kind: simulate(3, kind) for kind in KINDS}
    for head in sick.values():
        assert 1 <= head.lesion.sum() <= 5
    assert len({head.values.tobytes() for head in sick.values()}) == len(KINDS)


@pytest.mark.slow
def test_volumes_end_in_a_table(small, tmp_path, monkeypatch):
    monkeypatch.setitem(config.RECIPES, "default", small)
    monkeypatch.setattr(volumes, "REFERENCES", {"the middle": (1, "[axial 4:7]")})
    out = tmp_path / "volumes.json"
    volumes.main(["--count", "2", "--seeds", "1", "--out", str(out)])
    found = json.loads(out.read_text())["found"]
    assert list(found) == ["the middle, positions", "the middle, no positions"]
    (known,), (unknown,) = found.values()
    assert known["judged"] < unknown["judged"]
    assert known["scores"].keys() == unknown["scores"].keys() == {"healthy0", "healthy1", "bright0", "dark1"}
    assert len(out.with_suffix(".md").read_text().splitlines()) == 4
    assert "forward_all" not in vars(run.networks().vision)  # put back


@pytest.mark.slow
def test_explain_ends_in_two_tables(small, tmp_path, monkeypatch):
    monkeypatch.setitem(config.RECIPES, "default", small)
    out = tmp_path / "explain.json"
    explain.main(["--sets", "sample", "--count", "2", "--seeds", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["label"] for row in found["rows"]["sample"]] == [0, 0, 1, 1]
    numbers = found["summary"]["sample"]
    assert numbers["redrawn: outside"] < numbers["deviation network: outside"]
    assert numbers["redrawn: removed"] <= 1
    text = out.with_suffix(".md").read_text()
    assert text.count("| sample |") == 3


def test_contrast_is_that_to_the_ring_around():
    picture, mask = np.full((60, 60), 0.4), np.zeros((60, 60), bool)
    mask[25:35, 25:35] = True
    picture[mask] = 0.7
    assert explain.contrast(picture, mask) == pytest.approx(0.3)
