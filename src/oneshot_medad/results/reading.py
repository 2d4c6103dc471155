"""What a reader thought of a report's verdicts: the file that it saves, as labels to calibrate on."""

from __future__ import annotations

import csv
from pathlib import Path

from oneshot_medad.errors import ConfigError

COLUMNS = ("unit", "name", "verdict", "reader", "label", "comment")
"""Of the file; ``label`` is 0 or 1, empty where the reader said nothing."""


def read_reading(path: str | Path, by: str = "image") -> tuple[list[str], list[int]]:
    r"""Images and labels of the file that a report saves with "Save what I think".

    Parameters
    ----------
    path
        The CSV file.
    by
        ``"image"`` or ``"volume"``: what was judged.

    Returns
    -------
    Names and labels, 0 for normal and 1 for abnormal, ready for `AnomalyDetector.calibrate`. What the reader left open
    is not among them.

    Raises
    ------
    ConfigError
        A file with other columns or labels, or without any of that unit.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "reading.csv")
    ...     lines = ["unit,name,verdict,reader,label,comment", "image,a.png,abnormal,disagree,0,artefact"]
    ...     _ = path.write_text("\n".join(lines))
    ...     read_reading(path)
    (['a.png'], [0])
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {*COLUMNS} <= {*(reader.fieldnames or ())}:
            raise ConfigError(
                f"{path} has the columns {','.join(reader.fieldnames or ())}; wanted {','.join(COLUMNS)}, as a report "
                "saves them."
            )
        rows = [row for row in reader if row["unit"] == by and row["label"] != ""]
    wrong = [row["label"] for row in rows if row["label"] not in ("0", "1")]
    if wrong or not rows:
        raise ConfigError(f"{path} has {wrong or 'no'} labels of {by}s; wanted 0 or 1 for at least one.")
    return [row["name"] for row in rows], [int(row["label"]) for row in rows]
