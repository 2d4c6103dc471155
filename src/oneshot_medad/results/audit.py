"""The audit record: what was decided about every image, by which detector, from which input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oneshot_medad._hub import sha256
from oneshot_medad._listing import append
from oneshot_medad.errors import OneShotError
from oneshot_medad.images.files import Series
from oneshot_medad.images.sanity import pixels_sha256
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.results.tables import rows_of


def audit_records(predictions: Predictions) -> list[dict[str, Any]]:
    """What was decided about every image, and all that is needed to check it later, as plain values."""
    made, window = predictions.provenance, predictions.intensity_range
    records = []
    for i, row in enumerate(rows_of(predictions)):
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
