import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from backbone_repos import SMALL_CLIP, SMALL_DD, clip_repo, medvae_repo, small_spec

from oneshot_medad import cli
from oneshot_medad.backbones import specs
from oneshot_medad.backbones.specs import SPEC, BackboneSpec

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["oneshot-medad", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_download_makes_a_folder_or_says_why_not(hub, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(specs.BACKBONES, "small", small_spec())
    assert run(monkeypatch, "download", "--backbone", "small", "--to", tmp_path / "small") == 1
    assert "HubError" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    hub.put("stanfordmimi/MedVAE", medvae_repo(SMALL_DD))
    hub.put("clinic/clip", clip_repo(SMALL_CLIP))
    assert run(monkeypatch, "download", "--backbone", "small", "--to", tmp_path / "small") == 0
    assert "AnomalyDetector(backbone=" in capsys.readouterr().out
    assert (tmp_path / "small" / SPEC).is_file()
    assert BackboneSpec.from_folder(tmp_path / "small").to_dict() == small_spec().to_dict()
    assert run(monkeypatch, "download", "--backbone", "tiny", "--to", tmp_path / "tiny") == 0
    assert "needs no download" in capsys.readouterr().out
    assert run(monkeypatch, "download", "--backbone", "huge", "--to", tmp_path / "huge") == 1
    assert "'medvae-vitl14'" in capsys.readouterr().err


@pytest.fixture
def scans(sample, tmp_path):
    from PIL import Image

    folders = {"normal": tmp_path / "normal", "abnormal": tmp_path / "abnormal"}
    for folder in folders.values():
        folder.mkdir()
    Image.fromarray(sample.support).save(tmp_path / "support.png")
    for name, image, label in zip(sample.names, sample.images, sample.labels, strict=True):
        Image.fromarray(image).save(folders["abnormal" if label else "normal"] / f"{name}.png")
    return tmp_path


def test_fit_predict_evaluate_and_info(scans, monkeypatch, capsys, small):
    from oneshot_medad import config

    monkeypatch.setitem(config.RECIPES, "default", small)
    monkeypatch.setattr(cli, "CHUNK", 3)
    detector = scans / "detector"
    assert run(monkeypatch, "fit", scans / "support.png", "--out", detector, "--modality", "brain MRI", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["n_support"] == 1

    out = scans / "out"
    arguments = ["predict", detector, scans / "normal", scans / "abnormal", "--out", out, "--json"]
    assert run(monkeypatch, *arguments) == 0
    assert json.loads(capsys.readouterr().out) | {"flagged": 0} == {
        "images": 8, "flagged": 0, "failed": 0, "table": str(out / "scores.csv")
    }  # fmt: skip
    whole = (out / "scores.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    assert len(rows) == 8
    assert len({row["heatmap"] for row in rows}) == 8
    from PIL import Image

    assert np.asarray(Image.open(out / rows[0]["heatmap"])).dtype == np.uint16

    # broken off in the middle of a line: what is whole is kept, the rest done again
    (out / "scores.csv").write_text(whole[: len(whole) * 2 // 3])
    (scans / "abnormal" / "torn.png").write_bytes(b"\x89PNG")
    assert run(monkeypatch, *arguments) == 2
    assert json.loads(capsys.readouterr().out)["failed"] == 1
    again = {row["name"]: row for row in csv.DictReader((out / "scores.csv").open())}
    assert len(again) == 9
    for row in rows:
        assert float(again[row["name"]]["score"]) == pytest.approx(float(row["score"]), abs=1e-5)
    (scans / "abnormal" / "torn.png").unlink()

    arguments = [
        "evaluate",
        detector,
        "--normal",
        scans / "normal",
        "--abnormal",
        scans / "abnormal",
        "--save",
        "--json",
    ]
    assert run(monkeypatch, *arguments) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["n_normal"] == 4
    assert run(monkeypatch, "info", detector, "--json") == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == measured

    assert run(monkeypatch, "fit", scans / "abnormal" / "none.png", "--out", scans / "x") == 1
    assert "none.png" in capsys.readouterr().err
    assert not (scans / "x").exists()


def test_push(hub, fitted, monkeypatch, tmp_path, capsys):
    fitted.save_pretrained(tmp_path / "detector")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert run(monkeypatch, "push", tmp_path / "detector", "clinic/brain", "--license", "mit", "--json") == 0
    assert "/clinic/brain/commit/" in json.loads(capsys.readouterr().out)["commit"]


def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    script = (
        "import sys\n"
        "sys.argv = ['oneshot-medad', '--help']\n"
        "from oneshot_medad.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'open_clip', 'medvae', 'sklearn', 'numpy'} & set(sys.modules)\n"
        "sys.exit(code or len(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "download" in done.stdout
