import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backbone_repos import SMALL_CLIP, SMALL_DD, clip_repo, medvae_repo, small_spec
from PIL import Image

from oneshot_medad import AnomalyDetector, _predicting, cli
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
    assert run(monkeypatch, "download", "--backbone", "tiny", "--to", tmp_path / "tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["backbone"] == "tiny"
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
    monkeypatch.setattr(cli.predictions, "CHUNK", 3)
    detector = scans / "detector"
    assert run(monkeypatch, "fit", scans / "support.png", "--out", detector, "--modality", "brain MRI", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_support"] == 1
    assert run(monkeypatch, "info", detector, "--json") == 0
    said = json.loads(capsys.readouterr().out)

    out = scans / "out"
    arguments = ["predict", detector, scans / "normal", scans / "abnormal", "--out", out, "--json"]
    assert run(monkeypatch, *arguments) == 0
    assert json.loads(capsys.readouterr().out) | {"flagged": 0, "normal": 8} == {
        "images": 8, "flagged": 0, "uncertain": 0, "normal": 8, "cannot_judge": 0, "blank": 0, "failed": 0,
        "left_out": {}, "table": str(out / "scores.csv"),
    }  # fmt: skip
    whole = (out / "scores.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    assert len(rows) == 8
    assert len({row["heatmap"] for row in rows}) == 8
    from PIL import Image

    assert np.asarray(Image.open(out / rows[0]["heatmap"])).dtype == np.uint16

    records = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == [row["name"] for row in rows]
    assert {record["detector_sha256"] for record in records} == {said["sha256"]}
    assert all(float(row["shown"]) == record["shown"] for row, record in zip(rows, records, strict=True))

    # broken off in the middle of a line: what is whole is kept, the rest done again
    (out / "scores.csv").write_text(whole[: len(whole) * 2 // 3])
    kept = (out / "audit.jsonl").read_text().splitlines(keepends=True)[:6]
    (out / "audit.jsonl").write_text("".join(kept)[:-20])
    (scans / "abnormal" / "torn.png").write_bytes(b"\x89PNG")
    assert run(monkeypatch, *arguments) == 3
    said_now = capsys.readouterr()
    assert json.loads(said_now.out)["failed"] == 1
    assert "not read: " in said_now.err
    assert "torn.png" in said_now.err
    again = {row["name"]: row for row in csv.DictReader((out / "scores.csv").open())}
    assert len(again) == 9
    records = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert {record["name"] for record in records} == set(again)
    assert [record["decision"] for record in records].count("not read") == 1
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
    assert measured.pop("left_out") == {}
    assert json.loads(capsys.readouterr().out)["evaluation"] == measured

    assert run(monkeypatch, "fit", scans / "abnormal" / "none.png", "--out", scans / "x") == 1
    assert "none.png" in capsys.readouterr().err
    assert not (scans / "x").exists()
    assert run(monkeypatch, "fit", scans / "support.png", "--out", scans / "normal") == 1
    assert "other files" in capsys.readouterr().err

    # another detector does not go on where this one stopped, even with the same threshold
    other = AnomalyDetector(recipe=small, random_state=1).fit(str(scans / "support.png"))
    other.set_threshold(said["threshold"]).save_pretrained(scans / "other")
    assert run(monkeypatch, "predict", scans / "other", scans / "normal", "--out", out) == 1
    assert "another detector" in capsys.readouterr().err


def test_calibrate(fitted, scans, monkeypatch, capsys):
    fitted.save_pretrained(scans / "detector", license="mit", modality="brain MRI")
    arguments = ["calibrate", scans / "detector", scans / "normal"]
    assert run(monkeypatch, *arguments) == 1
    assert "at least 19" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "--target-fpr", 0.25) == 0
    assert "4 normal images support no finer rate than 1/5 = 0.2" in capsys.readouterr().out
    assert run(monkeypatch, "info", scans / "detector", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["threshold_rule"], said["n_calibration"], said["finest_rate"]) == ("normals", 4, 0.2)
    assert (said["target_fpr"], said["uncertain_fpr"], len(said["calibration_images"])) == (0.25, None, 4)
    assert said["expected_fpr"] == pytest.approx(0.2)
    assert said["fpr_bound"] == pytest.approx(1 - 0.05**0.25)  # four images, the highest of them
    assert run(monkeypatch, "calibrate", scans / "detector", scans / "support.png", scans / "normal") == 1
    assert "support.png, which the detector was fitted on" in capsys.readouterr().err
    assert (said["license"], said["modality"]) == ("mit", "brain MRI")
    assert "license: mit" in (scans / "detector" / "README.md").read_text()
    assert run(monkeypatch, *arguments, "--abnormal", scans / "abnormal", "--out", scans / "new", "--json") == 0
    assert json.loads(capsys.readouterr().out)["detector"] == str(scans / "new")
    assert run(monkeypatch, "info", scans / "new", "--json") == 0
    assert json.loads(capsys.readouterr().out)["threshold_rule"] == "labels"
    assert run(monkeypatch, "calibrate", "clinic/brain", scans / "normal") == 1
    assert "--out" in capsys.readouterr().err


def test_folders_are_searched_and_what_is_passed_over_is_counted(small, scans, monkeypatch, capsys):
    from dicom_files import write_dicom

    from oneshot_medad import config

    monkeypatch.setitem(config.RECIPES, "default", small)
    deep = scans / "normal" / "deep"
    deep.mkdir()
    (scans / "normal" / "notes.txt").write_text("no image")
    (scans / "support.png").rename(deep / "support.png")
    write_dicom(
        scans / "normal" / "seg", np.eye(8, dtype=np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG"
    )
    detector = scans / "detector"
    assert run(monkeypatch, "fit", deep.parent, "--out", detector) == 0
    beside = "2 left out (.txt 1, folder 1), 1 skipped, no picture (SEG)"
    assert f"Fitted on 4 image(s), {beside}: " in capsys.readouterr().out
    assert run(monkeypatch, "predict", detector, scans / "normal", "--out", scans / "out") == 0
    assert f" not readable, {beside}: " in capsys.readouterr().out
    with Image.open(deep / "support.png") as support:
        Image.fromarray(np.fliplr(np.asarray(support))).save(scans / "mirrored.png")
    apart = scans / "apart"  # what a detector was fitted on is refused below
    assert run(monkeypatch, "fit", scans / "mirrored.png", "--out", apart) == 0
    capsys.readouterr()
    for arguments in (
        ["predict", detector, scans / "normal", "--out", scans / "all"],
        ["report", detector, scans / "normal", "--out", scans / "all"],
        ["fit", scans / "normal", "--out", scans / "other"],
        ["calibrate", apart, scans / "normal", "--target-fpr", 0.5, "--accept-unlike", "--out", scans / "calibrated"],
        ["evaluate", apart, "--normal", scans / "normal", "--abnormal", scans / "abnormal"],
    ):
        assert run(monkeypatch, *arguments, "--recursive", "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["left_out"] == {".txt": 1, "SEG": 1}
        assert said.get("n_normal", said.get("n_support", said.get("images"))) == 5
    (deep / "support.png").rename(scans / "support.png")
    for file in (scans / "normal").glob("*.png"):
        file.rename(deep / file.name)
    assert run(monkeypatch, "predict", detector, scans / "normal", "--out", scans / "none") == 1
    assert "--recursive" in capsys.readouterr().err


def test_what_goes_wrong_ends_in_one_line(fitted, scans, monkeypatch, capsys):
    fitted.save_pretrained(scans / "detector")
    predict = ["predict", scans / "detector", scans / "normal", "--out"]
    assert run(monkeypatch, *predict, scans / "support.png") == 1
    said = capsys.readouterr().err
    assert said.startswith("FileExistsError: ")
    assert said.count("\n") == 1

    monkeypatch.setattr(cli.predictions, "CHUNK", 2)
    score = _predicting.score

    def interrupted(fitted, images, fetch):
        if (scans / "out" / "heatmaps").exists():
            raise KeyboardInterrupt
        return score(fitted, images, fetch)

    monkeypatch.setattr(_predicting, "score", interrupted)
    assert run(monkeypatch, *predict, scans / "out") == 130
    assert "2 images are in" in capsys.readouterr().err
    monkeypatch.setattr(_predicting, "score", score)
    assert run(monkeypatch, *predict, scans / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    assert len((scans / "out" / "scores.csv").read_text().splitlines()) == 5


def test_demo_and_version(small, monkeypatch, tmp_path, capsys):
    from oneshot_medad import __version__, config

    monkeypatch.setitem(config.RECIPES, "default", small)
    assert run(monkeypatch, "demo", "--out", tmp_path / "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 24
    assert (tmp_path / "demo" / "contact-sheet.png").is_file()
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_predict_writes_other_formats_and_says_what_is_missing(fitted, scans, monkeypatch, capsys):
    import nibabel

    fitted.save_pretrained(scans / "detector")
    arguments = ["predict", scans / "detector", scans / "support.png", "--out", scans / "out", "--json", "--format"]
    assert run(monkeypatch, *arguments, "nifti") == 0
    capsys.readouterr()
    assert nibabel.load(scans / "out" / "heatmaps" / "00000-support.nii.gz").shape == (246, 246, 1)
    assert run(monkeypatch, *arguments, "tiff") == 2
    assert "'nifti'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pydicom", None)
    arguments[4] = scans / "other"
    assert run(monkeypatch, *arguments, "dicom") == 1
    assert "oneshot-medad[dicom]" in capsys.readouterr().err
    assert not (scans / "other").exists()


def test_overlays_are_pictures_of_their_own(fitted, scans, monkeypatch, capsys):
    from PIL import Image

    fitted.save_pretrained(scans / "detector")
    arguments = ["predict", scans / "detector", scans / "support.png", "--out", scans / "out", "--json"]
    assert run(monkeypatch, *arguments) == 0
    assert not (scans / "out/overlays").exists()
    assert run(monkeypatch, *arguments, "--overlay") == 0  # done before, but without its picture
    (picture,) = (scans / "out/overlays").iterdir()
    assert Image.open(picture).size == (3 * 246, 246)
    (row,) = csv.DictReader((scans / "out/scores.csv").open())
    heatmap = scans / "out" / row["heatmap"]
    assert heatmap.is_file()
    assert picture.name == heatmap.name.removesuffix(".png") + ".overlay.png"
    made = picture.stat().st_mtime_ns
    assert run(monkeypatch, *arguments, "--overlay") == 0
    assert picture.stat().st_mtime_ns == made  # nothing is done twice
    arguments[2:3] = [scans / "normal", scans / "support.png"]
    assert run(monkeypatch, *arguments, "--overlay") == 0  # heatmap and picture get another number
    rows = list(csv.DictReader((scans / "out/scores.csv").open()))
    names = [Path(row["heatmap"]).name.removesuffix(".png") + ".overlay.png" for row in rows]
    assert sorted(names) == sorted(path.name for path in (scans / "out/overlays").iterdir())
    assert run(monkeypatch, *arguments[:-3], "--out", scans / "alone", "--overlay", "--no-heatmaps") == 0
    assert {path.name.split(".", 1)[1] for path in (scans / "alone/heatmaps").iterdir()} == {"overlay.png"}


def test_a_sensitivity_and_what_readers_said(fitted, scans, monkeypatch, capsys):
    fitted.save_pretrained(scans / "detector")
    arguments = ["calibrate", scans / "detector", scans / "normal", "--abnormal", scans / "abnormal"]
    assert run(monkeypatch, *arguments, "--target-sensitivity", 0.75) == 0
    said = capsys.readouterr().out
    assert "4 abnormal images promise that 80 % of further ones like them are flagged" in said
    assert "false positives   at most (95 %)   sensitivity" in said
    assert run(monkeypatch, *arguments, "--target-sensitivity", 0.95) == 1
    assert "at least 19 abnormal images" in capsys.readouterr().err
    lines = [f"image,{path},normal,agree,0," for path in sorted((scans / "normal").iterdir())]
    lines += [f"image,{path},normal,disagree,1,seen" for path in sorted((scans / "abnormal").iterdir())]
    reading = scans / "reading.csv"
    reading.write_text("\n".join(["unit,name,verdict,reader,label,comment", *lines]))
    assert run(monkeypatch, "calibrate", scans / "detector", reading, "--reading", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rule"], said["n_normal"], said["n_abnormal"]) == ("labels", 4, 4)


def test_report(fitted, scans, monkeypatch, capsys):
    fitted.save_pretrained(scans / "detector")
    (scans / "abnormal" / "torn.png").write_bytes(b"\x89PNG")
    out = scans / "new" / "report.html"
    arguments = ["report", scans / "detector", scans / "abnormal", "--out", out, "--title", "Four & one", "--json"]
    assert run(monkeypatch, *arguments) == 3
    values = json.loads(capsys.readouterr().out)
    assert (values["images"], values["failed"], values["report"]) == (5, 1, str(out))
    text = out.read_text()
    assert "<h1>Four &amp; one</h1>" in text
    assert text.count('class="heat') == 4
    (scans / "abnormal" / "torn.png").unlink()
    assert run(monkeypatch, *arguments) == 0
    assert run(monkeypatch, "report", scans / "detector", scans / "none.png", "--out", scans / "new") == 3
    assert "none.png" in capsys.readouterr().err
    assert (scans / "new" / "report.html").is_file()  # a folder was named


def test_volumes_and_archives(fitted, sample, monkeypatch, tmp_path, capsys):
    import copy
    import zipfile

    import nibabel
    from PIL import Image

    monkeypatch.setattr(cli.predictions, "CHUNK", 1)
    detector = copy.copy(fitted)
    detector.intensity_range = (0, 255)
    detector.save_pretrained(tmp_path / "detector")
    blank = np.zeros_like(sample.support)
    for name, planes in {"head": [blank, *sample.images[:3]], "other": sample.images[3:5]}.items():
        nibabel.save(nibabel.Nifti1Image(np.stack(planes, -1), np.diag([2, 2, 3, 1])), tmp_path / f"{name}.nii.gz")
    Image.fromarray(sample.images[0]).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")

    out = tmp_path / "out"
    arguments = [
        "predict",
        tmp_path / "detector",
        tmp_path / "*.nii.gz",
        tmp_path / "scans.zip",
        "--out",
        out,
        "--json",
    ]
    assert run(monkeypatch, *arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["failed"]) == (7, 0)
    whole = (out / "scores.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    names = [f"head.nii.gz[axial {i}]" for i in range(4)] + [f"other.nii.gz[axial {i}]" for i in range(2)]
    assert [row["name"] for row in rows] == [str(tmp_path / name) for name in [*names, "scans.zip/a.png"]]
    turned = "seems turned by 90 degrees, beside the images fitted on"  # the arrays lie so in these files
    assert [row["reason"] for row in rows] == ["blank slice", *[turned] * 5, ""]
    volumes = list(csv.DictReader((out / "volumes.csv").open()))
    assert [row["heatmap"] for row in volumes] == ["volumes/00000-head.nii.gz", "volumes/00004-other.nii.gz"]
    assert (rows[0]["score"], rows[0]["flag"]) == ("", "")
    scores = [float(row["score"] or "nan") for row in rows]
    assert float(volumes[0]["score"]) == pytest.approx(np.mean(scores[1:4]))
    for row in volumes:
        heatmap, scan = nibabel.load(out / row["heatmap"]), nibabel.load(row["name"])
        assert heatmap.shape == scan.shape
        assert np.array_equal(heatmap.affine, scan.affine)

    # broken off inside the second volume, whose heatmap was written before its lines
    lines = whole.splitlines(keepends=True)
    (out / "scores.csv").write_text("".join(lines[:6]) + lines[6][:-9])
    before = (out / "volumes.csv").read_text()
    assert run(monkeypatch, *arguments) == 0
    again = list(csv.DictReader((out / "scores.csv").open()))
    assert [row["name"] for row in again] == [row["name"] for row in rows]
    assert (out / "volumes.csv").read_text() == before
    assert len(list((out / "volumes").iterdir())) == 2


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
