"""The two runtimes, behind one call: a square field in, score, heatmap, similarity and pose out."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad.errors import ExtraError, PersistenceError

DESCRIPTION = "oneshot_medad"
"""Under which name a file holds what is no network: thresholds, calibration, origin."""
GRAPH, WEIGHTS = "model.xml", "model.bin"
"""Of OpenVINO's format, in a zip archive of which nothing is compressed."""
Answer = tuple[float, np.ndarray, float, int]
Engine = Callable[[np.ndarray], Answer]
"""(3, S, S) float32 field → score, (S, S) heatmap, similarity and number of the pose."""


def open_engine(path: Path) -> tuple[Engine, dict[str, Any]]:
    """The runtime that a file was written for, told from its content, and what the file says of the detector."""
    if not path.is_file():
        raise PersistenceError(f"Got {str(path)!r}; wanted a file that `AnomalyDetector.export` wrote.")
    try:
        return (_openvino if zipfile.is_zipfile(path) else _onnxruntime)(path)
    except (KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        if isinstance(error, PersistenceError):
            raise
        raise PersistenceError(f"Cannot read {str(path)!r} ({error}); wanted a file that `export` wrote.") from error


def _onnxruntime(path: Path) -> tuple[Engine, dict[str, Any]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExtraError("Running an ONNX file needs onnxruntime: pip install 'oneshot-medad[onnx]'") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for every status
        raise PersistenceError(f"Cannot read {str(path)!r} ({error}); wanted a file that `export` wrote.") from error
    description = json.loads(session.get_modelmeta().custom_metadata_map[DESCRIPTION])

    def run(field: np.ndarray) -> Answer:
        score, heatmap, similarity, pose = session.run(None, {"field": field[None]})
        return float(score[0]), heatmap[0], float(similarity[0]), int(pose[0])

    return run, description


def _openvino(path: Path) -> tuple[Engine, dict[str, Any]]:
    try:
        import openvino
    except ImportError as error:
        raise ExtraError("Running this file needs openvino: pip install 'oneshot-medad[openvino]'") from error
    with zipfile.ZipFile(path) as archive:
        graph, weights = archive.read(GRAPH), np.frombuffer(archive.read(WEIGHTS), np.uint8)
        description = json.loads(archive.read(f"{DESCRIPTION}.json"))
    core = openvino.Core()
    # without the hint it computes in bfloat16 where the processor has it, and gives other scores there
    compiled = core.compile_model(
        core.read_model(graph, openvino.Tensor(weights)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(field: np.ndarray) -> Answer:
        found = compiled([field[None]])  # a request of its own for each call
        score, heatmap, similarity, pose = (found[i] for i in range(4))
        return float(score[0]), heatmap[0].copy(), float(similarity[0]), int(pose[0])

    return run, description
