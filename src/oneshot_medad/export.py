"""Predictions as files: audit records, and heatmaps in the formats of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad._hub import sha256
from oneshot_medad._listing import append
from oneshot_medad._names import file_name
from oneshot_medad.calibration import shown
from oneshot_medad.errors import ConfigError, OneShotError
from oneshot_medad.images.files import Series
from oneshot_medad.images.sanity import pixels_sha256

if TYPE_CHECKING:
    from PIL import Image

    from oneshot_medad.predictions import Predictions

FORMATS = {"overlay": ".overlay.png", "png": ".png", "npz": ".npz", "nifti": ".nii.gz", "dicom": ".dcm"}
"""Suffix of each heatmap format; the first that a name ends in says which it is."""


def form_of(path: str) -> str | None:
    """The format of a heatmap file, by its name."""
    return next((form for form, suffix in FORMATS.items() if path.endswith(suffix)), None)


def audit_records(predictions: Predictions) -> list[dict[str, Any]]:
    """What was decided about every image, and all that is needed to check it later, as plain values."""
    made, window = predictions.provenance, predictions.intensity_range
    records = []
    for i, row in enumerate(predictions.to_rows()):
        known: dict[str, Any] = {
            k: row[k] for k in ("score", "shown", "percentile", "p_value", "similarity") if k in row
        }
        records.append(
            {
                "time": made.get("time"),
                "name": row["name"],
                **input_hash(predictions, i),
                "detector_sha256": made.get("detector_sha256"),
                "versions": made.get("versions"),
                "intensity_range": window and [float(v) for v in window],
                "threshold": row["threshold"],
                "threshold_rule": made.get("threshold_rule"),
                **known,
                "decision": row["verdict"],
                "reason": row["reason"],
            }
        )
    return records


def append_jsonl(predictions: Predictions, path: Path) -> Path:
    """Add the audit records to a file, one JSON object a line; what the file holds already stays.

    All of them are written at once, so that records of several threads or processes do not mix.
    """
    append(path, "".join(record_lines(predictions)))
    return path


def record_lines(predictions: Predictions) -> list[str]:
    """The audit records as JSON, one a line."""
    return [json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n" for record in audit_records(predictions)]


def input_hash(predictions: Predictions, i: int) -> dict[str, str | None]:
    """SHA-256 of an image's file as it is now; of its pixels as they were read where there is no file."""
    path = file_of(predictions.sources[i]) if predictions.sources else None
    if path is not None:
        return {"input_sha256": sha256(path), "input_hash_of": "file"}
    try:
        return {"input_sha256": pixels_sha256(predictions.read(i)), "input_hash_of": "pixels"}
    except OneShotError:
        return {"input_sha256": None, "input_hash_of": None}


def file_of(source: Any) -> Path | None:
    """The file on disk that a source is, or lies in; None for anything else."""
    path = getattr(source, "path", source)  # a slice or frame knows its file
    if isinstance(path, Series):  # a cut through many files has none of its own
        path = source.origin and source.origin[0]
    return Path(path) if isinstance(path, (str, Path)) and Path(path).is_file() else None


def check_format(name: str) -> None:
    """Refuse an unknown heatmap format, or one whose package is missing, before anything is computed.

    Raises
    ------
    ConfigError
        An unknown format.
    ExtraError
        A format that needs a package that is not installed.
    """
    if name not in FORMATS:
        raise ConfigError(f"Got heatmap format {name!r}; wanted one of {', '.join(map(repr, FORMATS))}.")
    if name == "dicom":
        from oneshot_medad.capture import need_pydicom

        need_pydicom()


def save_heatmaps(predictions: Predictions, folder: Path, start: int, form: str) -> list[Path | None]:
    """Write every heatmap to a file of its own; see `Predictions.save_heatmaps`."""
    check_format(form)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path | None] = []
    for i, name in enumerate(predictions.names):
        path = folder / file_name(start + i, name, FORMATS[form]) if predictions.pictured(i).size else None
        if path and form == "dicom":
            _dicom(predictions, i, path, start + i + 1)
        elif path:
            {"overlay": _overlay, "png": _png, "npz": _npz, "nifti": _nifti}[form](predictions, i, path)
        paths.append(path)
    return paths


def _overlay(predictions: Predictions, i: int, path: Path) -> None:
    predictions.overlay(i).save(path)


def heatmap_png(heatmap: np.ndarray, threshold: float) -> Image.Image:
    """A heatmap (H, W) on the scale of the scores as 16 bits of grey: the shown scale, the threshold in the middle."""
    from PIL import Image

    level = shown(heatmap.astype(float), threshold)
    return Image.fromarray((level * 65535).round().astype(np.uint16))


def _png(predictions: Predictions, i: int, path: Path) -> None:
    heatmap_png(predictions.pictured(i), predictions.threshold).save(path)


def _npz(predictions: Predictions, i: int, path: Path) -> None:
    spacing = predictions.spacing(i)
    known: dict[str, Any] = {} if spacing is None else {"spacing_mm": np.array(spacing)}
    known |= {"threshold": predictions.threshold, "verdict": predictions.verdict(i)}
    np.savez_compressed(path, heatmap=predictions.heatmaps[i], **known)


def _nifti(predictions: Predictions, i: int, path: Path) -> None:
    """One slice whose first axis runs along the rows of the image, as ITK lays a flat picture into space."""
    import nibabel

    from oneshot_medad.studies.volume import level_of

    height, width = predictions.spacing(i) or (1.0, 1.0)
    volume = nibabel.Nifti1Image(predictions.heatmaps[i].T[:, :, None], np.diag([-width, -height, 1.0, 1.0]))
    volume.header.set_xyzt_units("mm" if predictions.spacing(i) else "unknown")
    level = level_of(predictions.threshold)
    volume.header["cal_min"], volume.header["cal_max"] = level, 2 * predictions.threshold - level
    said = f"oneshot-medad heatmap, threshold {predictions.threshold:.6g}, {predictions.verdict(i)}"
    volume.header["descrip"] = said.encode()
    nibabel.save(volume, path)


def _dicom(predictions: Predictions, i: int, path: Path, number: int) -> None:
    from oneshot_medad.capture import write_capture

    write_capture(predictions, i, predictions.sources[i] if predictions.sources else None, path, number)
