"""Names of files in tables, on screens and in the names of other files, whatever characters they hold."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

MAX_BYTES = 255
"""Of a file's name, on nearly every file system."""

_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4})")
_FORMULA = "=+-@＝＋－＠"
"""What spreadsheets take for the beginning of a formula."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def printable(text: str) -> str:
    r"""The text with bytes that are no UTF-8 as ``\xfc``, and control characters and line breaks as ``\u000a``.

    Examples
    --------
    >>> printable("M\udcfcller\n")
    'M\\xfcller\\u000a'
    """
    return "".join(_visible(c) for c in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    # Python's names for bytes of a file name that its encoding cannot hold
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def written(name: str) -> str:
    r"""A name as tables, records and reports hold it: one printable line, different for different names.

    It is the name itself unless that holds what `printable` must write otherwise, or what looks so already: then its
    backslashes are doubled too.

    Examples
    --------
    >>> written("影 =1,2.png"), written("a\\b\n.png")
    ('影 =1,2.png', 'a\\\\b\\u000a.png')
    """
    if name == printable(name) and not _ESCAPE.search(name):
        return name
    return printable(name.replace("\\", "\\\\"))


def cell(name: str) -> str:
    """A written name that no spreadsheet computes; the path ``./=1`` is the path ``=1``.

    Examples
    --------
    >>> cell("=1+1.png"), cell("-2"), cell("scans/=1.png")
    ('./=1+1.png', '-2', 'scans/=1.png')
    """
    return f"./{name}" if name[:1] and name[0] in _FORMULA and not _NUMBER.fullmatch(name) else name


def file_name(number: int, name: str, suffix: str) -> str:
    """The name of an output file: number, what it was made from, and suffix, cut where file systems would refuse it.

    Examples
    --------
    >>> file_name(3, "scans/t1:a.nii.gz[axial 2]", ".png")
    '00003-t1_a.nii.png'
    """
    head = f"{number:05d}-"
    stem = re.sub(r"[^\w. -]", "_", Path(name).stem).encode()
    return head + stem[: MAX_BYTES - len(head) - len(suffix)].decode(errors="ignore") + suffix
