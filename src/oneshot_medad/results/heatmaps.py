"""Heatmaps as files, in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad._names import file_name
from oneshot_medad.calibration import shown
from oneshot_medad.errors import ConfigError
from oneshot_medad.results.pictures import picture
from oneshot_medad.results.predictions import Predictions

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {"overlay": ".overlay.png", "png": ".png", "npz": ".npz", "nifti": ".nii.gz", "dicom": ".dcm"}
"""Suffix of each heatmap format; the first that a name ends in says which it is."""


def form_of(path: str) -> str | None:
    """The format of a heatmap file, by its name."""
    return next((form for form, suffix in FORMATS.items() if path.endswith(suffix)), None)


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
        from oneshot_medad.results.capture import need_pydicom

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
    picture(predictions, i).save(path)


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
    from oneshot_medad.results.capture import write_capture

    write_capture(predictions, i, predictions.sources[i] if predictions.sources else None, path, number)
