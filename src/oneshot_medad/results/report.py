"""Predictions as HTML: a report in one file, and the table that notebooks show."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneshot_medad._names import cell, printable, written
from oneshot_medad.calibration import RULES, finest_rate, promises, shown
from oneshot_medad.errors import ImageError
from oneshot_medad.evaluation import MEASURES
from oneshot_medad.images.files import is_part_of_volume
from oneshot_medad.images.folders import said
from oneshot_medad.images.read import BLANK
from oneshot_medad.results.pictures import colours, image_again, picture, strength
from oneshot_medad.results.predictions import Predictions

SIDE = 320
"""Longest side of the pictures in a report, pixels; they are all that makes it large."""

THUMBNAIL = (300, 100)
"""Largest width and height of a notebook's pictures of three panels, pixels."""

NOTEBOOK_ROWS = 20


def write_report(predictions: Predictions, path: Path, title: str | None = None) -> Path:
    """Write the report; see `Predictions.to_html`."""
    shorts = _without_common_folder([written(name) for name in predictions.names])
    told = predictions.to_rows()
    order = sorted(
        range(len(told)), key=lambda i: -np.inf if told[i]["score"] is None else told[i]["score"], reverse=True
    )
    volumes = _volumes(predictions)
    places = {place: number for number, (_, place) in enumerate(volumes)}
    rows = [
        _report_row(
            predictions,
            i,
            {**told[i], "short": shorts[i], "cell": cell(told[i]["name"]), **_position(predictions, i, places)},
        )
        for i in order
    ]
    made, found = predictions.provenance, predictions.provenance.get("calibration")
    known = predictions.scores[predictions.judged]
    ends = [predictions.threshold - 0.5, predictions.threshold + 0.5, *known.tolist()]
    scale = colours(np.linspace(0, 1, 9))
    text = _template("report.html.j2").render(
        title=printable(title or "") or "Anomaly detection report",
        rows=rows,
        made=made,
        volumes=[row for row, _ in volumes],
        points=(found or {}).get("operating_points") or [],
        rule=RULES.get(made.get("threshold_rule", "")),
        promises=promises(found) if found else [],
        images=found["images"] if found else [],
        measures=_measures(made.get("evaluation")),
        threshold=predictions.threshold,
        uncertain_from=predictions.uncertain_from,
        counts=predictions.counts(),
        blank=BLANK,
        low=min(ends),
        high=max(ends),
        calibrated=predictions.normal_scores is not None,
        n_calibration=0 if predictions.normal_scores is None else len(predictions.normal_scores),
        finest=None if predictions.normal_scores is None else finest_rate(len(predictions.normal_scores)),
        left_out=said(predictions.left_out),
        gradient=", ".join(f"rgb({r} {g} {b})" for r, g, b in scale),
    )
    path.write_text(text, encoding="utf-8")
    return path


def _volumes(predictions: Predictions) -> list[tuple[dict[str, Any], Any]]:
    """Rows of the volumes among the images, the most abnormal first, and what they are volumes of."""
    found = []
    with suppress(ImageError):  # a file is gone
        for volume in predictions.iter_volumes():
            more = {"cell": cell(written(volume.name)), "rule_said": RULES.get(volume.limits.rule, "")}
            found.append(({**volume.to_row(), **more, "found": volume.regions()}, (volume.place, volume.axis)))
    return sorted(found, key=lambda one: -np.inf if one[0]["score"] is None else one[0]["score"], reverse=True)


def _position(predictions: Predictions, i: int, places: dict[Any, int]) -> dict[str, Any]:
    """Of which volume an image is a slice, and which one."""
    source = predictions.sources[i] if predictions.sources else None
    if source is None or not is_part_of_volume(source):
        return {"volume": None, "index": None}
    return {"volume": places.get((source.path, source.axis)), "index": source.index}


def notebook_table(predictions: Predictions) -> str:
    """An HTML table of the first rows, with pictures inside."""
    rows = predictions.to_rows()[:NOTEBOOK_ROWS]
    for i, row in enumerate(rows):
        row["picture"] = None
        with suppress(ImageError):  # not read, or not judged and gone
            thumbnail = picture(predictions, i)
            thumbnail.thumbnail(THUMBNAIL)
            row["picture"] = _uri(thumbnail, "JPEG")
    return _template("table.html.j2").render(
        rows=rows,
        more=len(predictions) - len(rows),
        threshold=predictions.threshold,
        finest=None if predictions.normal_scores is None else finest_rate(len(predictions.normal_scores)),
    )


def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("oneshot_medad", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(name)


def _without_common_folder(names: list[str]) -> list[str]:
    try:
        folder = os.path.commonpath([str(Path(name).parent) for name in names])
    except ValueError:  # absolute and relative ones
        return names
    return [str(Path(name).relative_to(folder)) for name in names]


def _report_row(predictions: Predictions, i: int, row: dict[str, Any]) -> dict[str, Any]:
    shape = predictions.heatmaps[i].shape[::-1]
    if not all(shape):
        return {**row, "image": None, "heat": None, "regions": []}
    image, heatmap = image_again(predictions, i), predictions.pictured(i)
    scale = min(1.0, SIDE / max(shape))
    size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    small = None if image is None else Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    heat = None
    if heatmap.size:
        level = Image.fromarray((shown(heatmap.astype(float), predictions.threshold) * 255).round().astype(np.uint8))
        heat = _heat_uri(level.resize(size, Image.Resampling.BILINEAR), opaque=image is None)
    return {**row, "image": small and _uri(small, "JPEG"), "heat": heat, "regions": predictions.regions(i)}


def _heat_uri(level: Image.Image, opaque: bool) -> str:
    """A PNG with the colours of the scale; as opaque as `pictures.blend` makes them, or fully where no image is."""
    steps = np.arange(256) / 255
    paletted = Image.frombytes("P", level.size, level.tobytes())
    paletted.putpalette(colours(steps).tobytes())
    alpha = np.ones(256) if opaque else strength(steps)
    return _uri(paletted, "PNG", transparency=(alpha * 255).round().astype(np.uint8).tobytes(), optimize=True)


def _uri(image: Image.Image, form: str, **options: Any) -> str:
    file = BytesIO()
    image.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _measures(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The stored evaluation in words."""
    lines = []
    for key, name in MEASURES.items():
        if found and key in found:
            low_high = found.get(f"{key}_interval")
            interval = f" (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
            lines.append((name, f"{found[key]:.3f}{interval}"))
    return lines
