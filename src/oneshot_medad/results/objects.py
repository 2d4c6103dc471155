"""What was found in a single DICOM image, for the objects that viewers lay over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.images.dicom_values import number, whole
from oneshot_medad.images.expand import source_of
from oneshot_medad.images.files import Slice, first_file, is_part_of_volume
from oneshot_medad.images.formats import format_of
from oneshot_medad.images.open import reading
from oneshot_medad.studies.objects import Finding, headers, said, write_parametric_map, write_segmentation
from oneshot_medad.studies.volume import MAP, SEGMENTATION, level_of
from oneshot_medad.verdicts import JUDGED, places_from

if TYPE_CHECKING:
    from oneshot_medad.results.predictions import Predictions


def finding_of(predictions: Predictions, i: int) -> Finding:
    """What is written of image ``i``; raises what `Predictions.save_segmentation` says."""
    source = predictions.sources[i] if predictions.sources else None
    name, verdict, place = predictions.names[i], predictions.verdict(i), source_of(source)
    if is_part_of_volume(place):
        raise ConfigError(f"Got {name}, a slice of a volume; wanted a single image. Write those of volumes().")
    if verdict not in JUDGED:
        raise ImageError(
            f"Got {name}, of which nothing can be said (it is called {verdict}); wanted one that is judged."
        )
    file = first_file(place) if isinstance(place, Slice) else place
    if file is None:
        raise ConfigError(f"Got {name}, which was read from no file; wanted one of a DICOM file.")
    with reading(file):
        if format_of(file) != "dicom":
            raise ConfigError(f"Got {name}, which is no DICOM file; wanted one. Write it with save_heatmaps().")
        (ds,) = headers([file])
    frames, heatmap = whole(ds, "NumberOfFrames") or 1, predictions.heatmaps[i]
    if frames > 1:
        raise ConfigError(
            f"Got {name}, one of {frames} frames that have no place in the patient; wanted an image of one frame. "
            "Write a capture, which names the frame, with save_heatmaps(format='dicom')."
        )
    if not ds.get("ImagePositionPatient"):
        ds.pop("PixelSpacing", None)  # without a thickness beside it, highdicom writes it and cannot read it again
    elif number(ds, "SliceThickness") is None:
        raise ConfigError(f"Got {name}, which does not say how thick it is; wanted a SliceThickness. Write a capture.")
    if heatmap.shape != (ds.Rows, ds.Columns):
        raise ImageError(
            f"Got {ds.Rows} x {ds.Columns} pixels in {name}; wanted {heatmap.shape}, as when it was judged."
        )
    limits = predictions.threshold, predictions.uncertain_from
    rule = str(predictions.provenance.get("threshold_rule", "not known"))
    return Finding(
        name,
        [ds],
        heatmap[None],
        (str(ds.get("SeriesInstanceUID")), "images"),
        predictions.threshold,
        level_of(predictions.threshold),
        places_from(verdict, *limits),
        said(verdict, float(predictions.scores[i]), predictions.threshold, rule),
        predictions.provenance,
    )


def save_parametric_map(predictions: Predictions, i: int, path: str | Path) -> Path:
    """Write the raw heatmap of a single DICOM image as a Parametric Map, as `Volume.save_parametric_map` does.

    Raises
    ------
    ConfigError
        A slice of a volume (`volumes` writes those), what is no DICOM file, one of several frames that have no place
        in the patient, or an image without a frame of reference, such as most radiographs.
    ImageError
        An image that was not read or cannot be judged.
    ExtraError
        highdicom is not installed: ``pip install "oneshot-medad[dicom]"``.
    """
    found = finding_of(predictions, i)
    if not _in_space(found):
        raise ConfigError(
            f"Got {found.name}, which has no frame of reference, as most radiographs have none; the standard wants one "
            "for a Parametric Map. Write a segmentation, or a capture with save_heatmaps(format='dicom')."
        )
    return write_parametric_map(found, Path(path))


def save_segmentation(predictions: Predictions, i: int, path: str | Path, fractional: bool = False) -> Path:
    """Write the `regions` of a single DICOM image as a Segmentation, as `Volume.save_segmentation` does.

    Unlike a Parametric Map it needs no frame of reference, so radiographs have one, too.

    Raises
    ------
    ConfigError, ExtraError
        As for `save_parametric_map`.
    ImageError
        The same, or an image without regions.
    """
    return write_segmentation(finding_of(predictions, i), Path(path), fractional)


def save_objects(predictions: Predictions, i: int, stem: Path) -> list[Path]:
    """Write the parametric map where image ``i`` can have one, and the segmentation if there are regions.

    The files begin with ``stem``; errors are those of `save_segmentation`.
    """
    found = finding_of(predictions, i)
    files = []
    if _in_space(found):
        files.append(write_parametric_map(found, stem.with_name(stem.name + MAP)))
    if (found.frames > found.limit).any():
        files.append(write_segmentation(found, stem.with_name(stem.name + SEGMENTATION)))
    return files


def _in_space(found: Finding) -> bool:
    return bool(found.sources[0].get("FrameOfReferenceUID"))
