"""The same pixels by another road: what pydicom, nibabel, tifffile and Pillow make of a file by themselves."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image, ImageOps
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

NO_PICTURES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2")
"""Segmentations and dose grids."""
TYPES = {"u1": 255.0, "u2": 65535.0, "b1": 1.0}


def dicom(path):
    """(H, W, 3) of every frame: modality and VOI by pydicom's own functions, then their range to [0, 1]."""
    ds = pydicom.dcmread(path, force=True)
    if ds.get("SOPClassUID", "").startswith(NO_PICTURES):
        raise ValueError("no picture")
    if not ds.file_meta.get("TransferSyntaxUID"):
        syntaxes = (ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian)
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = syntaxes[2 if implicit else little]
    pixels = pixel_array(ds)
    frames = pixels if int(ds.get("NumberOfFrames") or 1) > 1 else pixels[None]
    return [_dicom_frame(frame, ds) for frame in frames]


def packed(path):
    """What lies inside gzip, if that is DICOM."""
    with gzip.open(path) as file:
        return dicom(BytesIO(file.read()))


def _dicom_frame(frame, ds):
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(frame, ds)[..., :3] / 65535
    if frame.ndim == 3:
        return frame / (2.0**ds.BitsStored - 1)
    low = -(2.0 ** (ds.BitsStored - 1)) if ds.PixelRepresentation else 0.0
    ends = np.array([low, low + 2.0**ds.BitsStored - 1])
    values = apply_modality_lut(frame, ds)
    if ds.get("RescaleSlope") is not None:
        ends = ends * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    if ds.get("WindowWidth"):
        values = apply_voi_lut(values, ds)
    unit = (values - ends[0]) / (ends[1] - ends[0])
    unit = 1 - unit if ds.PhotometricInterpretation == "MONOCHROME1" else unit
    padding = ds.get("PixelPaddingValue")
    unit = unit if padding is None else np.where(frame == padding, 0, unit)
    return np.repeat(unit[..., None], 3, -1)


def volume(path):
    """(H, W, 3) of every slice across the coarsest axis of one volume, and the range that was spread over [0, 1]."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    data = image.get_fdata().reshape(image.shape[:3])
    window = float(np.nanmin(data)), float(np.nanmax(data))
    unit = (data - window[0]) / (window[1] - window[0])
    sizes = list(image.header.get_zooms()[:3])
    across = sizes.index(max(sizes)) if max(sizes) > 1.4 * sorted(sizes)[1] else 2
    slices = (np.take(unit, i, across) for i in range(data.shape[across]))
    return [np.repeat(np.rot90(one)[:, ::-1, None], 3, -1) for one in slices], window


def tiff(path):
    """(H, W, 3) of every page that is no reduced copy, as tifffile decodes it."""
    found = []
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            if not page.is_reduced:
                pixels = page.asarray()
                unit = pixels / TYPES.get(pixels.dtype.str[1:], 1.0)
                unit = 1 - unit if page.photometric == 0 else unit
                unit = np.moveaxis(unit, 0, -1) if page.planarconfig == 2 and unit.ndim == 3 else unit
                found.append(unit if unit.ndim == 3 else np.repeat(unit[..., None], 3, -1))
    return found


def picture(path):
    """(H, W, 3) of every picture as Pillow shows it, over black."""
    with Image.open(path) as file:
        deep = file.format == "PNG" and file.mode != "I;16" and str(file.tile[0][3]).endswith(";16B")
        count = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        found = []
        for i in range(count):
            file.seek(i)
            image = ImageOps.exif_transpose(file)
            if deep:
                found.append(
                    imagecodecs.png_decode(Path(path).read_bytes()) / 65535
                )  # of which Pillow keeps eight bits
            elif image.mode.startswith("I;16"):
                found.append(np.repeat((np.asarray(image) / 65535)[..., None], 3, -1))
            else:
                rgba = np.asarray(image.convert("RGBA")) / 255
                found.append(rgba[..., :3] * rgba[..., 3:])
    return found


def read(path):
    """Pictures and range of a file, by the first road that knows it; None where there is none."""
    for road in (dicom, packed, volume, tiff, picture):
        try:
            found = road(path)
        except Exception:  # of whatever kind: another road may know it
            continue
        return found if isinstance(found, tuple) else (found, None)
    return None
