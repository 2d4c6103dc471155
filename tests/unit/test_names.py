"""Any name that a file system takes goes through every output."""

import csv
import html
import json
import os
import re
import string
import sys

import nibabel
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneshot_medad import Predictions, cli
from oneshot_medad._names import MAX_BYTES, cell, file_name, printable, written

NAMES = [
    b"M\xfcller.png", b"\xff\xfe.png", b"\xe5\xbd\xb1\xe5.png", "M\u00fcller.png", "e\u0301.png", "\u00e9.png",
    "a\nb.png", "a\\nb.png", "a\\u000ab.png", "a\\xfcb.png", "a\rb.png", "a\tb.png", "a\x1b[31mb.png", "a\x7fb.png",
    "a\x85b.png", "a\u2028b.png", "a\u202eb.png", "\ufeffa.png", "\u3000.png", "\U0001f9e0.png",
    "a,b;c|d.png", "a\"b'c`.png", "C:\\scans\\a.png", "a:b*c?d<e>f.png", "<script>alert(1)<\u2215script>.png",
    "{{ 7 * 7 }}.png", "%s%n$HOME~#&.png", "=1+1.png", "=HYPERLINK(1).png", "@a.png", "+a.png", "-a.png", "-1.png",
    "--out.png", "\uff1d1.png", " a .png", "A.png", "a.png", "a.PNG", "a.b.c.png", "NULL.png", "con.png",
    "[axial 1].png",     "影" * 82 + ".png", "\U0001f9e0" * 62 + ".png", "a" * 251 + ".png",
]  # fmt: skip

posix = pytest.mark.skipif(os.name != "posix", reason="other systems take fewer names")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A file of every name, in the working directory, so that the names begin as they are."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 5), dtype=np.uint8)
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())  # noqa: PTH118
        Image.fromarray(pixels).save(path, "PNG")
    assert len(list(folder.iterdir())) == len(NAMES)
    monkeypatch.chdir(folder)
    return folder


def command(*arguments):
    sys.argv = ["oneshot-medad", *map(str, arguments)]
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@posix
@pytest.mark.usefixtures("stub")
def test_every_command_takes_every_name(fitted, folder, tmp_path, capsys):
    detector = fitted.save_pretrained(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9t\nector"))
    card = (detector / "README.md").read_text(encoding="utf-8")
    assert "# d\\xe9t\\u000aector" in card
    assert eval(re.search(r"from_pretrained\((.+)\)", card)[1]) == detector.name
    out = tmp_path / os.fsdecode(b"r\xe9sults\x1b")
    predict = ["predict", detector, ".", "--out", out]
    assert command(*predict) == 0
    said = capsys.readouterr().out
    assert said.strip().isprintable()
    assert said.startswith(f"{len(NAMES)} images")
    whole = (out / "scores.csv").read_bytes()
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["name"] for row in rows}) == len(rows) == len(NAMES)
    assert all(row["name"].isprintable() or "\u3000" in row["name"] or row["name"][0] in "\ufeffa" for row in rows)
    assert not [row["name"] for row in rows if row["name"][0] in "=+@" or row["name"].startswith("--")]
    assert len(list((out / "heatmaps").iterdir())) == len(NAMES)
    assert all((out / row["heatmap"]).is_file() for row in rows)
    records = [json.loads(line) for line in (out / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [cell(record["name"]) for record in records] == [row["name"] for row in rows]

    # again: every name finds its row; broken off in the middle of the tables: it goes on
    assert command(*predict, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(NAMES)
    assert (out / "scores.csv").read_bytes() == whole
    (out / "scores.csv").write_bytes(whole[: len(whole) // 2])
    assert command(*predict) == 0
    assert (out / "scores.csv").read_bytes() == whole
    assert len((out / "audit.jsonl").read_text(encoding="utf-8").splitlines()) == len(NAMES)

    capsys.readouterr()
    assert command("report", detector, ".", "--out", out, "--title", "r\udce9port") == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert html.escape("<script>alert(1)<\u2215script>") in page
    assert page.count('class="heat') == len(NAMES)
    assert "alert(1)<\u2215" not in page
    assert "r\\xe9port" in page
    assert command("calibrate", detector, ".", "--out", tmp_path / os.fsdecode(b"c\xe9")) == 0
    assert command("evaluate", detector, "--normal", "a.png", "--abnormal", os.fsdecode(b"M\xfcller.png")) == 0
    (folder / "torn\n\x1b.png").write_bytes(b"\x89PNG")
    assert command("predict", detector, "torn\n\x1b.png", "--out", out) == 3
    error = capsys.readouterr().err
    assert "torn\\u000a\\u001b.png" in error
    assert "\x1b" not in error.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert command("predict", os.fsdecode(b"n\xf6"), "a.png", "--out", out) == 1
    assert "n\\udcf6" in capsys.readouterr().err


@posix
@pytest.mark.usefixtures("stub")
def test_every_output_takes_every_name(fitted, folder, tmp_path):
    found = fitted.predict(".")
    names = [written(name) for name in found.names]
    assert len(set(names)) == len(NAMES)
    assert names == found.to_frame()["name"].tolist()
    assert pandas.read_csv(found.to_csv(tmp_path / "a.csv"))["name"].tolist() == list(map(cell, names))
    assert pandas.read_parquet(found.to_parquet(tmp_path / "a.parquet"))["name"].tolist() == names
    lines = found.to_jsonl(tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == names
    found.to_html(tmp_path / "a.html").read_text(encoding="utf-8")
    assert len(str(found).splitlines()) == len(NAMES) + 1
    str(found).encode()
    found._repr_html_().encode()
    for form in ("png", "npz", "nifti", "dicom"):
        paths = found.save_heatmaps(tmp_path / form, format=form)
        assert len(set(paths)) == len(NAMES)
        assert all(path.is_file() and len(os.fsencode(path.name)) <= MAX_BYTES for path in paths)


@posix
@pytest.mark.usefixtures("stub")
def test_volumes_of_any_name(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(fitted, "intensity_range", (0, 255))
    detector = fitted.save_pretrained(tmp_path / "detector")
    voxels = np.random.default_rng(0).integers(0, 255, (6, 5, 4), dtype=np.uint8)
    paths = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/\xe9=.nii", b"/" + "影".encode() * 83 + b".nii")]
    for path in paths:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    for _ in range(2):
        assert command("predict", detector, *paths, "--out", tmp_path / "out") == 0
    with (tmp_path / "out/volumes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [written(path) for path in paths]
    assert all((tmp_path / "out" / row["heatmap"]).is_file() for row in rows)


def test_a_screen_that_holds_ascii_alone(fitted, tmp_path, monkeypatch):
    import io

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    fitted.save_pretrained(tmp_path / "影")
    assert command("info", tmp_path / "影") == 0
    assert command("info", tmp_path / "没有") == 1


characters = st.one_of(st.characters(), st.characters(categories=["Cc", "Cs"]), st.sampled_from("\\xu0aff=@\n"))


@given(st.text(characters), st.text(characters))
def test_written_names_are_one_line_that_stands_for_one_name(one, other):
    for text in (written(one), printable(one)):
        assert len(text.splitlines()) <= 1
        text.encode()
    assert (written(one) == written(other)) == (one == other)
    assert (cell(written(one)) == cell(written(other))) == (one == other) or "./" in one + other


@given(st.text(characters), st.integers(0, 99999))
def test_file_names_fit(name, number):
    made = file_name(number, name, ".nii.gz")
    assert len(made.encode()) <= MAX_BYTES
    assert re.fullmatch(r"\d{5}-[\w. -]*\.nii\.gz", made)
    assert made.startswith(f"{number:05d}-")


def test_plain_names_stay_as_they_are():
    for name in ("scans/a 1.png", "C:\\scans\\a.png", "影/é.png", "a.nii.gz[axial 3]", "image 0", string.punctuation):
        assert written(name) == name


def test_names_that_are_no_paths():
    table = Predictions(np.array([0.1, 0.2]), [np.zeros((2, 2))] * 2, 0.5, ["-12", "+3.5"])
    assert table.to_frame()["name"].tolist() == ["-12", "+3.5"]
