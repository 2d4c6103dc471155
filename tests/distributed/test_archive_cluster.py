"""Archives on a Ray cluster of two nodes: equal to `predict`, and whole, whatever is killed."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from archive_stub import stub
from dicom_files import write_dicom
from PIL import Image

from oneshot_medad import archive
from oneshot_medad.cli import main
from oneshot_medad.errors import ConfigError, ImageFileError, NotFittedError

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
NODE = {"num_cpus": 3, "object_store_memory": 150 * 2**20, "memory": 8 * 2**30}
SCRIPT = """
import pickle, sys
from oneshot_medad.archive import score
score(pickle.loads(open(sys.argv[1], "rb").read()), *sys.argv[2:4], workers=2, rows_per_file=int(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, with this process as the driver."""
    here = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": here}  # workers find the stub
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.second = made.add_node(**NODE)
    ray.init(made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(seed):
    return np.random.default_rng(seed).integers(1, 255, (12, 9), dtype=np.uint8)


def pictures(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(picture(i)).save(folder / f"{i:05d}.png")
    return folder


def table(out):
    """Rows by name, after a look at how many there are."""
    rows = pyarrow.dataset.dataset(Path(out, "scores")).to_table().to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def agrees(out, predictions):
    """Whether the rows are those of `predict`, to the bit."""
    rows = table(out)
    assert len(rows) == len(predictions)
    for expected in predictions.to_rows():
        got = rows[expected["name"]]
        assert {name: got[name] for name in expected} == expected
    return rows


def files(out, part="scores"):
    return sorted(path.name for path in Path(out, part).glob("*.parquet")) if Path(out, part).is_dir() else []


def commits(out):
    return [name for name in files(out, "checkpoint") if not name.endswith(".pending.parquet")]


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_rows_are_those_of_predict(cluster, one_thread, fitted, sample, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, image in enumerate(sample.images):
        Image.fromarray(image).save(folder / f"{i} ä.png")
    Image.fromarray(sample.support).save(os.fsencode(folder) + b"/M\xfcller.png")
    write_dicom(folder / "cine", np.stack(sample.images[:3]))
    image = nibabel.Nifti1Image(np.stack([sample.support, np.zeros_like(sample.support)], -1), np.diag([1, 1, 5, 1]))
    image.header["cal_max"] = 255
    nibabel.save(image, folder / "t1.nii")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("no image")
    found = archive.make_manifest(folder, tmp_path / "m.parquet")
    counts = archive.score(fitted, found.path, tmp_path / "out", heatmaps=True)
    predictions = fitted.predict(str(folder), on_error="record")
    rows = agrees(tmp_path / "out", predictions)
    assert counts == predictions.counts()
    assert counts["images"] == found.images == 15
    files_ = predictions.save_heatmaps(tmp_path / "heatmaps")
    for row, file in zip(predictions.to_rows(), files_, strict=True):
        assert rows[row["name"]]["heatmap"] == (file.read_bytes() if file else None)


def test_a_worker_and_a_node_are_killed_and_nothing_is_lost(cluster, fitted, tmp_path):
    detector = stub(fitted, 0.01)
    folder = pictures(tmp_path / "many", 1200)
    (folder / "00007.png").write_bytes(b"torn")
    manifest = archive.make_manifest(folder, tmp_path / "m.parquet").path
    out, killed = tmp_path / "out", []

    def kill():
        until(lambda: commits(out))
        (worker, *_) = [pid for pid in map(str, pids()) if "MapBatches(Judge)" in command(pid)]
        os.kill(int(worker), signal.SIGKILL)
        killed.append(len(commits(out)))
        until(lambda: len(commits(out)) > killed[0])
        cluster.remove_node(cluster.second, allow_graceful=False)
        killed.append(len(commits(out)))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        counts = archive.score(detector, manifest, out, workers=2, rows_per_file=64)
    finally:
        killer.join()
        cluster.second = cluster.add_node(**NODE)
    assert killed[1] < len(commits(out))  # there was something left to do
    assert (counts["images"], counts["failed"]) == (1200, 1)
    agrees(out, detector.predict(str(folder), on_error="record"))


def pids():
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command(pid):
    try:
        return Path("/proc", pid, "cmdline").read_text()
    except OSError:  # gone meanwhile
        return ""


def test_a_run_that_is_killed_goes_on_and_a_longer_manifest_costs_what_is_new(cluster, fitted, tmp_path):
    detector = stub(fitted, 0.01)
    folder = pictures(tmp_path / "many", 1000)
    manifest = archive.make_manifest(folder, tmp_path / "m.parquet").path
    (tmp_path / "detector").write_bytes(pickle.dumps(detector))
    out = tmp_path / "out"
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "detector"), str(manifest), str(out), "64"],
        env={**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(commits(out)) >= 3)
    driver.kill()
    driver.wait()
    time.sleep(2)  # until what it started has ended
    first = commits(out)
    assert sum(pq.read_metadata(out / "checkpoint" / name).num_rows for name in first) < 1000
    # a file that was written when its commit was missing
    torn = first[0].replace(".parquet", "")[:-1] + "x"
    shutil.copy(out / "scores" / files(out)[0], out / "scores" / f"{torn}-0.parquet")
    shutil.copy(out / "checkpoint" / first[0], out / "checkpoint" / f"{torn}.pending.parquet")
    before = {name: (out / "checkpoint" / name).stat().st_mtime_ns for name in first}

    Image.fromarray(picture(5000)).save(folder / "new.png")
    manifest = archive.make_manifest(folder, tmp_path / "longer.parquet").path
    counts = archive.score(detector, manifest, out, workers=2, rows_per_file=64)
    assert counts["images"] == 1001
    agrees(out, detector.predict(str(folder)))
    assert not [name for name in files(out) if name.startswith(torn)]
    assert {name: (out / "checkpoint" / name).stat().st_mtime_ns for name in first} == before
    assert "pending" not in "".join(files(out, "checkpoint"))

    whole = files(out)
    assert archive.score(detector, manifest, out) == counts  # nothing is left to do
    assert files(out) == whole
    with pytest.raises(ConfigError, match=r"calibration_sha256"):
        archive.score(stub(pickle.loads(pickle.dumps(fitted)).set_threshold(0.1)), manifest, out)
    with pytest.raises(ConfigError, match="heatmaps False; wanted True"):
        archive.score(detector, manifest, out, heatmaps=True)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["oneshot-medad", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_commands(cluster, fitted, sample, monkeypatch, tmp_path, capsys):
    folder = pictures(tmp_path / "scans", 2)
    Image.fromarray(sample.images[0]).save(folder / "brain.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("no image")
    fitted.save_pretrained(tmp_path / "detector")
    manifest, out = tmp_path / "m.parquet", tmp_path / "with space #1"
    assert run(monkeypatch, "manifest", folder, "--out", manifest) == 0
    assert f"4 images, 1 left out (.txt): {manifest}" in capsys.readouterr().out
    assert run(monkeypatch, "archive", tmp_path / "detector", manifest, "--out", out, "--json") == 3
    said = capsys.readouterr()
    values = json.loads(said.out)
    assert (values["images"], values["failed"], values["scores"]) == (4, 1, str(out / "scores"))
    assert f"not read: {folder / 'torn.png'}: " in said.err
    assert "Starting execution" not in said.err
    assert table(out)[str(folder / "brain.png")]["score"] is not None
    assert run(monkeypatch, "archive", tmp_path / "detector", tmp_path / "none.parquet", "--out", out) == 1
    assert "Cannot read the manifest" in capsys.readouterr().err
    assert run(monkeypatch, "manifest", tmp_path / "nowhere", "--out", manifest) == 1


def test_an_outage_ends_the_run_instead_of_filling_it_with_failures(cluster, fitted, tmp_path):
    folder = pictures(tmp_path / "many", 40)
    manifest = archive.make_manifest(folder, tmp_path / "m.parquet").path
    folder.rename(tmp_path / "unmounted")
    detector = stub(fitted)
    with pytest.raises(ImageFileError, match=r"^Got nothing of \d+ images on .* mounted on every machine") as caught:
        archive.score(detector, manifest, tmp_path / "out")
    assert "ray" not in str(caught.value)
    (tmp_path / "unmounted").rename(folder)
    assert archive.score(detector, manifest, tmp_path / "out")["failed"] == 0


def test_what_cannot_be_is_refused_before_anything_begins(fitted, tmp_path):
    manifest = archive.make_manifest(pictures(tmp_path / "one", 1), tmp_path / "m.parquet").path
    with pytest.raises(NotFittedError):
        archive.score(type(fitted)(), manifest, tmp_path / "out")
    for options in ({"workers": 0}, {"rows_per_file": -1}):
        with pytest.raises(ConfigError, match="wanted 1 or more"):
            archive.score(fitted, manifest, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
