"""DICOM files with pixels of one's own, and those that pydicom ships."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

PACKAGED = Path(pydicom.__file__).parent / "data" / "test_files"


def dataset(**attributes):
    ds = pydicom.Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def table(entries, first, bits, **attributes):
    item = dataset(LUTDescriptor=[len(entries), first, bits], **attributes)
    item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return item


def write_dicom(path, pixels, syntax=ExplicitVRLittleEndian, **attributes):
    """A file of (H, W), (N, H, W) or, with ``SamplesPerPixel=3``, (H, W, 3) stored values."""
    pixels = np.asarray(pixels)
    colour = attributes.get("SamplesPerPixel", 1) == 3
    rows, columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = dataset(
        SOPClassUID=SecondaryCaptureImageStorage,
        SOPInstanceUID=meta.MediaStorageSOPInstanceUID,
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        Rows=rows,
        Columns=columns,
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=attributes.get("BitsStored", bits) - 1,
        PixelRepresentation=int(pixels.dtype.kind == "i"),
    )
    if pixels.ndim == 3 and not colour:
        ds.NumberOfFrames = len(pixels)
    order = "<" if syntax.is_little_endian else ">"
    ds.add_new("PixelData", "OW" if bits > 8 else "OB", pixels.astype(pixels.dtype.newbyteorder(order)).tobytes())
    for name, value in attributes.items():
        setattr(ds, name, value)
    if "FloatPixelData" in ds:
        del ds.PixelData
    ds.file_meta = meta
    ds.save_as(path, enforce_file_format=True)
    return path
