"""The runtimes behind one call: a square field in, score, heatmap, similarity and pose out."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad.errors import ConfigError, ExtraError, PersistenceError

DESCRIPTION = "oneshot_medad"
"""Under which name a file holds what is no network: thresholds, calibration, origin."""
FORMAT = 1
"""Version of that description."""
Answer = tuple[float, np.ndarray, float, int]
Run = Callable[[np.ndarray], list[np.ndarray]]
Engine = Callable[[np.ndarray], Answer]
"""(3, S, S) float32 field → score, (S, S) heatmap, similarity and number of the pose."""


def open_engine(path: Path, name: str = "auto") -> tuple[Engine, dict[str, Any]]:
    """One of `ENGINES` with a file, and what the file says of its detector; ``"auto"`` is the first installed."""
    if name not in ("auto", *ENGINES):
        raise ConfigError(f"Got engine={name!r}; wanted one of {', '.join(map(repr, ('auto', *ENGINES)))}.")
    if not path.is_file():
        raise PersistenceError(f"Got {str(path)!r}; wanted a file that `AnomalyDetector.export` wrote.")
    installed = [engine for engine in ENGINES if name in ("auto", engine) and find_spec(engine)]
    if not installed:
        extra = "onnx" if name == "auto" else EXTRAS[name]
        raise ExtraError(f"Running an exported detector needs more: pip install 'oneshot-medad[{extra}]'")
    try:
        run, said = ENGINES[installed[0]](path)
        description = json.loads(said)
    except Exception as error:  # each runtime has classes of its own for what went wrong
        raise PersistenceError(f"Cannot read {str(path)!r} ({error}); wanted a file that `export` wrote.") from error
    if description["format"] != FORMAT:
        raise PersistenceError(
            f"Got {str(path)!r} of format {description['format']}; wanted {FORMAT}. Export the detector again."
        )

    def answer(field: np.ndarray) -> Answer:
        score, heatmap, similarity, pose = run(field[None])
        return float(score[0]), heatmap[0], float(similarity[0]), int(pose[0])

    return answer, description


def _onnxruntime(path: Path) -> tuple[Run, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map[DESCRIPTION]
    return lambda field: session.run(None, {"field": field}), said


def _openvino(path: Path) -> tuple[Run, str]:
    import openvino
    from openvino.frontend import FrontEndManager

    # not `read_model`, which asks readers of other formats too when a file is damaged, and these write to stderr
    reader = FrontEndManager().load_by_framework("onnx")
    model = reader.convert(reader.load(str(path)))
    said = model.get_rt_info(["framework", DESCRIPTION]).astype(str)
    # processors that compute in bfloat16 would do so otherwise
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda field: list(compiled([field]).values()), said


ENGINES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""What runs a file, the faster first."""
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""Which extra installs it."""
