"""The format of a file: by its content, whatever its name; by its name where the content says nothing."""

from __future__ import annotations

import re
import struct
from pathlib import PurePath

from oneshot_medad.images.files import File, content

RASTER = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif")
TIFF = (".tif", ".tiff")
DICOM = (".dcm", ".dicom", ".ima")
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*RASTER, *TIFF, *DICOM, *NIFTI)
READ = "PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM, NIfTI (.nii, .nii.gz, .hdr with .img) or a zip archive of them"
"""Every format that is read, for messages."""

NO_SUFFIX = "no suffix"
HEAD = 4096
"""Bytes at the beginning of a file that say what it is."""
_SUFFIXES_OF = {"raster": RASTER, "tiff": TIFF, "dicom": DICOM, "nifti": NIFTI, "zip": (".zip",)}
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "raster",
    b"\xff\xd8\xff": "raster",
    b"GIF8": "raster",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SHORT = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
_OTHERS = (
    ("a NumPy file", ".npy .npz", (b"\x93NUMPY",), "Pass the array itself: numpy.load(...)"),
    (
        "a volume of another format",
        ".mha .mhd .nrrd .nhdr .mgz .mgh .mnc .par .rec .head .brik .brik.gz .v .vti",
        (b"NRRD", b"ObjectType", b"NDims", b"CDF\1"),
        "Save it as .nii.gz, for example with 3D Slicer or SimpleITK",
    ),
    ("one half of a pair", ".img .img.gz", (), "Pass the .hdr beside it"),
    (
        "something compressed",
        ".gz .bz2 .xz .zst .tar .tgz .7z .rar",
        (b"PK\3\4", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
        "Unpack it first",
    ),
    (
        "a picture of another format",
        ".heic .heif .avif .jp2 .j2k .jxl .jxr .psd .svg .pdf .ppm .pgm .pbm .tga .ico .eps .exr",
        (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51", b"\xff\x0a", b"8BPS", b"%PDF", b"P4", b"P5", b"P6", b"<svg", b"v/1\1"),
        "Save it as PNG or TIFF",
    ),
    ("a film", ".mp4 .avi .mov .mkv .webm .wmv .mpg .mpeg", (b"\x1aE\xdf\xa3",), "Save its frames as PNG"),
    (
        "a container of arrays",
        ".mat .h5 .hdf5 .hdf .pt .pth .pkl .parquet",
        (b"\x89HDF", b"MATLAB", b"PAR1"),
        "Pass the pixels as a NumPy array",
    ),
)
"""What is not read: its name, the suffixes that it goes by, how it begins, and the way to something that is read."""


def format_of(file: File) -> str:
    """``"dicom"``, ``"nifti"``, ``"analyze"``, ``"tiff"``, ``"raster"``, ``"zip"``, or empty for anything else."""
    name = str(file).lower()
    if name.endswith(".zip"):
        return "zip"
    head = content(file, HEAD)
    known = _of_content(head)
    if known or any(head.startswith(begins) for _, _, begins, _ in _OTHERS):
        return known
    return next((what for what, suffixes in _SUFFIXES_OF.items() if name.endswith(suffixes)), "")


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM: by its mark, or because data elements begin at once."""
    return head[128:132] == b"DICM" or _has_elements(head, "<") or _has_elements(head, ">")


def unknown(file: File) -> str:
    """Why a file of a format that is not read is refused, and what to do."""
    name = str(file).lower()
    head = content(file, HEAD)
    named = [other for other in _OTHERS if name.endswith(tuple(other[1].split()))]
    for what, _, _, way in named or [other for other in _OTHERS if head.startswith(other[2])]:
        return f"Got {what} ({label(file)}), no image of a known format; wanted {READ}. {way}."
    return f"Got content that is no image of a known format; wanted {READ}. Check the file."


def label(file: File) -> str:
    """What to call the format of a file that is not read: its suffix, if that is one."""
    suffixes = [suffix.lower() for suffix in PurePath(file.name).suffixes[-2:]]
    if suffixes and suffixes[-1] not in (".gz", ".bz2", ".xz", ".zst"):
        suffixes = suffixes[-1:]
    suffixes = [suffix for suffix in suffixes if re.fullmatch(r"\.\w{0,7}[a-z]\w{0,7}", suffix, re.ASCII)]
    return "".join(suffixes) or NO_SUFFIX


def _of_content(head: bytes) -> str:
    if is_dicom(head):  # first: its preamble may be that of a TIFF
        return "dicom"
    bmp = head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    if bmp or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "raster"
    sizes = [int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")]
    if 348 in sizes and len(head) >= 348:
        return "nifti" if head[344:348] in (b"n+1\0", b"ni1\0") else "analyze"
    if 540 in sizes and head[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")


def _has_elements(head: bytes, order: str) -> bool:
    """Whether data elements of group 2 or 8 follow each other from the first byte, as in files from before part 10."""
    at, last, found = 0, (0, 0), 0
    while at + 12 <= len(head) and found < 3:
        tag = struct.unpack_from(order + "HH", head, at)
        vr = head[at + 4 : at + 6]
        if vr in _SHORT:
            size, length = 8, struct.unpack_from(order + "H", head, at + 6)[0]
        elif vr in _LONG:
            size, length = 12, struct.unpack_from(order + "I", head, at + 8)[0]
        else:
            size, length = 8, struct.unpack_from(order + "I", head, at + 4)[0]
        if tag <= last or (found == 0 and tag[0] not in (2, 8)) or length % 2 or length > HEAD:
            return False
        at, last, found = at + size + length, tag, found + 1
    return found >= 2
