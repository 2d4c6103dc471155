"""Predictions of an exported detector, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneshot_medad.errors import ConfigError
from oneshot_medad.export.engines import Engine, open_engine
from oneshot_medad.images.expand import expand
from oneshot_medad.images.read import Values, name_of, read_values
from oneshot_medad.images.resample import field_of, map_of
from oneshot_medad.provenance import stamp
from oneshot_medad.results.gathering import Gathering
from oneshot_medad.results.predictions import Predictions


class ExportedDetector:
    """A detector that `AnomalyDetector.export` wrote, run by onnxruntime or openvino; made by `load_exported`.

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
        sources, side = expand(images, recursive=recursive), int(self.description["image_px"])
        found = Gathering(sources, on_error)
        for i in range(len(sources)):
            read = found.read(i, self._read)
            if read is not None:
                score, heatmap, similarity, pose = self._engine(field_of(read.values, side, read.aspect))
                there = map_of(heatmap, read.size, read.aspect)
                found.put(i, score, there, similarity, self.description["poses"][pose])
        made = {**self.description["provenance"], **stamp(("oneshot-medad",))}
        return found.predictions(self.description["calibration"], made, self.intensity_range)

    def _read(self, source: Any, i: int) -> Values:
        return read_values(source, name_of(source, i), self.intensity_range)


def load_exported(path: str | Path, engine: str = "auto") -> ExportedDetector:
    """Read a file that `AnomalyDetector.export` wrote; neither this nor a prediction needs torch.

    Parameters
    ----------
    path
        The file.
    engine
        ``"onnxruntime"`` or ``"openvino"``; ``"auto"`` takes the first of them that is installed.

    Raises
    ------
    ConfigError
        Another engine.
    ExtraError
        The engine is not installed.
    PersistenceError
        No such file, or one that is damaged or was not written by `export`.

    Examples
    --------
    >>> import oneshot_medad
    >>> oneshot_medad.load_exported("nowhere.onnx")
    Traceback (most recent call last):
    oneshot_medad.errors.PersistenceError: Got 'nowhere.onnx'; wanted a file that `AnomalyDetector.export` wrote.
    """
    return ExportedDetector(*open_engine(Path(path), engine))
