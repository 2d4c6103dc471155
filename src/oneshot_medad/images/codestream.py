"""What the header of compressed pixels says."""

from __future__ import annotations

from dataclasses import dataclass

LOSSLESS = 0xF7
"""Marker of JPEG-LS."""
_NO_SAMPLES = (0xC4, 0xC8, 0xCC)
"""Markers of JPEG between those that begin a picture, with another meaning."""


@dataclass(frozen=True)
class Codestream:
    """One compressed picture.

    Attributes
    ----------
    process
        Of JPEG, from 0 (baseline); None for JPEG-LS and JPEG 2000.
    bits
        A sample.
    height, width
        In pixels; a height of 0 is told at the end of the picture.
    """

    process: int | None
    bits: int
    height: int
    width: int


def codestream(data: bytes) -> Codestream | None:
    """The header of JPEG, JPEG-LS and JPEG 2000 pixels; None for anything else."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) > 42:
        right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
        return Codestream(None, (data[42] & 0x7F) + 1, bottom - top, right - left)
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        marker = data[at + 1]
        if marker == LOSSLESS or (0xC0 <= marker <= 0xCF and marker not in _NO_SAMPLES):
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 5, at + 7))
            return Codestream(None if marker == LOSSLESS else marker - 0xC0, data[at + 4], height, width)
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
