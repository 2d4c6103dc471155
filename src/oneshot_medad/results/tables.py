"""Predictions as rows: what is not known, or may not be said, is empty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad._names import cell, printable, written
from oneshot_medad.calibration import finest_rate
from oneshot_medad.errors import ExtraError
from oneshot_medad.images.folders import said
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.verdicts import CANNOT_JUDGE


def rows_of(predictions: Predictions) -> list[dict[str, Any]]:
    """See `Predictions.to_rows`."""
    columns: dict[str, Any] = {"name": [written(name) for name in predictions.names], "verdict": predictions.verdicts}
    columns["score"] = _filled(np.where(predictions.judged, predictions.scores, np.nan))
    columns |= {"shown": _filled(predictions.shown), "flag": predictions.flags.tolist()}
    if predictions.similarities is not None:
        columns["similarity"] = _filled(predictions.similarities)
    if predictions.percentiles is not None and predictions.p_values is not None:
        columns |= {"percentile": _filled(predictions.percentiles), "p_value": _filled(predictions.p_values)}
    columns["reason"] = [_reason(predictions, i) for i in range(len(predictions))]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{**row, "threshold": predictions.threshold} for row in rows]


def _filled(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _reason(predictions: Predictions, i: int) -> str:
    """Why an image has no score, or none that means anything; or that it lies otherwise than the normal images."""
    pose = predictions.poses[i] if predictions.poses else ""
    seems = f"seems {pose}, beside the images fitted on" if pose else ""
    if predictions.verdict(i) == CANNOT_JUDGE:
        unlike = predictions.outside(i)
        if not unlike and predictions.similarities is not None:
            unlike = (
                f"unlike the images fitted on: similarity {predictions.similarities[i]:.3f}, "
                f"wanted {predictions.least_similarity:.3f}"
            )
        return "; ".join(filter(None, [unlike, seems]))
    said = predictions.reasons[i].removeprefix(f"{predictions.names[i]}: ") if predictions.reasons else ""
    return printable(said) or seems


def frame_of(predictions: Predictions) -> Any:
    """See `Predictions.to_frame`."""
    import pandas

    frame = pandas.DataFrame(rows_of(predictions))
    # nullable: a column of True, False and nothing, where NumPy's would turn nothing into an object or into False
    kinds = {name: "boolean" if name == "flag" else float for name in _NUMBERS if name in frame}
    return frame.astype(kinds)


_NUMBERS = ("score", "shown", "flag", "similarity", "percentile", "p_value")
"""Columns that may be empty, and whose type pandas would guess from what is in them."""


def write_csv(predictions: Predictions, path: Path) -> Path:
    """See `Predictions.to_csv`."""
    frame = frame_of(predictions)
    if len(frame):
        frame["name"] = frame["name"].map(cell)
    frame.to_csv(path, index=False, encoding="utf-8")
    return path


def write_parquet(predictions: Predictions, path: Path) -> Path:
    """See `Predictions.to_parquet`."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ExtraError(f"Writing Parquet needs pyarrow ({error}): pip install 'oneshot-medad[parquet]'") from error
    frame_of(predictions).to_parquet(path, index=False, engine="pyarrow")
    return path


def text_of(predictions: Predictions) -> str:
    """A table of file, score and verdict, with p-values and the finest of them after a calibration."""
    rows = rows_of(predictions)
    width = max([len("image"), *(len(row["name"]) for row in rows)])
    known = predictions.normal_scores
    lines = [f"{'image':<{width}}  {'score':>7}  {'p-value  ' * (known is not None)}verdict"]
    for row in rows:
        word = row["verdict"].replace("abnormal", "ABNORMAL")
        word = ": ".join([word, row["reason"]]) if row["reason"] else word
        score = f"{row['score']:7.3f}" if row["score"] is not None else " " * 7
        p_value = "" if known is None else f"{row['p_value']:7.3g}  " if row["p_value"] is not None else " " * 9
        lines.append(f"{row['name']:<{width}}  {score}  {p_value}{word}")
    if known is not None:
        lines.append(f"p-values: {finest_rate(len(known))}.")
    if predictions.left_out:
        lines.append(f"{said(predictions.left_out)}.")
    return "\n".join(lines)
