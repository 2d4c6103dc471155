"""Detectors through HTTP: a server that speaks the Hub's protocol, and huggingface_hub's own client."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hub_server import Fault

from oneshot_medad import AnomalyDetector
from oneshot_medad.errors import HubError, PersistenceError

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
REPO = "clinic/brain"


def test_push_then_load_in_another_process_is_bit_equal(fitted, sample, hub, tmp_path):
    address = fitted.push_to_hub(REPO, private=True, token="hf_test", license="cc-by-4.0")
    assert address.startswith(hub.url)
    assert any(r.startswith("PUT /lfs/") for r in hub.requests)
    np.save(tmp_path / "image.npy", sample.images[1])
    code = (
        "import sys, numpy as np; from oneshot_medad import AnomalyDetector\n"
        f"d = AnomalyDetector.from_pretrained({REPO!r}, token='hf_test')\n"
        "s, h = d.predict(np.load(sys.argv[1])); np.savez(sys.argv[2], s=s, h=h[0])"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "image.npy", tmp_path / "out.npz"], check=True, env=environment
    )
    scores, heatmaps = fitted.predict(sample.images[1])
    found = np.load(tmp_path / "out.npz")
    assert np.array_equal(found["s"], scores)
    assert np.array_equal(found["h"], heatmaps[0])


def test_a_pinned_commit_stays_and_the_cache_serves_offline(fitted, small, sample, hub, tmp_path):
    fitted.push_to_hub(REPO, token="hf_test")
    first = hub.at(REPO, "main")[0]
    other = AnomalyDetector(recipe=small, random_state=9).fit(sample.support)
    other.push_to_hub(REPO, token="hf_test")
    assert AnomalyDetector.from_pretrained(REPO, revision=first).threshold_ == fitted.threshold_
    assert AnomalyDetector.from_pretrained(REPO).threshold_ == other.threshold_
    before = len(hub.requests)
    assert AnomalyDetector.from_pretrained(REPO, local_files_only=True).threshold_ == other.threshold_
    assert len(hub.requests) == before


def test_loading_a_folder_asks_no_network(fitted, hub, tmp_path):
    AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "d"))
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 409, 500])
def test_a_refused_upload_is_a_clear_error(fitted, hub, status):
    hub.faults.append(Fault("POST /api/.*/commit/" if status == 409 else "POST /api/repos/create", status))
    if status == 409:
        with pytest.raises(HubError, match="answered 409"):
            fitted.push_to_hub(REPO, token="hf_test")
    else:
        with pytest.raises(HubError, match=f"Cannot create {REPO}: the Hub answered {status}"):
            fitted.push_to_hub(REPO, token="hf_test")
    assert len(hub.commits.get(REPO, [1])) == 1  # nothing was committed


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refused_download_is_a_clear_error(fitted, hub, status):
    fitted.push_to_hub(REPO, token="hf_test")
    hub.faults.append(Fault(r"GET /api/models|HEAD /|GET /clinic", status))
    with pytest.raises(HubError, match=f"the Hub answered {status}"):
        AnomalyDetector.from_pretrained(REPO)


def test_passing_trouble_is_tried_again(fitted, hub):
    hub.faults.append(Fault("POST /api/repos/create", 429, times=2, headers={"Retry-After": "3"}))
    hub.faults.append(Fault("PUT /lfs/", 500, times=1))
    hub.faults.append(Fault("POST .*commit", 500, times=1))
    fitted.push_to_hub(REPO, token="hf_test")
    hub.faults.append(Fault(r"GET /clinic/brain/resolve/.*safetensors", 0, times=1))
    hub.faults.append(Fault(r"GET /api/models", 503, times=1))
    assert AnomalyDetector.from_pretrained(REPO).threshold_ == fitted.threshold_
    assert "3" in hub.waits


def test_a_transfer_cut_every_time_never_becomes_the_cache(fitted, hub):
    fitted.push_to_hub(REPO, token="hf_test")
    cut = Fault(r"GET /clinic/brain/resolve/.*safetensors", 0)
    hub.faults.append(cut)
    with pytest.raises(HubError, match="no connection"):
        AnomalyDetector.from_pretrained(REPO)
    with pytest.raises(HubError):
        AnomalyDetector.from_pretrained(REPO, local_files_only=True)
    hub.faults.remove(cut)
    assert AnomalyDetector.from_pretrained(REPO).threshold_ == fitted.threshold_


def test_a_server_that_is_not_there(fitted, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"not reached|no connection"):
        AnomalyDetector.from_pretrained(REPO)
    with pytest.raises(HubError, match="no connection"):
        fitted.push_to_hub(REPO, token="hf_test")


def test_a_hostile_repository_is_refused(fitted, hub, tmp_path):
    folder = fitted.save_pretrained(tmp_path / "d")
    hub.put_folder(REPO, folder)
    hub.put(REPO, {"config.json": b'{"schema": 2}', "evil.py": b"raise SystemExit"})
    with pytest.raises(PersistenceError, match="missing fields"):
        AnomalyDetector.from_pretrained(REPO)
    assert not any("evil.py" in r for r in hub.requests)


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "./missing", "/missing", "~/x"])
def test_what_is_neither_folder_nor_repository(source):
    with pytest.raises(PersistenceError, match="wanted an existing folder or 'owner/name'"):
        AnomalyDetector.from_pretrained(source)
