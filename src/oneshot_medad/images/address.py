"""Places inside a file or folder as text: ``scan.nii.gz[axial 12]``, ``scan[series 3][axial 40:80]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ADDRESS = re.compile(
    r"""(?P<path>.+?)
    (?P<series>\[series\ [\w.]+(?:\ part\ \d+)?\])?
    (?:\[(?P<axis>axial|coronal|sagittal|frame)
        (?:\ (?P<start>\d*)(?P<range>:(?P<stop>\d*)(?::(?P<step>[1-9]\d*))?)?)?
    \])?""",
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Address:
    """What a text says.

    Attributes
    ----------
    path
        Of the file or folder.
    series
        Which of its series, as in ``[series 3]``; empty for the only one.
    axis
        Along which slices are meant; None for those that were acquired.
    index
        The one slice.
    chosen
        The range of slices, end excluded; None for one slice or all of them.
    """

    path: str
    series: str
    axis: str | None
    index: int | None = None
    chosen: slice | None = None

    @classmethod
    def of(cls, text: str) -> Address | None:
        """The address in a text; None if the text is a path alone.

        Examples
        --------
        >>> Address.of("t1.nii.gz[axial 40:80]").chosen
        slice(40, 80, None)
        >>> Address.of("scan[series 3][coronal 7]")
        Address(path='scan', series='[series 3]', axis='coronal', index=7, chosen=None)
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not (found["series"] or found["axis"]):
            return None
        start, stop, step = (int(found[name]) if found[name] else None for name in ("start", "stop", "step"))
        if found["axis"] and found["start"] == "" and found["range"] is None:  # "[axial ]"
            return None
        chosen = slice(start, stop, step) if found["range"] else None
        return cls(found["path"], found["series"] or "", found["axis"], None if chosen else start, chosen)
