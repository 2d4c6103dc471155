"""DICOM files: what they are, their frames, and how large a pixel is."""

from __future__ import annotations

import warnings
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np

from oneshot_medad.errors import ExtraError, ImageFileError, ImageTypeError, NoPictureError
from oneshot_medad.images.codestream import codestream
from oneshot_medad.images.dicom_grey import stored_range, to_grey
from oneshot_medad.images.dicom_tables import COLOURS, read_palette
from oneshot_medad.images.dicom_values import number, pair, places, text, whole
from oneshot_medad.images.files import File, Member, content, packed
from oneshot_medad.images.formats import HEAD, is_dicom
from oneshot_medad.images.stack import Pixels, Spacing, Window, check_size, clip

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_ICT", "YBR_RCT")
"""What pixels are once they are decoded; JPEG 2000 undoes its own two."""
NO_PICTURE = ("SEG", "RTDOSE", "PR")
"""Modalities of objects that have pixels, or refer to some, and are no pictures."""
NO_PICTURE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # label map
    "1.2.840.10008.5.1.4.1.1.481.2",  # dose
    "1.2.840.10008.5.1.4.1.1.11.",  # presentation states
)
_HEADER = ["Modality", "NumberOfFrames", "SOPClassUID", "Rows", "Columns"]
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_FRAME_STARTS = (b"\xff\xd8", b"\xff\x4f")  # of JPEG and JPEG-LS, of JPEG 2000


class Dicom:
    """A DICOM file with pixels."""

    def __init__(self, file: File) -> None:
        self._file = file
        if not is_dicom(content(file, HEAD)):
            raise ImageFileError("Got no 'DICM' after the preamble; wanted a DICOM file (part 10). Export it again.")
        header = read_dataset(file, stop_before_pixels=True, specific_tags=_HEADER)
        check_size(*_size(header))
        self.axes = {"frame": whole(header, "NumberOfFrames") or 1}

    @cached_property
    def _dataset(self) -> Any:
        ds = read_dataset(self._file)
        _check_pixels(ds, self.axes["frame"])
        return ds

    @cached_property
    def _unused(self) -> tuple[int, int] | None:
        return _unused_bits(self._dataset)

    @cached_property
    def _bits(self) -> np.ndarray:
        """(frames, H, W) of one bit: frames begin within bytes, which pydicom reads rightly only all together."""
        from pydicom.pixels import pixel_array

        ds = self._dataset
        return pixel_array(ds).reshape(-1, ds.Rows, ds.Columns)

    def read(self, axis: str, index: int, window: Window) -> Pixels:
        """Frame ``index`` in [0, 1]: the first VOI LUT or window of the file, unless ``window`` is given."""
        ds = self._dataset
        if ds.get("BitsAllocated") == 1:
            values, space = self._bits[index], text(ds, "PhotometricInterpretation")
        else:
            values, space = _stored(ds, index, self._unused)
        spacing, aspect = _geometry(ds, index)
        if space in GREY and values.ndim == 2:
            values = to_grey(values, ds, index, window, space == "MONOCHROME1")
        elif space == "PALETTE COLOR" and values.ndim == 2:
            values = _palette(values, ds, window)
        elif space in COLOUR and values.ndim == 3:
            values = clip(values, window or (0.0, 2.0**ds.BitsStored - 1))
        else:
            raise ImageTypeError(
                f"Got {ds.SamplesPerPixel} samples of {space}; wanted grey, RGB, YBR_FULL or a palette. Export RGB."
            )
        return Pixels(values, (0.0, 1.0), None, spacing, aspect)


def read_dataset(file: File, **options: Any) -> Any:
    """A DICOM file as pydicom reads it, also inside gzip or an archive, and without preamble or header.

    Raises
    ------
    ExtraError
        pydicom is not installed.
    """
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise ExtraError(f"Reading {str(file)!r} needs pydicom: pip install 'oneshot-medad[dicom]'") from error
    inside = isinstance(file, Member) or packed(file)
    ds = dcmread(BytesIO(content(file)) if inside else file, force=True, **options)
    if not ds.file_meta.get("TransferSyntaxUID"):
        ds.file_meta.TransferSyntaxUID = _plain_syntax(*ds.original_encoding)
    return ds


def _plain_syntax(implicit: bool, little: bool) -> Any:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _size(header: Any) -> tuple[int, int]:
    """Height and width of a picture; an error for objects that are none."""
    rows, columns = whole(header, "Rows"), whole(header, "Columns")
    modality, uid = text(header, "Modality").upper(), text(header, "SOPClassUID")
    modality = modality if modality.isalnum() else "no modality"
    name = header.SOPClassUID.name if uid else "an unknown object"
    lacks = rows is None or columns is None
    if modality in NO_PICTURE or uid.startswith(NO_PICTURE_CLASSES) or (lacks and "Image Storage" not in name):
        raise NoPictureError(
            f"Got a DICOM file without a picture ({modality}, {name}); wanted an image. Pass the images that it "
            "belongs to.",
            modality,
        )
    if rows is None or columns is None:
        raise ImageFileError(
            f"Got a DICOM file without pixels ({name}, no usable Rows and Columns); wanted an image. Export it again."
        )
    return rows, columns


def _check_pixels(ds: Any, frames: int) -> None:
    """Refuse pixels that are missing, or more than the header says; pydicom refuses those that are too few."""
    name = next((name for name in _PIXELS if name in ds), _PIXELS[0])
    data = ds[name].value if name in ds else None
    if not data:
        raise ImageFileError("Got a DICOM file with rows and columns but no pixel data; wanted both. Export it again.")
    if whole(ds, "NumberOfFrames") is None and "NumberOfFrames" in ds:
        del ds.NumberOfFrames
    syntax = ds.file_meta.TransferSyntaxUID
    if ds[name].is_undefined_length or syntax.is_encapsulated:
        _check_frames(ds, data, frames)
    else:
        _check_length(ds, data, frames)


def _check_frames(ds: Any, data: bytes, frames: int) -> None:
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        raise ImageFileError(
            f"Got compressed pixels and the transfer syntax {syntax.name}; wanted one that names them."
        )
    fragments = _fragments(data)
    starts = fragments if "RLE" in syntax.name else [one for one in fragments if one[:2] in _FRAME_STARTS]
    if len(starts) > frames:
        raise ImageFileError(f"Got {len(starts)} compressed frames; wanted {frames}, as the header says.")
    for found in filter(None, map(codestream, starts)):
        if found.height not in (0, ds.Rows) or found.width != ds.Columns:
            raise ImageFileError(
                f"Got compressed pixels of {found.height} x {found.width}; wanted {ds.Rows} x {ds.Columns}, as the "
                "header says. Correct it, or export it again."
            )


def _check_length(ds: Any, data: bytes, frames: int) -> None:
    from pydicom.pixels.utils import get_expected_length

    wanted = get_expected_length(ds)
    excess = len(data) - wanted
    if excess <= 1:
        return
    said = f"Got {len(data)} bytes of pixels; wanted {wanted} for {ds.Rows} x {ds.Columns} pixels, {frames} frame(s)"
    if data.count(b"\0", wanted) < excess:
        raise ImageFileError(f"{said}. Correct the header, or export it again.")
    if excess >= wanted // (frames * ds.Rows):  # a row or more of nothing
        warnings.warn(f"{said}. The rest is zero and left out.", stacklevel=2)


def _stored(ds: Any, index: int, unused: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """Stored values of a frame without unused bits, and their colour space; YBR_FULL becomes RGB."""
    from pydicom.pixels import get_decoder

    decoder = get_decoder(ds.file_meta.TransferSyntaxUID)
    try:
        values, found = decoder.as_array(ds, index=index, **({"correct_unused_bits": False} if unused else {}))
    except BaseException as error:  # decoders written in Rust panic
        if decoder.is_native or isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ImageFileError(
            f"Got {decoder.UID.name} pixels, which cannot be decoded to {ds.Rows} x {ds.Columns}; wanted a whole "
            f"frame. Export it again, for example without compression. The decoder says: {error}"
        ) from error
    if unused:
        above, below = unused
        values = (values << above) >> (above + below)  # in their type, which keeps the sign
    return values, str(found["photometric_interpretation"])


def _unused_bits(ds: Any) -> tuple[int, int] | None:
    """How many bits above and below the stored ones belong to something else, such as overlays of old files."""
    stored, allocated, high = whole(ds, "BitsStored"), whole(ds, "BitsAllocated"), whole(ds, "HighBit")
    if "PixelData" not in ds or stored is None or allocated is None or "YBR" in text(ds, "PhotometricInterpretation"):
        return None
    syntax = ds.file_meta.TransferSyntaxUID
    first = codestream(_fragments(ds.PixelData)[0]) if syntax.is_encapsulated else None
    used = allocated if first is None else first.bits  # what a codec gives lies at the lower end
    if high is None or not stored <= high + 1 <= used:
        high = stored - 1
    return (allocated - 1 - high, high + 1 - stored) if stored < used <= allocated else None


def _fragments(data: bytes) -> list[bytes]:
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    stream = BytesIO(data)
    parse_basic_offsets(stream)
    return list(generate_fragments(stream)) or [b""]


def _palette(values: np.ndarray, ds: Any, window: Window) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] through the tables of the file."""
    from pydicom.pixels import apply_color_lut

    palette = read_palette(ds, stored_range(ds)[1])
    if palette is not None:
        tables, highest = palette
        return clip(np.stack([table(values) for table in tables], -1), window or (0.0, highest))
    if f"Segmented{COLOURS[0]}PaletteColorLookupTableData" not in ds:
        raise ImageFileError("Got a palette without usable tables of red, green and blue; wanted all. Export RGB.")
    coloured = apply_color_lut(values.astype(np.int64), ds)[..., :3]
    if coloured.dtype == np.uint8 and values.max() > 255:  # pydicom would wrap around
        raise ImageTypeError("Got a palette of 8 bits with more than 256 entries; wanted 16 bits. Export RGB.")
    return clip(coloured, window or (0.0, float(np.iinfo(coloured.dtype).max)))


def _geometry(ds: Any, frame: int) -> tuple[Spacing, float]:
    """Height and width of a pixel in mm, where the patient is, if known; and their ratio, 1 if unknown."""
    spacing = _first_pair(ds, frame, "PixelMeasuresSequence", "PixelSpacing")
    detector = _first_pair(ds, frame, "FramePixelDataPropertiesSequence", "ImagerPixelSpacing")
    if spacing is None or (spacing == detector and not text(ds, "PixelSpacingCalibrationType")):
        spacing = detector or pair(ds, "NominalScannedPixelSpacing")
        factor = number(ds, "EstimatedRadiographicMagnificationFactor")
        far, near = number(ds, "DistanceSourceToDetector"), number(ds, "DistanceSourceToPatient")
        if factor is None and far and near:
            factor = far / near
        if spacing is not None and factor is not None and factor >= 1:
            spacing = spacing[0] / factor, spacing[1] / factor
    height, width = spacing or pair(ds, "PixelAspectRatio") or (1.0, 1.0)
    return spacing, height / width


def _first_pair(ds: Any, frame: int, sequence: str, name: str) -> Spacing:
    return next((found for item in places(ds, frame, sequence) if (found := pair(item, name))), None)
