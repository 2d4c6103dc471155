"""DICOM series of a volume of one's own, in files of random names or in one enhanced file."""

import random

import numpy as np
from dicom_files import dataset, write_dicom
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, generate_uid

STUDY, SERIES, FRAME = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2", "1.2.826.0.1.3680043.8.498.3"
AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)


def write_series(folder, planes, *, orientation=AXIAL, spacing=(2.0, 1.0), step=3.0, start=(0, 0, 0), **attributes):
    """Files of (N, H, W) stored values, ``step`` mm (or a vector) apart along the normal; their paths in that order.

    ``each`` gives further attributes by position.
    """
    folder.mkdir(parents=True, exist_ok=True)
    each = attributes.pop("each", lambda _: {})
    about = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SeriesNumber": 2,
        "FrameOfReferenceUID": FRAME,
        "PatientID": "P-7",
        "PatientName": "Test^Case",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "",
        "Manufacturer": "Test",
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PixelSpacing": list(spacing),
        "ImageOrientationPatient": list(orientation),
        **attributes,
    }
    across = np.cross(orientation[:3], orientation[3:]) * step if np.ndim(step) == 0 else np.array(step)
    names = random.Random(0).sample(range(10_000), len(planes))
    paths = []
    for place, plane in enumerate(planes):
        own = {"ImagePositionPatient": [float(v) for v in np.array(start) + place * across]}
        own |= {"InstanceNumber": len(planes) - place, "SOPInstanceUID": generate_uid()} | each(place)
        paths.append(write_dicom(folder / f"{names[place]:08d}", plane, **{**about, **own}))
    return paths


def write_enhanced(
    path, planes, *, orientation=AXIAL, spacing=(2.0, 1.0), step=3.0, start=(0, 0, 0), order=None, **attributes
):
    """One file with a frame per plane, in the given order of places."""
    order = range(len(planes)) if order is None else order
    across = np.cross(orientation[:3], orientation[3:]) * step
    frames = [
        dataset(
            PlanePositionSequence=[dataset(ImagePositionPatient=[float(v) for v in np.array(start) + place * across])],
            FrameContentSequence=[dataset(StackID="1", InStackPositionNumber=place + 1)],
        )
        for place in map(int, order)
    ]
    shared = dataset(
        PlaneOrientationSequence=[dataset(ImageOrientationPatient=list(orientation))],
        PixelMeasuresSequence=[dataset(PixelSpacing=list(spacing), SliceThickness=step)],
    )
    about = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "FrameOfReferenceUID": FRAME, "Modality": "CT"}
    return write_dicom(
        path,
        np.stack([planes[place] for place in map(int, order)]),
        SOPClassUID=EnhancedCTImageStorage,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
        **about,
        **attributes,
    )
