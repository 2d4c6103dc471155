"""Overlays as DICOM secondary captures, for viewers and archives of a hospital."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneshot_medad.errors import ExtraError, ImageFileError
from oneshot_medad.images.dicom_values import pair, whole
from oneshot_medad.images.expand import source_of
from oneshot_medad.images.files import Series, Slice, first_file, is_part_of_volume
from oneshot_medad.images.formats import format_of
from oneshot_medad.images.open import reading
from oneshot_medad.results.pictures import captioned, picture
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.studies.objects import MUST_BE_THERE, NOTICE

PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "BodyPartExamined",
    "Laterality",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
"""What a capture takes from its source; not the frame of reference, in which a picture of panels lies nowhere."""


def need_pydicom() -> None:
    """Raise an `ExtraError` if pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ExtraError("Writing DICOM needs pydicom: pip install 'oneshot-medad[dicom]'") from error


def capture_picture(predictions: Predictions, i: int) -> Image.Image:
    """RGB: `pictures.picture` with the score and the notice below it."""
    word = {"abnormal": "ABNORMAL"}.get(predictions.verdict(i), predictions.verdict(i))
    score = f"{word}: anomaly score {predictions.shown[i]:.2f} on a scale from 0 to 1 where 0.5 is the threshold"
    return captioned(picture(predictions, i), [score, NOTICE])


def write_capture(predictions: Predictions, i: int, source: Any, path: Path, number: int) -> None:
    """Write one prediction as a Secondary Capture Image.

    Parameters
    ----------
    predictions, i
        Which.
    source
        What the image was read from: a path, `Slice` or anything else. If it lies in a DICOM file, the capture joins
        its patient and study and refers to it, and to the frame. What that file lacks, the capture lacks.
    path
        File to write.
    number
        Of the instance in its series, unless it is a slice of a volume, whose position counts.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    origin = _header(source)
    ds = _study(origin)
    now = datetime.now()  # local, like the study's own times
    made = predictions.provenance
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    # one series for a study and a detector, however many calls wrote it
    about = [ds.StudyInstanceUID, str(made.get("detector_sha256")), "captures"]
    if is_part_of_volume(source):  # of a volume one by itself, numbered like its slices
        about.append(f"{source.path.uid if isinstance(source.path, Series) else source.path} {source.axis}")
        number = source.index + 1
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=about)
    ds.SeriesNumber, ds.InstanceNumber = 9000, number  # sorts behind what scanners make
    ds.Modality, ds.ConversionType = "OT", "WSD"
    ds.Manufacturer = "oneshot-medad"
    ds.SoftwareVersions = [f"{name} {number}"[:64] for name, number in made.get("versions", {}).items()]
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.InstanceCreationDate, ds.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    ds.ContentDate, ds.ContentTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.SeriesDescription = "Anomaly heatmaps, research use only"
    ds.DerivationDescription = (
        "Image, anomaly heatmap and both blended, by one-shot anomaly detection (oneshot-medad). "
        f"Detector SHA-256 {made.get('detector_sha256', 'not known')}."
    )
    ds.ImageComments = (
        f"{NOTICE}. Raw score {predictions.scores[i]:.6g}, threshold {predictions.threshold:.6g}, "
        f"rule {made.get('threshold_rule', 'not known')}."
    )
    ds.BurnedInAnnotation = "YES"
    ds.PatientOrientation = None
    if origin is not None:
        _refer(ds, origin, source)
    spacing = predictions.spacing(i)
    if spacing is not None:
        ds.PixelSpacing = [f"{value:.10g}" for value in spacing]
        _calibrate(ds, origin, spacing)
    _put_pixels(ds, np.asarray(capture_picture(predictions, i)))
    ds.save_as(path, enforce_file_format=True)


def _header(source: Any) -> Any:
    """Everything but the pixels of a DICOM file, wherever it lies; None for anything else."""
    from oneshot_medad.images.dicom import read_dataset

    place = source_of(source)
    file = (place.origin or (first_file(place),))[0] if isinstance(place, Slice) else place
    try:
        with reading(file):
            is_one = file is not None and format_of(file) == "dicom"
            return read_dataset(file, stop_before_pixels=True) if file is not None and is_one else None
    except ImageFileError:  # the file is gone
        return None


def _study(origin: Any) -> Any:
    """A data set with the patient and study of the source, or with a study of its own."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    ds = Dataset()
    for name in MUST_BE_THERE:
        setattr(ds, name, None)
    for name in PATIENT_AND_STUDY:
        _copy(origin, name, ds, name)
    if not ds.get("StudyInstanceUID"):
        ds.StudyInstanceUID = generate_uid()  # nothing says that two such images belong together
    return ds


def _copy(origin: Any, name: str, ds: Any, to: str) -> None:
    """Take one attribute over; one that is missing or nonsense stays as it is."""
    try:
        setattr(ds, to, origin[name].value)
    except Exception:
        return


def _refer(ds: Any, origin: Any, source: Any) -> None:
    """Name the source image and its frame, as the standard's general image module does."""
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    purpose = Dataset()
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator = code.value, code.scheme_designator
    purpose.CodeMeaning = code.meaning
    image = Dataset()
    _copy(origin, "SOPClassUID", image, "ReferencedSOPClassUID")
    _copy(origin, "SOPInstanceUID", image, "ReferencedSOPInstanceUID")
    place = source_of(source)
    if isinstance(place, Slice) and place.origin and (whole(origin, "NumberOfFrames") or 1) > 1:
        image.ReferencedFrameNumber = place.origin[1] + 1
    image.PurposeOfReferenceCodeSequence = [purpose]
    if image.get("ReferencedSOPInstanceUID"):
        ds.SourceImageSequence = [image]


def _calibrate(ds: Any, origin: Any, spacing: tuple[float, float]) -> None:
    """Say how the spacing of a radiograph, which magnifies, was found."""
    _copy(origin, "PixelSpacingCalibrationType", ds, "PixelSpacingCalibrationType")
    _copy(origin, "PixelSpacingCalibrationDescription", ds, "PixelSpacingCalibrationDescription")
    detector = None if origin is None else pair(origin, "ImagerPixelSpacing")
    if detector is not None and detector[0] > spacing[0] * 1.0001 and "PixelSpacingCalibrationType" not in ds:
        ds.PixelSpacingCalibrationType = "GEOMETRY"
        ds.PixelSpacingCalibrationDescription = f"Detector spacing divided by {detector[0] / spacing[0]:.4g}"


def _put_pixels(ds: Any, pixels: np.ndarray) -> None:
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape[:2], 3
    ds.PhotometricInterpretation, ds.PlanarConfiguration = "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
