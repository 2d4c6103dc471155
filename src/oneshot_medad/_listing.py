"""Files that a run adds lines to, and what the next one keeps of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from oneshot_medad._names import cell
from oneshot_medad.errors import ConfigError


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; one that dies lets go of it.

    Raises
    ------
    ConfigError
        Another run writes to it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"Another run writes to {out}. Wait for it, or give another --out.") from error
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def lines(path: Path) -> Iterator[str]:
    """Lines of a file, if it is there, without a last one that was not finished."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from (line for line in file if line.endswith("\n"))


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file, if it is there."""
    reader = csv.reader(lines(path))
    header = next(reader, list(columns))
    if not {*columns} <= {*header}:
        raise ConfigError(f"{path} has the columns {','.join(header)}; wanted {','.join(columns)}. Give another --out.")
    return (dict(zip(header, row, strict=True)) for row in reader if len(row) == len(header))


def first_cell(line: str) -> str:
    """The name in a line of a table."""
    return (next(csv.reader([line]), None) or [""])[0]


def record_of(line: str) -> dict[str, Any] | None:
    """The audit record in a line; None for anything else."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("name"), str) else None


def recorded_name(line: str) -> str | None:
    """What the record in a line calls its image, as a table has it."""
    record = record_of(line)
    return None if record is None else cell(record["name"])


def drop(path: Path, names: Collection[str], name_of: Callable[[str], str | None], header: int = 0) -> None:
    """Take the lines of some names out of a file, and a last line that was not finished, in one step.

    A file of which nothing remains but its ``header`` lines is removed.
    """
    if not path.exists():
        return

    def kept() -> Iterator[bytes]:
        for number, line in enumerate(lines(path)):
            if number < header or name_of(line) not in names:
                yield line.encode()

    sizes = list(map(len, kept()))
    if len(sizes) <= header:
        path.unlink()
    elif sum(sizes) != path.stat().st_size:
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            file.writelines(kept())
        part.replace(path)


def append(path: Path, text: str) -> None:
    """Add text to a file at once."""
    with path.open("ab") as file:
        file.write(text.encode())


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a CSV file at once."""
    if not rows:
        return
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    if not path.exists():
        writer.writeheader()
    writer.writerows(rows)
    append(path, text.getvalue())
