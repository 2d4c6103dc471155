"""From a fitted detector to one file: frozen networks, references and fusion as one graph, and what surrounds it."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.calibration import shown
from oneshot_medad.datasets import load_sample
from oneshot_medad.errors import ConfigError, ExtraError, PersistenceError
from oneshot_medad.export.engines import DESCRIPTION, FORMAT, open_engine
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.resample import field_of
from oneshot_medad.nn.pose import POSES
from oneshot_medad.persistence.describe import origin
from oneshot_medad.scoring import Scorer

FORMS = {"onnx": "onnxruntime", "openvino": "openvino"}
"""What a file is written for, and what runs it; both read ONNX."""
OPSET = 18
PROBES = 8
TOLERANCE = 1e-4
"""Largest difference of a probe's score or any cell of its heatmap, both on the shown scale, and of its similarity."""


class Whole(nn.Module):
    """All of a prediction between the square field and its heatmap, in single precision on the CPU."""

    def __init__(self, backbone: Backbone, scorer: Scorer) -> None:
        super().__init__()
        self.vision, self.scorer, self.side = backbone.vision, scorer, backbone.spec.image_px
        self.latents = backbone.latents if scorer.recipe.reads_latents else None
        self._kind = backbone.kind

    def forward(self, field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(1, 3, S, S) in [0, 1] → (1,) score, (1, S, S) heatmap, (1,) similarity to the normal images' kind, pose."""
        z = self.latents.encode(field) if self.latents is not None else None
        features = self.vision(field)
        mirrored = self.vision(field.flip(-1)) if self.scorer.recipe.mirror else None
        scores, maps = self.scorer(z, features, mirrored)
        heatmap = F.interpolate(maps[:, None], (self.side, self.side), mode="bilinear", align_corners=False)[:, 0]
        similarity = self.scorer.similarity(self._kind(features))
        return scores, heatmap, similarity, self.scorer.pose_numbers(features, mirrored)


def write(
    path: Path, form: str, fitted: FittedDetector, fetch: bool, intensity_range: tuple[float, float] | None
) -> Path:
    """Write the file next to its place, compare its answers with torch's, and only then put it there.

    Raises
    ------
    ConfigError
        None of `FORMS`, or a detector fitted on slices of volumes.
    ExtraError
        The packages that write or run it are missing.
    PersistenceError
        The runtime's answers differ from torch's, or the file cannot be written.
    """
    if form not in FORMS:
        raise ConfigError(f"Got {form!r}; wanted one of {', '.join(map(repr, FORMS))}.")
    if fitted.scorer.span is not None:  # which references a slice is compared with depends on where it lies
        raise ConfigError(
            "Got a detector fitted on slices of volumes, each compared with references near its own position; only one "
            "fitted on single images can be exported. Keep this one with `save_pretrained`."
        )
    spec = replace(fitted.networks.load(fetch).spec, half=False)
    whole = Whole(load_backbone(spec, torch.device("cpu")), deepcopy(fitted.scorer).cpu()).eval()
    sample = load_sample(n_normal=PROBES // 2, n_abnormal=PROBES // 2)
    fields = [field_of(image.astype(np.float32) / 255, whole.side) for image in sample.images]
    with torch.no_grad():
        wanted = [[part[0].numpy() for part in whole(torch.from_numpy(field)[None])] for field in fields]
    description = {
        "format": FORMAT,
        "opset": OPSET,
        "image_px": whole.side,
        "intensity_range": intensity_range,
        "calibration": fitted.calibration,
        "provenance": origin(fitted, fetch),
        "poses": POSES,
    }
    try:
        with TemporaryDirectory(dir=path.absolute().parent, prefix=".export") as scratch:
            made = Path(scratch) / "made"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter, about itself
                _onnx(whole, made, description)
            engine, _ = open_engine(made, FORMS[form])
            _check(engine, fields, wanted, fitted.threshold, FORMS[form])
            made.replace(path)
    except OSError as error:
        raise PersistenceError(f"Cannot write {str(path)!r}: {error}.") from error
    return path


def _check(engine: Any, fields: list[np.ndarray], wanted: list[list[np.ndarray]], threshold: float, name: str) -> None:
    most = 0.0
    for field, (score, heatmap, similarity, pose) in zip(fields, wanted, strict=True):
        found = engine(field)
        for ours, theirs in ((score, found[0]), (heatmap, found[1])):
            most = max(most, float(np.abs(shown(ours, threshold) - shown(np.asarray(theirs), threshold)).max()))
        most = max(most, abs(float(similarity) - found[2]), float(int(pose) != found[3]))
    if not most <= TOLERANCE:
        raise PersistenceError(
            f"Answers of {name} to {len(fields)} probe images differ from torch's by {most:.1e} on the shown scale; "
            f"wanted at most {TOLERANCE:.0e}. Nothing was written. Try another version of {name}."
        )


def _onnx(whole: Whole, path: Path, description: dict[str, Any]) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExtraError(f"Writing ONNX needs more packages ({error}): pip install 'oneshot-medad[onnx]'") from error
    example = torch.zeros(1, 3, whole.side, whole.side)
    names = ["score", "heatmap", "similarity", "pose"]
    with torch.no_grad():
        torch.onnx.export(
            whole,
            (example,),
            str(path),
            input_names=["field"],
            output_names=names,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, json.dumps(description)
    onnx.save(model, str(path))
