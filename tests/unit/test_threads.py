"""What runs beside something else gives what it gives alone."""

import copy
import io
import json
import multiprocessing
import os
import pickle
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from dicom_files import write_dicom
from PIL import Image
from torch import nn

from oneshot_medad import AnomalyDetector, _predicting
from oneshot_medad import backbones as loading
from oneshot_medad._threads import LOADING, cached_once, last_of_thread
from oneshot_medad.backbones import load_backbone
from oneshot_medad.backbones.clip import VisionTower
from oneshot_medad.backbones.medvae import build_autoencoder
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.errors import ConfigError, PersistenceError
from oneshot_medad.fitted import Networks
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import read_image

THREADS, CALLS = 8, 50
CPU = torch.device("cpu")


def together(works):
    """Results of functions that all begin at the same moment, each in a thread of its own."""
    start = threading.Barrier(len(works))

    def begin(work):
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(begin, works))


def same(one, other):
    return np.array_equal(one.scores, other.scores) and all(map(np.array_equal, one.heatmaps, other.heatmaps))


def same_fit(one, other):
    tensors, others = one._fitted.scorer.to_tensors(), other._fitted.scorer.to_tensors()
    return one.history_ == other.history_ and all(torch.equal(tensors[name], others[name]) for name in tensors)


class Tower(nn.Module):
    """A small vision tower whose levels differ from image to image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))

    def forward(self, images):
        return self.blocks(self.stem(images)).mean((2, 3))


@pytest.fixture
def tower():
    scales = [(torch.zeros(8), torch.ones(8))] * 3
    return VisionTower(Tower(), ["stem", "blocks.0", "blocks"], (0.5,) * 3, (0.25,) * 3, scales)


def test_many_calls_in_many_threads_give_the_bits_of_lone_ones(tower):
    images = [torch.rand(1, 3, 32, 32) for _ in range(CALLS)]
    alone = [tower(image) for image in images]

    def calls():
        return all(all(map(torch.equal, tower(image), wanted)) for image, wanted in zip(images, alone, strict=True))

    assert together([calls] * THREADS) == [True] * THREADS


def test_levels_come_without_hooks_and_with_gradients(tower, monkeypatch):
    monkeypatch.setattr(nn.Module, "register_forward_hook", None)
    keys, image = set(tower.state_dict()), torch.rand(2, 3, 32, 32)
    tower.visual.requires_grad_(True)
    levels, embedded = tower.forward_all(image)
    assert [level.shape[-1] for level in levels] == [16, 8, 4]
    assert torch.equal(embedded, levels[2].mean((2, 3)))
    sum(level.sum() for level in levels).backward()
    assert all(p.grad is not None for p in tower.visual.parameters())
    assert set(tower.state_dict()) == keys
    assert not [m for m in tower.modules() if m._forward_hooks or "forward" in vars(m)]
    for twin in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        assert all(map(torch.equal, twin(image), tower(image)))
        with torch.no_grad():
            twin.visual.stem.weight.zero_()
        assert not torch.equal(twin(image)[0], tower(image)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert tower(image)[0].dtype == torch.float32


def test_two_detectors_that_share_frozen_networks(fitted, small, sample):
    other = AnomalyDetector(recipe=small, random_state=1).fit(sample.images[0])
    jobs = [(detector, image) for detector in (fitted, other) for image in sample.images]
    alone = [detector.predict(image) for detector, image in jobs]
    assert len({found.scores[0] for found in alone}) == len(jobs)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda job: job[0].predict(job[1]), jobs * 2))
    assert all(map(same, found, alone * 2))


def test_fits_beside_each_other_and_beside_predictions(fitted, small, sample):
    def fit(seed):
        return AnomalyDetector(recipe=small, random_state=seed).fit(sample.support)

    alone, wanted = [fit(seed) for seed in range(2)], fitted.predict(sample.images[0])
    torch.manual_seed(5)
    state, stop = torch.get_rng_state(), threading.Event()
    drawn = []

    def draw():  # the user's own use of the process's generator
        while not stop.is_set():
            drawn.append(torch.rand(1).item())

    user = threading.Thread(target=draw)
    user.start()
    try:
        *fits, found = together([*(partial(fit, seed) for seed in range(2)), partial(fitted.predict, sample.images[0])])
    finally:
        stop.set()
        user.join()
    assert all(map(same_fit, fits, alone))
    assert same(found, wanted)
    torch.set_rng_state(state)
    assert drawn == [torch.rand(1).item() for _ in drawn]
    assert not PartialState._shared_state


def test_errors_stay_with_their_call(fitted, sample, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    inputs = [sample.images[0], str(tmp_path / "torn.png"), np.zeros((4, 4), np.uint8), str(tmp_path / "none.png")]

    def outcome(given):
        try:
            return str(fitted.predict(given).scores[0])
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    alone = [outcome(given) for given in inputs]
    assert together([partial(outcome, given) for given in inputs * 2]) == alone * 2


def test_a_prediction_sees_its_detector_as_it_was(fitted, sample, monkeypatch):
    detector, score = copy.copy(fitted), _predicting.score
    before = detector.predict(sample.images)

    def meanwhile(*given):
        detector.set_threshold(9.0)
        detector._fitted = replace(detector._fitted, scorer=None)
        yield from score(*given)

    monkeypatch.setattr(_predicting, "score", meanwhile)
    found = detector.predict(sample.images)
    assert same(found, before)
    assert found.threshold == before.threshold
    assert detector.threshold_ == 9.0


def test_networks_are_loaded_once(monkeypatch):
    loads = []
    read = loading.read_visual
    monkeypatch.setattr(loading, "read_visual", lambda folder: loads.append(folder) or read(folder))
    spec = replace(get_spec("tiny"), name="loaded by threads")
    load_backbone.cache_clear()
    found = together([lambda: load_backbone(spec, CPU).vision] * THREADS)
    load_backbone.cache_clear()
    assert len(loads) == 1
    assert len({id(vision) for vision in found}) == 1


def test_results_are_computed_once_and_kept_for_a_thread():
    calls = []

    @cached_once(maxsize=2)
    def slow(n):
        calls.append(n)
        return object()

    assert len(set(together([partial(slow, 1)] * THREADS))) == 1
    assert calls == [1]

    opened = last_of_thread(lambda name: [name])
    assert opened("a") is opened("a")
    assert opened("a") is not together([partial(opened, "a")])[0]
    first = opened("a")
    assert opened("b") == ["b"]
    assert opened("a") is not first


def test_nothing_is_printed_and_standard_output_stays(capsys):
    out, config = sys.stdout, {"embed_dim": 4, "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }}  # fmt: skip
    together([partial(build_autoencoder, config)] * 4)
    assert sys.stdout is out
    assert capsys.readouterr().out == ""


@pytest.fixture
def archive(tmp_path):
    """Members of every kind that are opened once for many slices."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "scans.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(12):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (90, 80), dtype=np.uint8)).save(file, "PNG")
            archive.writestr(f"{i:02d}.png", file.getvalue())
        write_dicom(tmp_path / "a.dcm", rng.integers(0, 256, (3, 20, 30), dtype=np.uint8))
        archive.write(tmp_path / "a.dcm", "a.dcm")
        for name in ("v.nii", "w.nii.gz"):
            volume = nibabel.Nifti1Image(rng.integers(0, 255, (20, 30, 4), dtype=np.uint8), np.eye(4))
            nibabel.save(volume, tmp_path / name)
            archive.write(tmp_path / name, name)
    return tmp_path / "scans.zip"


def read_all(sources, seed):
    """Pixels of all sources, read in an order of one's own."""
    found = {}
    for i in np.random.default_rng(seed).permutation(len(sources)):
        found[int(i)] = read_image(sources[i], intensity_range=(0, 255)).pixels.numpy()
    return [found[i].tobytes() for i in range(len(sources))]


def test_threads_read_one_archive(archive):
    sources = expand(archive)
    alone = read_all(sources, 0)
    assert together([partial(read_all, sources, seed) for seed in range(THREADS)]) == [alone] * THREADS


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_one_archive_and_predict(method, archive, fitted, sample):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    sources = expand(archive)
    alone, scores = read_all(sources, 0), fitted.predict(sample.images[:2]).scores
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap_async(read_all, [(sources, seed) for seed in range(4)]).get(120) == [alone] * 4
        found = pool.map_async(fitted.predict, sample.images[:2]).get(240)
    assert (
        np.abs([f.scores[0] for f in found] - scores).max() < 1e-5
    )  # another number of threads, another order of sums
    assert all(f.heatmaps[0].shape == image.shape for f, image in zip(found, sample.images[:2], strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_finds_every_lock_free():
    held, done = threading.Event(), threading.Event()

    def hold():
        with LOADING:
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        with LOADING:
            os._exit(7)
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_detectors_and_predictions_pickle(fitted, sample, tmp_path):
    import joblib

    images = sample.images[:2]
    found = fitted.predict(images)
    joblib.dump(fitted, tmp_path / "detector.joblib")
    stored = joblib.load(tmp_path / "detector.joblib")
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), copy.copy(fitted), stored):
        assert same(twin.predict(images), found)
        assert twin.fingerprint_ == fitted.fingerprint_
        assert twin.threshold_ == fitted.threshold_
        assert twin.history_ == fitted.history_
    twin = pickle.loads(pickle.dumps(found))
    assert same(twin, found)
    assert (twin.names, twin.verdicts, twin.provenance) == (found.names, found.verdicts, found.provenance)
    assert np.array_equal(twin.image(0), found.image(0))
    assert pickle.loads(pickle.dumps(AnomalyDetector(n_steps=3))).n_steps == 3


def test_a_detector_of_a_gpu_unpickles_where_there_is_none(fitted, sample):
    other = copy.copy(fitted)
    other._fitted = replace(fitted._fitted, networks=Networks(fitted._fitted.networks.spec, torch.device("cuda")))
    assert same(pickle.loads(pickle.dumps(other)).predict(sample.images[0]), fitted.predict(sample.images[0]))
    other.device = "cuda"  # asked for by its user, so never replaced
    if not torch.cuda.is_available():
        data = pickle.dumps(other)
        with pytest.raises(ConfigError, match="no CUDA device"):
            pickle.loads(data)


def test_a_pickled_detector_finds_the_networks_where_they_are(fitted, sample, monkeypatch, tmp_path):
    other = copy.copy(fitted)
    spec = replace(fitted._fitted.networks.spec, folder=tmp_path / "elsewhere")
    other._fitted = replace(fitted._fitted, networks=Networks(spec, CPU))
    spec.folder.symlink_to(get_spec("tiny").folder)
    data = pickle.dumps(other)
    spec.folder.unlink()
    assert same(pickle.loads(data).predict(sample.images[0]), fitted.predict(sample.images[0]))
    others = Networks(get_spec("tiny"), CPU, {"clip.safetensors": "0" * 64})
    with pytest.raises(PersistenceError, match=r"another clip\.safetensors"):
        AnomalyDetector().__setstate__({**other.__dict__, "_fitted": replace(fitted._fitted, networks=others)})


def test_records_of_threads_do_not_mix(fitted, sample, tmp_path):
    path = tmp_path / "audit.jsonl"
    found = fitted.predict(sample.images)
    together([partial(found.to_jsonl, path)] * THREADS)
    names = [json.loads(line)["name"] for line in path.read_text().splitlines()]
    assert names == found.names * THREADS


def test_saving_keeps_the_permissions_of_new_files(fitted, tmp_path):
    mask = os.umask(0o027)
    try:
        together([partial(fitted.save_pretrained, tmp_path / f"d{i}") for i in range(4)])
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    if os.name == "posix":
        assert {Path(tmp_path / f"d{i}").stat().st_mode & 0o777 for i in range(4)} == {0o750}
