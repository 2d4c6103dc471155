"""What the workers of an archive do: files become fields of the networks, and these become rows of the results."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from oneshot_medad._names import printable, written
from oneshot_medad._predicting import predict_sources
from oneshot_medad._runtime import resolve_device
from oneshot_medad.archive.addresses import at_hand, file_uri, is_remote, place_of
from oneshot_medad.archive.manifests import ID, URI
from oneshot_medad.errors import BlankImageError, ImageError
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.expand import Sources
from oneshot_medad.images.files import Slice
from oneshot_medad.images.preprocess import fitted_size, to_field
from oneshot_medad.images.read import BLANK, MedicalImage, read_image
from oneshot_medad.results.heatmaps import heatmap_png
from oneshot_medad.training.cache import ENCODE_BATCH
from oneshot_medad.verdicts import JUDGED, NOT_READ, held_back

if TYPE_CHECKING:
    import pyarrow

HEATMAP = "heatmap"
"""Column of the heatmaps: 16-bit PNG, as `Predictions.save_heatmaps` writes them."""


def schema(heatmaps: bool) -> pyarrow.Schema:
    """Columns of the results: those of `Predictions.to_rows`, the id of the manifest before, heatmaps behind."""
    import pyarrow as pa

    columns = [(ID, pa.int64()), ("name", pa.string()), ("verdict", pa.string())]
    columns += [("score", pa.float64()), ("shown", pa.float64()), ("flag", pa.bool_()), ("similarity", pa.float64())]
    columns += [("percentile", pa.float64()), ("p_value", pa.float64()), ("reason", pa.string())]
    columns += [("threshold", pa.float64())]
    return pa.schema([*columns, (HEATMAP, pa.binary())] if heatmaps else columns)


def decode(rows: pyarrow.Table, window: tuple[float, float] | None, side: int) -> pyarrow.Table:
    """Read the images of some rows of a manifest into the networks' square field.

    Parameters
    ----------
    rows
        ``id`` and ``uri``.
    window
        ``intensity_range`` of the detector.
    side
        Of the field, in pixels.

    Returns
    -------
    As many rows. ``field`` holds float32 (1 or 3, side, side), null where ``reason`` says why; ``height``, ``width``,
    ``aspect`` and ``position`` are those of the image.
    """
    import pyarrow as pa

    found: list[dict[str, Any]] = []
    uris = rows[URI].to_pylist()
    with at_hand(uris) as places:
        for number, uri, place in zip(rows[ID].to_pylist(), uris, places, strict=True):
            found.append({ID: number, **_decoded(uri, place, window, side)})
    columns = [(ID, pa.int64()), ("name", pa.string()), ("reason", pa.string()), ("field", pa.large_binary())]
    columns += [("height", pa.int32()), ("width", pa.int32()), ("aspect", pa.float64())]
    columns += [("position", pa.float64())]
    return pa.Table.from_pylist(found, schema=pa.schema(columns))


def _decoded(uri: str, place: Any, window: tuple[float, float] | None, side: int) -> dict[str, Any]:
    name = uri if is_remote(uri) else str(place_of(uri))
    try:
        if isinstance(place, ImageError):
            raise place
        image = read_image(place, name, window)
    except ImageError as error:
        if isinstance(error, BlankImageError) and isinstance(place, Slice):
            return {"name": written(name), "reason": BLANK}
        here = str(place.path if isinstance(place, Slice) else place)  # what was fetched has another name here
        said = str(error).replace(here, file_uri(name)).removeprefix(f"{name}: ")
        return {"name": written(name), "reason": printable(said)}
    field = to_field(image.pixels, side, image.aspect)
    grey = image.pixels.stride(0) == 0  # it repeats its one channel
    height, width = image.size
    values = {"height": height, "width": width, "aspect": image.aspect, "position": image.position}
    return {"name": written(name), "field": (field[:1] if grey else field).numpy().tobytes(), **values}


class Judge:
    """Holds a detector, and gives fields the rows that `AnomalyDetector.predict` gives their images.

    Parameters
    ----------
    fitted
        The detector, as `FittedDetector.portable` gives it.
    heatmaps
        Whether rows hold heatmaps.
    fetch
        Whether the Hub may be asked for frozen networks.
    device
        As for `AnomalyDetector`.
    """

    def __init__(self, fitted: FittedDetector, heatmaps: bool, fetch: bool = True, device: str = "cpu") -> None:
        self._fitted, self._schema, self._fetch = fitted.placed(resolve_device(device)), schema(heatmaps), fetch

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """As many rows as `decode` gave, in its order."""
        import pyarrow as pa

        given = rows.to_pylist()
        judged = iter(self._judged([row for row in given if row["field"] is not None]))
        made = [
            {"name": row["name"], "verdict": NOT_READ, "reason": row["reason"], "threshold": self._fitted.threshold}
            if row["field"] is None
            else next(judged)
            for row in given
        ]
        numbered = [{ID: row[ID], **one} for row, one in zip(given, made, strict=True)]
        return pa.Table.from_pylist(numbered, schema=self._schema)

    def _judged(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not given:
            return []
        side = self._fitted.networks.spec.image_px
        images = [MedicalImage(_field(row["field"], side), row["name"], position=row["position"]) for row in given]
        # batches of one size, so that an image gives the same bits whatever is beside it
        images += [images[-1]] * (-len(images) % ENCODE_BATCH)
        predictions = predict_sources(self._fitted, Sources(images), fetch=self._fetch)
        made = []
        for i, (row, found) in enumerate(zip(given, predictions.to_rows(), strict=False)):
            found["name"] = row["name"]
            if HEATMAP in self._schema.names and found["verdict"] in JUDGED:
                size = (row["height"], row["width"])
                heatmap = _on_own_grid(predictions.heatmaps[i], size, row["aspect"])
                held = held_back(heatmap, found["verdict"], self._fitted.threshold)
                heatmap_png(held, self._fitted.threshold).save(file := BytesIO(), "PNG")
                found[HEATMAP] = file.getvalue()
            made.append(found)
        return made


def _field(data: bytes, side: int) -> torch.Tensor:
    """(3, side, side), writable."""
    field = torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, side, side).copy())
    return field.expand(3, -1, -1)


def _on_own_grid(heatmap: np.ndarray, size: tuple[int, int], aspect: float) -> np.ndarray:
    """(H, W) of (side, side): the second half of `from_field`."""
    side = heatmap.shape[0]
    h, w = fitted_size(size, side, aspect)
    top, left = (side - h) // 2, (side - w) // 2
    inner = torch.from_numpy(heatmap)[None, None, top : top + h, left : left + w]
    return F.interpolate(inner, size, mode="bilinear", align_corners=False)[0, 0].numpy()
