"""What was found in DICOM images, as objects that their viewers lay over them: parametric map and segmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad.calibration import shown
from oneshot_medad.errors import ConfigError, ExtraError, ImageError
from oneshot_medad.images.dicom_values import number
from oneshot_medad.images.files import File, Series
from oneshot_medad.images.quiet import quiet

if TYPE_CHECKING:
    from oneshot_medad.studies.volume import Volume

NOTICE = "RESEARCH USE ONLY - NOT A MEDICAL DEVICE"
"""Burnt into every picture, and said in every object."""

MUST_BE_THERE = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Laterality",
)
"""Attributes that the standard wants present, if empty."""

SCHEME = "99ONESHOT"
"""Coding scheme of what no standard one has a code for."""
MAPS, SEGMENTS = 9001, 9002
"""Series numbers, which sort behind what scanners make."""


@dataclass(frozen=True, eq=False)
class Finding:
    """What is written of a volume or of a single image.

    Attributes
    ----------
    name
        Of the volume or image.
    sources
        Headers of the DICOM files that it was found in.
    frames
        (N, rows, columns) raw heatmap, in the order of these files, or of the frames of the one file.
    entropy
        What tells it from other volumes and images: what has the same is of one series, whoever writes it.
    threshold, level, limit
        Of the score; the normal level; what a place of a region exceeds.
    said
        The verdict, in words.
    provenance
        As in `Predictions`.
    """

    name: str
    sources: list[Any]
    frames: np.ndarray
    entropy: Sequence[str]
    threshold: float
    level: float
    limit: float
    said: str
    provenance: dict[str, Any]


def write_parametric_map(found: Finding, path: Path) -> Path:
    """Write the raw heatmap as a Parametric Map; see `Volume.save_parametric_map`."""
    hd = _highdicom()
    from pydicom.sr.codedict import codes

    values = np.ascontiguousarray(found.frames, np.float32)
    low, high = float(values.min()), float(values.max())
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Anomaly score, higher is more abnormal",
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=hd.sr.CodedConcept("anomaly-score", SCHEME, "Anomaly score"),
    )
    window = hd.VOILUTTransformation(window_center=found.threshold, window_width=2 * (found.threshold - found.level))
    with _building(found):
        ds = hd.pm.ParametricMap(
            found.sources,
            values,
            content_description=f"Anomaly scores, threshold {found.threshold:.6g}"[:64],
            content_label="ANOMALY",
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[window],
            series_description="Anomaly scores, research use only",
            **_about(found, "maps", MAPS),
        )
    return _save(found, ds, path)


def write_segmentation(found: Finding, path: Path, fractional: bool = False) -> Path:
    """Write the regions as a Segmentation; see `Volume.save_segmentation`."""
    hd = _highdicom()
    from pydicom.sr.codedict import codes

    inside = found.frames > found.limit
    if not inside.any():
        raise ImageError(
            f"Got {found.name}, where no place stands out (it is called {found.said.split(':')[0]}); wanted regions. "
            "Write the parametric map, which has all values."
        )
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Above the anomaly limit",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.MorphologicallyAbnormalStructure,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            "oneshot-medad", codes.DCM.ArtificialIntelligence, _version(found)
        ),
    )
    if fractional:
        values = np.zeros(inside.shape)
        values[inside] = shown(found.frames[inside].astype(np.float64), found.threshold)
    with _building(found):
        ds = hd.seg.Segmentation(
            found.sources,
            values if fractional else inside,
            segmentation_type="FRACTIONAL" if fractional else "BINARY",
            fractional_type="PROBABILITY",
            segment_descriptions=[segment],
            content_description=f"Places with an anomaly score above {found.limit:.6g}"[:64],
            content_label="ANOMALY",
            series_description="Anomalies, research use only",
            **_about(found, "fractions" if fractional else "segments", SEGMENTS),
        )
    return _save(found, ds, path)


def headers(files: Sequence[File]) -> list[Any]:
    """Headers of DICOM files, with what the standard wants present in objects that refer to them, if empty."""
    from oneshot_medad.images.dicom import read_dataset

    sources = [read_dataset(file, stop_before_pixels=True) for file in files]
    for ds in sources:
        for name in (*MUST_BE_THERE, "StudyDescription"):
            if name not in ds:
                setattr(ds, name, None)
    return sources


def finding_of(volume: Volume) -> Finding:
    """What is written of a volume.

    Raises
    ------
    ConfigError
        It is no DICOM series, or one of several volumes in one file.
    """
    series = volume.place
    if not isinstance(series, Series):
        raise ConfigError(f"Got {volume.name}, which is no DICOM series; wanted one. Write NIfTI with save().")
    sources = headers(series.files)
    for ds in sources:
        if number(ds, "SliceThickness") is None:  # highdicom wants one
            ds.SliceThickness = f"{float(np.linalg.norm(np.array(series.affine)[:3, 2])):.10g}"
    order = [index for index, plane in enumerate(series.planes) if plane is not None]
    if len(sources) == 1:
        if int(sources[0].get("NumberOfFrames") or 1) != len(order):
            raise ConfigError(
                f"Got {volume.name}, one of several volumes in a file of {sources[0].NumberOfFrames} frames; wanted "
                "all of them in one. Write NIfTI with save()."
            )
        order.sort(key=lambda index: series.planes[index][1])  # type: ignore[index]
    planes = np.moveaxis(volume.heatmap, 2, 0).swapaxes(1, 2)
    return Finding(
        volume.name,
        sources,
        planes if order == [*range(len(planes))] else planes[order],  # a view where it can be one
        (series.uid, str(series.part)),
        volume.threshold,
        volume.level,
        volume.limit,
        said(volume.verdict, volume.score, volume.threshold, volume.limits.rule),
        volume.provenance,
    )


def said(verdict: str, score: float, threshold: float, rule: str) -> str:
    """A verdict and what it rests on."""
    return f"{verdict}: score {score:.6g}, threshold {threshold:.6g} ({rule})"


def _highdicom() -> Any:
    try:
        import highdicom
        import highdicom.pm
        import highdicom.seg
        import highdicom.sr
    except ImportError as error:
        raise ExtraError(f"DICOM objects need highdicom ({error}): pip install 'oneshot-medad[dicom]'") from error
    return highdicom


def _about(found: Finding, what: str, series_number: int) -> dict[str, Any]:
    """Of which series and device an object is: one series for a source and a detector, whoever writes it."""
    from pydicom.uid import generate_uid

    sha = str(found.provenance.get("detector_sha256"))
    uid, *rest = found.entropy
    return {
        "series_instance_uid": generate_uid(entropy_srcs=[uid, sha, what, *rest]),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "oneshot-medad",
        "manufacturer_model_name": "oneshot-medad",
        "software_versions": _version(found),
        "device_serial_number": sha[:64],
    }


@contextmanager
def _building(found: Finding) -> Iterator[None]:
    """What highdicom and pydicom do not take of the source's headers as an error that names it."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise ImageError(
            f"Got {found.name}, of whose headers no DICOM object can be made ({type(error).__name__}: {error}). Write "
            "NIfTI with save()."
        ) from error


def _version(found: Finding) -> str:
    return str(found.provenance.get("versions", {}).get("oneshot-medad", "not known"))


def _save(found: Finding, ds: Any, path: Path) -> Path:
    if "Laterality" not in ds and "FloatPixelData" in ds:
        ds.Laterality = None  # part of that object, known or not
    if "FrameOfReferenceUID" not in ds:
        ds.PatientOrientation = found.sources[0].get("PatientOrientation")
    ds.ImageComments = (
        f"{NOTICE}. {found.said}. Detector SHA-256 {found.provenance.get('detector_sha256', 'not known')}."
    )
    ds.save_as(path, enforce_file_format=True)
    return path
