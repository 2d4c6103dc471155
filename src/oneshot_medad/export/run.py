"""Predictions of an exported detector, without torch."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from oneshot_medad.errors import BlankImageError, ConfigError, ImageError
from oneshot_medad.export.engines import Engine, open_engine
from oneshot_medad.images.expand import expand
from oneshot_medad.images.files import Slice
from oneshot_medad.images.read import BLANK, name_of, read_values
from oneshot_medad.images.resample import field_of, map_of
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.studies.limits import Limits


class ExportedDetector:
    """A detector that `AnomalyDetector.export` wrote, run by onnxruntime; made by `load_exported`.

    Attributes
    ----------
    threshold_
        Score above which an image is flagged.
    description
        What the file says of the detector: backbone, size of the field, calibration, hash, opset.
    """

    def __init__(self, engine: Engine, description: dict[str, Any]) -> None:
        self._engine = engine
        self.description = description
        self.threshold_ = float(description["calibration"]["threshold"])
        window = description["intensity_range"]
        self.intensity_range = None if window is None else (float(window[0]), float(window[1]))

    def predict(self, images: Any, *, on_error: str = "raise", recursive: bool = False) -> Predictions:
        """Score images and locate what is abnormal in them, as `AnomalyDetector.predict` does.

        Parameters
        ----------
        images, on_error, recursive
            As there.

        Returns
        -------
        `Predictions`, which unpacks into ``(scores, heatmaps)``; verdicts and thresholds are those of the detector.

        Raises
        ------
        ImageError, ImageFileError, ImageTypeError
            An input that cannot be used.
        """
        if on_error not in ("raise", "record"):
            raise ConfigError(f"Got on_error={on_error!r}; wanted 'raise' or 'record'.")
        sources = expand(images, recursive=recursive)
        side, calibration = int(self.description["image_px"]), self.description["calibration"]
        scores, similarities = np.full((2, len(sources)), np.nan)
        heatmaps = [np.zeros((0, 0), np.float32)] * len(sources)
        names, reasons = [""] * len(sources), [""] * len(sources)
        spacings: list[tuple[float, float] | None] = [None] * len(sources)
        positions: list[float | None] = [None] * len(sources)
        poses = [""] * len(sources)
        for i, source in enumerate(sources):
            names[i] = name_of(source, i)
            try:
                read = read_values(source, names[i], self.intensity_range)
            except ImageError as error:
                blank = isinstance(error, BlankImageError) and isinstance(source, Slice)
                if on_error == "raise" and not blank:
                    raise
                reasons[i] = BLANK if blank else str(error)
                continue
            spacings[i], positions[i] = read.spacing, read.position
            scores[i], heatmap, similarities[i], pose = self._engine(field_of(read.values, side, read.aspect))
            poses[i] = self.description["poses"][pose]
            heatmaps[i] = map_of(heatmap, read.size, read.aspect)
        known = np.array(calibration["normal_scores"], dtype=float)
        return Predictions(
            scores,
            heatmaps,
            self.threshold_,
            names,
            reasons,
            known if len(known) else None,
            spacings,
            sources,
            self.intensity_range,
            {
                **self.description["provenance"],
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": {"python": python_version(), "oneshot-medad": version("oneshot-medad")},
            },
            calibration["uncertain_from"],
            similarities,
            calibration["least_similarity"],
            dict(sources.left_out),
            positions,
            Limits.of(calibration),
            poses,
        )


def load_exported(path: str | Path) -> ExportedDetector:
    """Read a file that `AnomalyDetector.export` wrote; neither this nor a prediction needs torch.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ExtraError
        onnxruntime is not installed.
    PersistenceError
        No such file, or one that is damaged or was not written by `export`.

    Examples
    --------
    >>> import oneshot_medad
    >>> oneshot_medad.load_exported("nowhere.onnx")
    Traceback (most recent call last):
    oneshot_medad.errors.PersistenceError: Got 'nowhere.onnx'; wanted a file that `AnomalyDetector.export` wrote.
    """
    return ExportedDetector(*open_engine(Path(path)))
