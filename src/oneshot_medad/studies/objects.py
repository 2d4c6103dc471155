"""What was found in a DICOM series, as objects that its viewers lay over it: parametric map and segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad.calibration import shown
from oneshot_medad.errors import ConfigError, ExtraError, ImageError
from oneshot_medad.images.dicom_values import number
from oneshot_medad.images.files import Series
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


def write_parametric_map(volume: Volume, path: Path) -> Path:
    """Write the raw heatmap as a Parametric Map; see `Volume.save_parametric_map`."""
    hd = _highdicom()
    from pydicom.sr.codedict import codes

    series, sources = _sources(volume)
    values = np.ascontiguousarray(_frames(volume, series, volume.heatmap), np.float32)
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
    window = hd.VOILUTTransformation(window_center=volume.threshold, window_width=2 * (volume.threshold - volume.level))
    with _building(volume):
        ds = hd.pm.ParametricMap(
            sources,
            values,
            content_description=f"Anomaly scores, threshold {volume.threshold:.6g}"[:64],
            content_label="ANOMALY",
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[window],
            series_description="Anomaly scores, research use only",
            **_about(volume, series, "maps", MAPS),
        )
    return _save(volume, ds, path)


def write_segmentation(volume: Volume, path: Path, fractional: bool = False) -> Path:
    """Write the regions as a Segmentation; see `Volume.save_segmentation`."""
    hd = _highdicom()
    from pydicom.sr.codedict import codes

    limit = volume.limit
    if not (volume.heatmap > limit).any():
        raise ImageError(
            f"Got {volume.name}, where no place stands out (it is called {volume.verdict}); wanted regions. Write the "
            "parametric map, which has all values."
        )
    series, sources = _sources(volume)
    heatmap = _frames(volume, series, volume.heatmap)
    inside = heatmap > limit
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Above the anomaly limit",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.MorphologicallyAbnormalStructure,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            "oneshot-medad", codes.DCM.ArtificialIntelligence, _version(volume)
        ),
    )
    with _building(volume):
        ds = hd.seg.Segmentation(
            sources,
            np.where(inside, shown(heatmap.astype(np.float64), volume.threshold), 0.0) if fractional else inside,
            segmentation_type="FRACTIONAL" if fractional else "BINARY",
            fractional_type="PROBABILITY",
            segment_descriptions=[segment],
            content_description=f"Places with an anomaly score above {limit:.6g}"[:64],
            content_label="ANOMALY",
            series_description="Anomalies, research use only",
            **_about(volume, series, "fractions" if fractional else "segments", SEGMENTS),
        )
    return _save(volume, ds, path)


def _highdicom() -> Any:
    try:
        import highdicom
        import highdicom.pm
        import highdicom.seg
        import highdicom.sr
    except ImportError as error:
        raise ExtraError(f"DICOM objects need highdicom ({error}): pip install 'oneshot-medad[dicom]'") from error
    return highdicom


def _sources(volume: Volume) -> tuple[Series, list[Any]]:
    """The series, and the headers of its files in the order of its planes."""
    from oneshot_medad.images.dicom import read_dataset

    series = volume.place
    if not isinstance(series, Series):
        raise ConfigError(f"Got {volume.name}, which is no DICOM series; wanted one. Write NIfTI with save().")
    sources = [read_dataset(file, stop_before_pixels=True) for file in series.files]
    for ds in sources:
        for name in (*MUST_BE_THERE, "StudyDescription"):
            if name not in ds:
                setattr(ds, name, None)
        if number(ds, "SliceThickness") is None:  # highdicom wants one
            ds.SliceThickness = f"{float(np.linalg.norm(np.array(series.affine)[:3, 2])):.10g}"
    frames = int(sources[0].get("NumberOfFrames") or 1)
    if len(sources) == 1 and frames != sum(plane is not None for plane in series.planes):
        raise ConfigError(
            f"Got {volume.name}, one of several volumes in a file of {frames} frames; wanted all of them in one. Write "
            "NIfTI with save()."
        )
    return series, sources


def _frames(volume: Volume, series: Series, values: np.ndarray) -> np.ndarray:
    """(N, rows, columns) in the order of the source's files, or of the frames of its one file."""
    order = [index for index, plane in enumerate(series.planes) if plane is not None]
    if len(series.files) == 1:
        order.sort(key=lambda index: series.planes[index][1])  # type: ignore[index]
    return np.moveaxis(values, 2, 0)[order].swapaxes(1, 2)


def _about(volume: Volume, series: Series, what: str, series_number: int) -> dict[str, Any]:
    """Of which series and device an object is: one series for a source and a detector, whoever writes it."""
    from pydicom.uid import generate_uid

    sha = str(volume.provenance.get("detector_sha256"))
    return {
        "series_instance_uid": generate_uid(entropy_srcs=[series.uid, sha, what, str(series.part)]),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "oneshot-medad",
        "manufacturer_model_name": "oneshot-medad",
        "software_versions": _version(volume),
        "device_serial_number": sha[:64],
    }


@contextmanager
def _building(volume: Volume) -> Iterator[None]:
    """What highdicom and pydicom do not take of the source's headers as an error that names it."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise ImageError(
            f"Got {volume.name}, of whose headers no DICOM object can be made ({type(error).__name__}: {error}). Write "
            "NIfTI with save()."
        ) from error


def _version(volume: Volume) -> str:
    return str(volume.provenance.get("versions", {}).get("oneshot-medad", "not known"))


def _save(volume: Volume, ds: Any, path: Path) -> Path:
    made = volume.provenance
    if "Laterality" not in ds and "FloatPixelData" in ds:
        ds.Laterality = None  # part of that object, known or not
    ds.ImageComments = (
        f"{NOTICE}. {volume.verdict}: score {volume.score:.6g}, threshold {volume.threshold:.6g} "
        f"({volume.limits.rule}). Detector SHA-256 {made.get('detector_sha256', 'not known')}."
    )
    ds.save_as(path, enforce_file_format=True)
    return path
