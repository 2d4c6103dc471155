"""The runtime behind one call: a square field in, score, heatmap, similarity and pose out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad.errors import ExtraError, PersistenceError

DESCRIPTION = "oneshot_medad"
"""Under which name a file holds what is no network: thresholds, calibration, origin."""
FORMAT = 1
"""Version of that description."""
Answer = tuple[float, np.ndarray, float, int]
Engine = Callable[[np.ndarray], Answer]
"""(3, S, S) float32 field → score, (S, S) heatmap, similarity and number of the pose."""


def open_engine(path: Path) -> tuple[Engine, dict[str, Any]]:
    """ONNX Runtime with a file, and what the file says of its detector."""
    if not path.is_file():
        raise PersistenceError(f"Got {str(path)!r}; wanted a file that `AnomalyDetector.export` wrote.")
    try:
        import onnxruntime
    except ImportError as error:
        raise ExtraError("Running an exported detector needs more: pip install 'oneshot-medad[onnx]'") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        description = json.loads(session.get_modelmeta().custom_metadata_map[DESCRIPTION])
    except Exception as error:  # the runtime has a class of its own for every status
        raise PersistenceError(f"Cannot read {str(path)!r} ({error}); wanted a file that `export` wrote.") from error
    if description["format"] != FORMAT:
        raise PersistenceError(
            f"Got {str(path)!r} of format {description['format']}; wanted {FORMAT}. Export the detector again."
        )

    def run(field: np.ndarray) -> Answer:
        score, heatmap, similarity, pose = session.run(None, {"field": field[None]})
        return float(score[0]), heatmap[0], float(similarity[0]), int(pose[0])

    return run, description
