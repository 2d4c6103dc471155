"""Runs of ``predict`` that are killed, cut off, repeated and continued."""

import csv
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from oneshot_medad import cli
from oneshot_medad._listing import alone_in
from oneshot_medad.errors import ConfigError
from oneshot_medad.images.expand import expand
from oneshot_medad.results import runs

STATM = Path("/proc/self/statm")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def stub(stub, monkeypatch):
    """Networks that take no time, and runs of several steps."""
    monkeypatch.setattr(cli.predictions, "CHUNK", 4)


@pytest.fixture
def detector(fitted, tmp_path):
    return str(fitted.save_pretrained(tmp_path / "detector"))


def picture(seed):
    return np.random.default_rng(seed).integers(1, 255, (12, 9), dtype=np.uint8)


def write_volume(path, count, seed=0):
    volume = np.stack([picture(seed + i) for i in range(count)], -1)
    volume[..., -1] = 0  # blank, as at the ends of most volumes
    image = nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1]))
    image.header["cal_max"] = 255
    nibabel.save(image, path)
    return path


@pytest.fixture
def scans(tmp_path):
    """Pictures, two volumes and a broken file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(picture(i)).save(folder / f"{i}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    for name in ("a.nii.gz", "z.nii"):
        write_volume(folder / name, 5)
    return folder


def predict(detector, out, *images, options=()):
    """The exit code of the command."""
    sys.argv = ["oneshot-medad", "predict", detector, *map(str, images), "--out", str(out), "--json", *options]
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def contents(out):
    """Every file that a run left, without the times of its records."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: re.sub(rb'"time": "[^"]+"', b"", data) for name, data in found.items()}


def names(out):
    return [row["name"] for row in csv.DictReader((out / "scores.csv").open(encoding="utf-8"))]


def run(detector, out, *images, form="png", chunk=4):
    """What `predict` does, without reading the detector anew."""
    out.mkdir(exist_ok=True)
    with alone_in(out):
        for _ in runs.Run(detector, expand(list(map(str, images))), out, form, chunk):
            pass


def forked(work):
    """Do something in another process; its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def run_to_change(detector, out, scans, number):
    """Run, and be killed before a change to the folder; the number tells which."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        writing = event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax"
        if (writing or event in ("os.rename", "os.remove", "os.mkdir")) and str(arguments[0]).startswith(str(out)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run(detector, out, scans)


@needs_fork
@pytest.mark.usefixtures("stub")
def test_killed_before_any_change_to_the_folder_it_goes_on(fitted, scans, tmp_path):
    run(fitted, tmp_path / "whole", scans)
    whole = contents(tmp_path / "whole")
    for number in range(1, 200):
        out = tmp_path / f"out{number}"
        killed = os.WIFSIGNALED(os.waitpid(forked(lambda: run_to_change(fitted, out, scans, number)), 0)[1])  # noqa: B023
        # the second run is killed as well, while it takes away what the first left or later
        os.waitpid(forked(lambda: run_to_change(fitted, out, scans, 1 + number % 7)), 0)  # noqa: B023
        run(fitted, out, scans)
        assert contents(out) == whole, number
        if not killed:
            break
    assert number > 30


@needs_fork
@pytest.mark.usefixtures("stub")
def test_killed_at_any_time_it_goes_on(fitted, scans, tmp_path):
    run(fitted, tmp_path / "whole", scans)
    begun, whole = time.monotonic(), contents(tmp_path / "whole")
    run(fitted, tmp_path / "again", scans)  # what is imported first takes no time now
    took, kills, chance = time.monotonic() - begun, 0, random.Random(0)
    for loop in range(6):
        out, killed, tries = tmp_path / f"out{loop}", True, 0
        while killed:
            child, tries = forked(lambda: run(fitted, out, scans)), tries + 1  # noqa: B023
            time.sleep(chance.uniform(0.2, 1.2) * took * 1.5**tries)  # a busy machine gets there too
            os.kill(child, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            kills += killed
        assert contents(out) == whole
    assert kills > 2


@pytest.mark.usefixtures("stub")
def test_whatever_was_written_of_its_tables_it_goes_on(fitted, scans, tmp_path):
    """A machine that goes down may keep any beginning of every file."""
    out = tmp_path / "out"
    run(fitted, out, scans)
    whole, chance = contents(out), random.Random(0)
    for _ in range(25):
        for name in ("scores.csv", "audit.jsonl", "volumes.csv"):
            with (out / name).open("rb+") as file:
                file.truncate(chance.randrange((out / name).stat().st_size + 1))
        for path in out.glob("heatmaps/*"):
            if chance.random() < 0.1:
                path.unlink()
        run(fitted, out, scans)
        assert contents(out) == whole


@pytest.mark.usefixtures("stub")
def test_a_volume_is_completed_whatever_of_it_was_predicted_before(fitted, scans, tmp_path):
    volume = scans / "a.nii.gz"
    run(fitted, tmp_path / "whole", volume)
    whole = contents(tmp_path / "whole")
    for number, first in enumerate(([1], [1, 3], [4], [3, 2, 1, 0])):
        out = tmp_path / f"out{number}"
        run(fitted, out, *(f"{volume}[axial {i}]" for i in first))
        run(fitted, out, volume)
        assert contents(out) == whole
    run(fitted, out, f"{volume}[axial 2]")  # it is there
    assert contents(out) == whole

    # slices of it one by one make one heatmap, and each axis one of its own
    for i in range(5):
        run(fitted, tmp_path / "single", f"{volume}[axial {i}]")
    assert names(tmp_path / "single") == names(tmp_path / "whole")
    assert (tmp_path / "single/volumes.csv").read_bytes() == whole["volumes.csv"]
    run(fitted, out, f"{volume}[coronal 3]", f"{volume}[coronal 4]")
    rows = list(csv.DictReader((out / "volumes.csv").open()))
    assert [row["name"] for row in rows] == [str(volume), f"{volume}[coronal]"]
    assert len({row["heatmap"] for row in rows}) == 2
    before = contents(out)
    run(fitted, out, volume, f"{volume}[coronal 4]")
    assert contents(out) == before


@pytest.mark.usefixtures("stub")
def test_what_was_predicted_before_stands_once(fitted, scans, tmp_path):
    run(fitted, tmp_path / "whole", scans)
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"
    run(fitted, out, scans / "3.png", scans / "torn.png")
    run(fitted, out, scans, scans / "3.png", scans)
    assert contents(out) == whole
    (out / "heatmaps" / ".hidden").write_text("somebody's")  # nor is anything taken away
    # images of other commands stay, and nothing is written over
    Image.fromarray(picture(9)).save(tmp_path / "3.png")
    run(fitted, out, tmp_path / "3.png")
    assert names(out) == [*names(tmp_path / "whole"), str(tmp_path / "3.png")]
    assert contents(out).items() >= {k: v for k, v in whole.items() if k.startswith(("heatmaps", "volumes"))}.items()
    # new files of a folder join
    Image.fromarray(picture(9)).save(scans / "00.png")
    run(fitted, out, scans)
    found = list(csv.DictReader((out / "scores.csv").open()))
    assert sorted(row["name"] for row in found) == sorted(map(str, (*expand(str(scans)), tmp_path / "3.png")))
    files = [row["heatmap"] for row in found if row["heatmap"]]
    assert (out / "heatmaps" / ".hidden").exists()
    assert len(files) == len(set(files))
    for row in found:
        if row["heatmap"]:
            shown = np.asarray(Image.open(out / row["heatmap"]), dtype=float) / 65535
            # the threshold is 0.5 on the shown scale, on which values keep their order
            assert (shown.mean() > 0.5) == (float(row["score"]) > float(row["threshold"]))


@pytest.mark.usefixtures("stub")
def test_what_a_command_wants_more_than_the_last_one_is_made(fitted, scans, tmp_path):
    run(fitted, tmp_path / "whole", scans, form="npz")
    out = tmp_path / "out"
    for form in (None, "npz"):
        run(fitted, out, scans, form=form)
    assert contents(out) == contents(tmp_path / "whole")
    run(fitted, out, scans, form=None)  # less is wanted: nothing to do
    assert contents(out) == contents(tmp_path / "whole")


def silhouette(folder, count):
    """Pictures of black and white alone, all different."""
    folder.mkdir()
    for i in range(count):
        pixels = np.zeros((12, 9), np.uint8)
        pixels[: i + 1, :5] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.usefixtures("stub")
def test_saturation_is_warned_about_once_a_run(detector, tmp_path, capsys):
    folder = silhouette(tmp_path / "white", 10)  # three chunks
    Image.fromarray(picture(0)).save(folder / "right.png")
    assert predict(detector, tmp_path / "out", folder) == 0
    said = capsys.readouterr().err
    assert said.count("saturated") == 1
    assert f"{folder / '0.png'}, which is saturated" in said
    assert "So are 9 more of 11 images." in said
    assert predict(detector, tmp_path / "out", folder) == 0  # nothing was left to read
    assert "saturated" not in capsys.readouterr().err


@pytest.mark.usefixtures("stub")
def test_a_run_that_breaks_off_warns_of_what_it_saw(fitted, tmp_path):
    sources = expand(str(silhouette(tmp_path / "white", 10)))
    (tmp_path / "out").mkdir()
    broken_off = iter(runs.Run(fitted, sources, tmp_path / "out", None, 4))
    next(broken_off)
    with pytest.warns(UserWarning, match="So are 3 more of 4 images"):
        broken_off.close()


@pytest.mark.usefixtures("stub")
def test_a_volume_without_a_judged_slice_has_neither_score_nor_heatmap(fitted, tmp_path):
    image = nibabel.Nifti1Image(np.zeros((12, 9, 4), np.uint8), np.diag([1, 1, 3, 1]))
    image.header["cal_max"] = 255
    nibabel.save(image, tmp_path / "blank.nii")
    write_volume(tmp_path / "some.nii", 4)
    for _ in range(2):
        run(fitted, tmp_path / "out", tmp_path / "*.nii")
        rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open(encoding="utf-8")))
        assert {key: rows[0][key] for key in ("name", "verdict", "score", "heatmap")} == {
            "name": str(tmp_path / "blank.nii"),
            "verdict": "not read",
            "score": "",
            "heatmap": "",
        }
        assert float(rows[1]["score"]) > 0
        assert [path.name for path in (tmp_path / "out" / "volumes").iterdir()] == ["00004-some.nii.gz"]
    assert not list(runs.Run(fitted, expand(str(tmp_path / "*.nii")), tmp_path / "out", "png", 4))


@pytest.mark.usefixtures("stub")
def test_one_run_at_a_time(fitted, scans, tmp_path, detector):
    out = tmp_path / "out"
    out.mkdir()
    with alone_in(out):
        with pytest.raises(ConfigError, match="Another run"):
            run(fitted, out, scans)
        assert predict(detector, out, scans) == 1
    run(fitted, out, scans)


@pytest.mark.usefixtures("stub")
def test_tables_of_others_are_refused(fitted, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.csv").write_text("name,score\nx,1\n")
    with pytest.raises(ConfigError, match="has the columns name,score"):
        run(fitted, out, scans)
    (out / "scores.csv").unlink()
    run(fitted, out, scans / "0.png")
    text = (out / "scores.csv").read_text()
    (out / "scores.csv").write_text(text.replace("shown", "displayed"))
    with pytest.raises(ConfigError, match="displayed"):
        run(fitted, out, scans / "1.png")


@pytest.mark.usefixtures("stub")
def test_records_that_a_run_did_not_write_stay(fitted, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fitted.predict(str(scans / "1.png")).to_jsonl(out / "audit.jsonl")
    run(fitted, out, scans / "2.png")
    recorded = [json.loads(line)["name"] for line in (out / "audit.jsonl").read_text().splitlines()]
    assert recorded == [str(scans / "1.png"), str(scans / "2.png")]


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
@pytest.mark.usefixtures("stub")
def test_memory_stays_constant(fitted, tmp_path):
    """In a fresh process, since what this one has freed may be taken again."""
    folder = tmp_path / "many"
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "00000.png")
    for i in range(1, 3000):
        os.link(folder / "00000.png", folder / f"{i:05d}.png")

    def resident():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def measure():
        out = tmp_path / "out"
        out.mkdir()
        sizes = []
        for number, _ in enumerate(runs.Run(fitted, expand(str(folder)), out, "png", 32)):
            if number in (30, 92):
                sizes.append(resident())
        (tmp_path / "grown").write_text(str(sizes[1] - sizes[0]))

    os.waitpid(forked(measure), 0)
    assert int((tmp_path / "grown").read_text()) < 2e6  # 1 kB an image at most
