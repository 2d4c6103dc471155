import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.base import clone

from oneshot_medad import AnomalyDetector
from oneshot_medad.errors import NotFittedError, PersistenceError
from oneshot_medad.persistence.folder import FILES, replacing
from oneshot_medad.persistence.store import SCHEMA

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    return fitted.save_pretrained(tmp_path_factory.mktemp("saved") / "detector")


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder, name, change):
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


def test_loaded_predictions_are_bit_equal(fitted, saved, sample):
    loaded = AnomalyDetector.from_pretrained(saved)
    for ours, theirs in zip(fitted.predict(sample.images), loaded.predict(sample.images), strict=True):
        assert np.array_equal(np.array(ours), np.array(theirs))
    assert loaded.get_params() == fitted.get_params()
    assert (loaded.threshold_, loaded.n_support_) == (fitted.threshold_, fitted.n_support_)
    assert clone(loaded).get_params() == fitted.get_params()


def test_a_folder_holds_the_named_files_and_no_image(saved, sample):
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    assert sum(p.stat().st_size for p in saved.iterdir()) < 12 * 2**20
    support = json.loads((saved / "provenance.json").read_text())["support"]
    assert support[0]["size"] == list(sample.support.shape)
    assert len(support[0]["sha256"]) == 64


def test_saving_twice_gives_one_detector_and_the_same_bytes(fitted, saved, tmp_path):
    again = AnomalyDetector.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "calibration.json", "provenance.json"):
        assert (again / name).read_bytes() == (saved / name).read_bytes(), name


def test_backbones_can_be_included(fitted, sample, tmp_path):
    folder = fitted.save_pretrained(tmp_path / "whole", include_backbones=True)
    loaded = AnomalyDetector.from_pretrained(folder)
    assert loaded._fitted.networks.spec.folder == folder / "backbone"
    assert np.array_equal(loaded.predict(sample.images[:1]).scores, fitted.predict(sample.images[:1]).scores)


def test_an_unfitted_detector_cannot_be_saved(tmp_path):
    with pytest.raises(NotFittedError):
        AnomalyDetector().save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "calibration.json", "provenance.json"])
def test_a_missing_file(copied, name):
    (copied / name).unlink()
    with pytest.raises(PersistenceError, match=f"Missing .*{name}"):
        AnomalyDetector.from_pretrained(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text"), "text"),
        (lambda t: t.update(extra=torch.zeros(1).half()), "extra"),
        (lambda t: t.update(text=torch.zeros(2, 7).half()), "size mismatch"),
        (lambda t: t["weights"].fill_(float("nan")), "NaN"),
        (lambda t: t.update(weights=t["weights"].double()), "wanted torch.float32"),
        (lambda t: t.update(text=t["text"].float()), "wanted torch.float16"),
        (lambda t: t.update(reference0=torch.zeros(4, 3).half()), "reference0"),
        (lambda t: t.pop("reference1"), "reference1"),
    ],
)
def test_tensors_that_do_not_fit(copied, change, message):
    tensors = load_file(copied / "model.safetensors")
    change(tensors)
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(PersistenceError, match=message):
        AnomalyDetector.from_pretrained(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=SCHEMA + 1, package_version="9.9.9"), "pip install oneshot-medad==9.9.9"),
        (lambda c: c.update(schema="1"), "wanted a whole number"),
        (lambda c: c.update(surprise=1), "unknown fields"),
        (lambda c: c["recipe"].update(n_step=3), "did you mean 'n_steps'"),
        (lambda c: c["recipe"].update(n_steps="3"), "n_steps"),
        (lambda c: c["recipe"].update(branches="clip"), "branches"),
        (lambda c: c["shapes"].update(channels=10**9), "shapes"),
        (lambda c: c["shapes"].update(levels=[[40, 32]] * 9), "shapes"),
        (lambda c: c["backbone"].update(name="other"), "backbone"),
        (lambda c: c["backbone"].update(mean=[0, 0, 0]), "mean="),
        (lambda c: c["backbone"]["files"].update({"clip.safetensors": "0" * 64}), "sha256 0000"),
        (lambda c: c["backbone"]["files"].update({"../../secret": "0" * 64}), "hashes the files"),
        (lambda c: c["parameters"].update(intensity_range=[1, 0]), "intensity_range"),
    ],
)
def test_configurations_that_are_refused(copied, change, message):
    edit(copied, "config.json", change)
    with pytest.raises(PersistenceError, match=message):
        AnomalyDetector.from_pretrained(copied)


def test_links_out_of_the_folder_are_refused(copied, tmp_path):
    (copied / "calibration.json").rename(tmp_path / "secret.json")
    (copied / "calibration.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(PersistenceError, match="link out of its folder"):
        AnomalyDetector.from_pretrained(copied)


def test_deep_json_and_lying_headers(copied):
    kept = (copied / "config.json").read_bytes()
    (copied / "config.json").write_text("[" * 100_000)
    with pytest.raises(PersistenceError, match="not valid JSON"):
        AnomalyDetector.from_pretrained(copied)
    (copied / "config.json").write_bytes(kept)
    (copied / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(PersistenceError, match="damaged"):
        AnomalyDetector.from_pretrained(copied)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "calibration.json", "provenance.json"]),
    where=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_any_damaged_byte_or_cut_is_an_error_or_harmless(saved, tmp_path, name, where, byte, cut):
    """Nothing but `PersistenceError` may come out, and a detector that loads is one that can predict."""
    folder = tmp_path / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    data = bytearray((folder / name).read_bytes())
    # the head of a safetensors file is where structure lies; a random byte of the rest only changes a weight
    at = int(where * (min(len(data), 8192)))
    data[at] = byte
    (folder / name).write_bytes(bytes(data[:at]) if cut else bytes(data))
    try:
        loaded = AnomalyDetector.from_pretrained(folder)
    except PersistenceError:
        return
    assert np.isfinite(loaded.threshold_)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=json_values)
def test_any_value_in_any_place_of_the_json_is_an_error_or_harmless(saved, tmp_path, data, value):
    folder = tmp_path / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    name = data.draw(st.sampled_from(["config.json", "calibration.json", "provenance.json"]))
    values = json.loads((folder / name).read_text())
    place = values
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = value
        break
    (folder / name).write_text(json.dumps(values))
    with contextlib.suppress(PersistenceError):
        AnomalyDetector.from_pretrained(folder)


# --- whole or not at all -----------------------------------------------------------------------------------------


def test_saving_over_something_else_is_refused(fitted, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(PersistenceError, match=r"wanted a (new )?folder"):
            fitted.save_pretrained(target)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_parent_that_is_a_file(fitted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PersistenceError, match="Cannot save"):
        fitted.save_pretrained(tmp_path / "file" / "detector")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent(fitted, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PersistenceError, match="may write to"):
            fitted.save_pretrained(tmp_path / "detector")
    finally:
        tmp_path.chmod(0o700)


def test_no_room_leaves_the_old_folder(fitted, copied, tmp_path):
    """A limit on file sizes makes the kernel refuse the write, as a full disk does."""
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(PersistenceError, match="unchanged"):
            fitted.save_pretrained(copied)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    assert [p.name for p in copied.parent.iterdir()] == ["copy"]


WRITER = """
import sys
from pathlib import Path
from oneshot_medad.persistence.folder import FILES, replacing
content = sys.argv[2]
print("ready", flush=True)
while True:
    with replacing(Path(sys.argv[1])) as folder:
        for name in FILES:
            (folder / name).write_text(content * 20000)
"""


def writer(target, content):
    process = subprocess.Popen([sys.executable, "-c", WRITER, target, content], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def check_whole(target):
    contents = {(target / name).read_text()[0] for name in FILES}
    assert len(contents) == 1, contents
    assert all(len((target / name).read_text()) == 20000 for name in FILES)


def test_a_killed_save_leaves_the_old_folder_or_the_new_one(tmp_path):
    target = tmp_path / "detector"
    with replacing(target) as folder:
        for name in FILES:
            (folder / name).write_text("0" * 20000)
    for i in range(12):
        process = writer(str(target), str(i % 10))
        time.sleep(0.01 + 0.007 * i)
        process.kill()
        process.wait()
        check_whole(target)


def test_two_processes_saving_to_one_place(tmp_path):
    target = tmp_path / "detector"
    writers = [writer(str(target), c) for c in "ab"]
    time.sleep(1.0)
    for process in writers:
        assert process.poll() is None, "a writer failed"
        process.kill()
        process.wait()
    check_whole(target)


# --- the card ----------------------------------------------------------------------------------------------------


def test_the_card_says_what_is_known_and_its_example_runs(fitted, tmp_path, sample, monkeypatch):
    from huggingface_hub import ModelCard
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    fitted.save_pretrained("brain")
    card = ModelCard.load(tmp_path / "brain" / "README.md")
    assert card.data.library_name == "oneshot-medad"
    assert card.data.license is None
    assert "Not stated by the author" in card.text
    assert "Not measured" in card.text
    assert "not a medical device" in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    Image.fromarray(sample.images[0]).save("image.png")
    names: dict = {}
    exec(code, names)
    assert names["scores"].shape == (1,)


def test_an_evaluation_is_stored_and_shown(fitted, sample, tmp_path):
    loaded = AnomalyDetector.from_pretrained(fitted.save_pretrained(tmp_path / "a"))
    found = loaded.evaluate(sample.images, sample.labels, sample.masks)
    assert set(found) >= {"image_auroc", "image_auroc_interval", "pixel_auroc", "sensitivity", "n_normal"}
    folder = loaded.save_pretrained(tmp_path / "b", license="mit", modality="brain MRI")
    text = (folder / "README.md").read_text()
    assert f"{found['image_auroc']:.3f}" in text
    assert "license: mit" in text
    assert "brain MRI" in text
    again = AnomalyDetector.from_pretrained(folder)
    assert again.evaluation_ == found
    assert (
        "license: mit" in (again.save_pretrained(tmp_path / "c") / "README.md").read_text()
    )  # saving keeps what was said
    for text in ("two\nlines", "x" * 501):
        with pytest.raises(PersistenceError, match="one printable line"):
            again.save_pretrained(tmp_path / "d", modality=text)


def test_a_detector_with_other_parameters_comes_back_with_them(sample, small, tmp_path):
    made = AnomalyDetector(recipe=replace(small, branches={"distance": 1.0}), intensity_range=(0, 300), random_state=3)
    made.fit(sample.support.astype("int16"))
    loaded = AnomalyDetector.from_pretrained(made.save_pretrained(tmp_path / "d"))
    assert loaded.intensity_range == (0, 300)
    assert loaded.recipe.branches == {"distance": 1.0}
    assert np.array_equal(loaded.predict(sample.images[:1]).scores, made.predict(sample.images[:1]).scores)


def test_golden_detector_of_this_format_still_gives_its_scores(sample):
    """Within 2e-3: other processors sum in another order."""
    expected = json.loads((GOLDEN / "scores.json").read_text())
    scores, _ = AnomalyDetector.from_pretrained(GOLDEN / "detector").predict(sample.images)
    np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_a_picture_of_drawn_anomalies_only_if_asked_for(fitted, tmp_path):
    plain = fitted.save_pretrained(tmp_path / "plain")
    assert "Drawn anomalies" not in (plain / "README.md").read_text()
    assert not (plain / "anomalies.png").exists()
    folder = fitted.save_pretrained(tmp_path / "shown", anomaly_sheet=True)
    assert "![image, heatmap, and both](anomalies.png)" in (folder / "README.md").read_text()
    with Image.open(folder / "anomalies.png") as sheet:
        assert sheet.size == (2 * 3 * 256, 3 * (256 + 18))
    loaded = AnomalyDetector.from_pretrained(folder)
    with pytest.raises(PersistenceError, match="after fit"):
        loaded.save_pretrained(folder, anomaly_sheet=True)
    assert (folder / "anomalies.png").exists()
