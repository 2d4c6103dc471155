"""Detectors as ONNX files: what they say, what they refuse, and that they need no torch."""

import json
import shutil
import subprocess
import sys
from copy import copy, deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import oneshot_medad
from oneshot_medad import AnomalyDetector
from oneshot_medad.errors import ConfigError, ImageError, NotFittedError, PersistenceError
from oneshot_medad.export import write as writing

pytestmark = [pytest.mark.slow]
pytest.importorskip("onnxruntime")
WITHOUT_TORCH = """
import json, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
sys.meta_path.insert(0, Without())  # a None in sys.modules is no absence: SciPy trips over it
import oneshot_medad
found = oneshot_medad.load_exported(sys.argv[1], sys.argv[2]).predict(sys.argv[3:])
print(json.dumps([found.scores.tolist(), found.verdicts, [h.shape for h in found.heatmaps]]))
"""


@pytest.fixture(scope="module")
def detector(fitted, sample):
    # others than are predicted: a score that set the threshold lies at it, and engines differ in the last digit
    normal = [np.maximum(image, 4) for image, label in zip(sample.images, sample.labels, strict=True) if not label]
    return copy(fitted).calibrate(normal, target_fpr=0.3)


@pytest.fixture(scope="module")
def file(detector, tmp_path_factory):
    return detector.export("onnx", tmp_path_factory.mktemp("exported") / "detector.onnx")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_exported_detector_says_the_same(detector, file, sample, tmp_path, engine):
    pytest.importorskip(engine)
    wide = np.repeat(sample.images[0], 2, axis=1)[:100]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    given = [*sample.images[:3], tmp_path / "wide.png"]
    wanted, found = detector.predict(given), oneshot_medad.load_exported(file, engine).predict(given)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
    np.testing.assert_allclose(found.similarities, wanted.similarities, atol=1e-4)
    assert found.verdicts == wanted.verdicts
    assert found.threshold == wanted.threshold
    np.testing.assert_array_equal(found.normal_scores, wanted.normal_scores)
    for ours, theirs in zip(found.heatmaps, wanted.heatmaps, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() < 1e-3
    fixed = ("detector_sha256", "backbone", "n_support", "threshold_rule", "calibration", "evaluation")
    assert json.dumps([found.provenance[k] for k in fixed]) == json.dumps([wanted.provenance[k] for k in fixed])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_it_runs_where_torch_cannot_be_imported(detector, file, sample, tmp_path, engine):
    pytest.importorskip(engine)
    paths = []
    for i, image in enumerate(sample.images[:2]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    command = [sys.executable, "-c", WITHOUT_TORCH, str(file), engine, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    scores, verdicts, shapes = json.loads(done.stdout)
    wanted = detector.predict(paths)
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-3)
    assert verdicts == wanted.verdicts
    assert [tuple(shape) for shape in shapes] == [heatmap.shape for heatmap in wanted.heatmaps]


def test_unreadable_images_are_recorded_or_raised(file, tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing")
    exported = oneshot_medad.load_exported(file)
    with pytest.raises(ImageError):
        exported.predict(tmp_path / "x.png")
    found = exported.predict(tmp_path / "x.png", on_error="record")
    assert np.isnan(found.scores[0])
    assert found.reasons[0]
    with pytest.raises(ConfigError, match="wanted 'raise' or 'record'"):
        exported.predict([], on_error="ignore")


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_file_whose_answers_differ_is_not_written(detector, file, tmp_path, monkeypatch, form):
    pytest.importorskip(form)
    honest = writing.open_engine

    def other(path, name):
        assert name == writing.FORMS[form]
        engine, description = honest(path, name)
        return lambda field: (engine(field)[0] + 0.01, *engine(field)[1:]), description

    monkeypatch.setattr(writing, "open_engine", other)
    monkeypatch.setattr(writing, "_onnx", lambda whole, path, description: shutil.copy(file, path))  # saves time
    with pytest.raises(PersistenceError, match=r"differ from torch's by .* Nothing was written"):
        detector.export(form, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_openvino_agrees_with_is_written(detector, file, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(writing, "_onnx", lambda whole, path, description: shutil.copy(file, path))  # saves time
    assert detector.export("openvino", tmp_path / "x.onnx").read_bytes() == file.read_bytes()


def test_what_cannot_be_exported_or_read_is_said(detector, file, tmp_path):
    with pytest.raises(ConfigError, match="wanted one of 'onnx', 'openvino'"):
        detector.export("tflite", tmp_path / "x")
    with pytest.raises(NotFittedError):
        AnomalyDetector().export("onnx", tmp_path / "x")
    of_slices = copy(detector)
    scorer = deepcopy(detector._fitted.scorer)
    scorer.register_buffer("positions", torch.tensor([0.2, 0.6]))
    of_slices._fitted = replace(detector._fitted, scorer=scorer)
    with pytest.raises(ConfigError, match="fitted on slices of volumes"):
        of_slices.export("onnx", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="engine='tensorrt'; wanted one of 'auto', 'onnxruntime', 'openvino'"):
        oneshot_medad.load_exported(file, "tensorrt")
    for path in (tmp_path / "nowhere.onnx", damaged):
        for engine in ("onnxruntime", "openvino"):
            with pytest.raises(PersistenceError, match=r"that .*export.* wrote"):
                oneshot_medad.load_exported(path, engine)
