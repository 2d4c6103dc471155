"""Predictions of any number of images in one folder, in steps of which none is left half done.

A step is a chunk of images, or the slices of a volume. Its heatmaps are written first, then its audit records and the
line of its volume, and last its rows in the table: these say that it is done. What a run left of a step when it was
stopped is dropped by the next one, and the whole step is done again, in the same batches and under the same numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_medad._listing import append, drop, first_cell, lines, record_of, recorded_name, table
from oneshot_medad._names import cell, file_name, written
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.export import FORMATS
from oneshot_medad.images.files import File, Slice
from oneshot_medad.images.open import open_stack

TABLE, AUDIT, VOLUMES = "scores.csv", "audit.jsonl", "volumes.csv"
COLUMNS, VOLUME_COLUMNS = ("name", "verdict", "reason", "threshold", "heatmap"), ("name", "score", "heatmap")
PICTURED = ("normal", "uncertain", "abnormal")
"""Verdicts of images that have a heatmap."""

_NUMBER = re.compile(r"\w+[/\\](\d+)-")
_ADDRESS = re.compile(r"(.+)\[(axial|coronal|sagittal) (\d+)\]", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """Images that are predicted together; ``volume`` is the file and axis that all of them are slices of, if any."""

    sources: list[Any]
    volume: tuple[File, str] | None = None


class Run:
    """Predict images into a folder, except those that it lists already: iterate over it.

    Parameters
    ----------
    detector
        A fitted detector.
    sources
        Entries of `images.expand`; what is given twice is taken once.
    out
        The folder, which exists.
    form
        Format of the heatmaps; None writes none.
    chunk
        Images that are held in memory at a time; a volume is held as a whole.

    Attributes
    ----------
    sources
        Each once.
    table
        The file that lists them.
    listed
        Rows in it.

    Raises
    ------
    ConfigError
        The folder holds what another detector found.
    """

    def __init__(self, detector: Any, sources: Iterable[Any], out: Path, form: str | None, chunk: int) -> None:
        self.detector, self.out, self.form = detector, out, form
        self.table, self.audit, self.volumes = (out / name for name in (TABLE, AUDIT, VOLUMES))
        self.sources = list({_key(source): source for source in sources}.values())
        rows, complete = self._rows()
        volumes = {row["name"]: row["heatmap"] for row in table(self.volumes, VOLUME_COLUMNS)}
        steps = _steps(self.sources, chunk, rows)
        self.steps = [step for step in steps if not self._is_done(step, complete, volumes)]
        again = {_key(source) for step in self.steps for source in step.sources}
        drop(self.table, again, first_cell, header=1)
        drop(self.audit, again, recorded_name)
        rows = {name: path for name, path in rows.items() if name not in again}
        again = {_volume_name(step.volume) for step in self.steps if step.volume} if volumes else set()
        drop(self.volumes, again, first_cell, header=1)
        volumes = {name: path for name, path in volumes.items() if name not in again}
        numbers = [int(found[1]) for path in (*rows.values(), *volumes.values()) if (found := _NUMBER.match(path))]
        self.listed, self._number = len(rows), max([len(rows), *(number + 1 for number in numbers)])

    def __len__(self) -> int:
        """Images still to do."""
        return sum(len(step.sources) for step in self.steps)

    def __iter__(self) -> Iterator[int]:
        """Do the steps; gives the number of images of each."""
        for step in self.steps:
            self._do(step)
            yield len(step.sources)

    def rows(self) -> Iterator[dict[str, str]]:
        """The table's rows of all images of this run."""
        wanted = set(map(_key, self.sources))
        for row in table(self.table, COLUMNS):
            if row["name"] in wanted:
                yield row

    def _rows(self) -> tuple[dict[str, str], set[str]]:
        """Heatmaps by name of all rows, and the names of those that lack nothing of what is wanted now."""
        recorded = set()
        for record in filter(None, map(record_of, lines(self.audit))):
            if record.get("detector_sha256") != self.detector.fingerprint_:
                raise ConfigError(f"{self.audit} is of another detector. Give another --out.")
            recorded.add(cell(record["name"]))
        rows, complete = {}, set()
        for row in table(self.table, COLUMNS):
            name, heatmap = row["name"], row["heatmap"]
            if row["threshold"] != str(self.detector.threshold_):
                raise ConfigError(
                    f"{self.table} holds the scores of a detector with another threshold. Give another --out."
                )
            rows[name] = heatmap
            if name in recorded and (row["verdict"] not in PICTURED or self._is_there(heatmap)):
                complete.add(name)
        return rows, complete

    def _is_there(self, heatmap: str, suffix: str | None = None) -> bool:
        """Whether the heatmap of a row is the file that is wanted, if one is wanted."""
        return self.form is None or (heatmap.endswith(suffix or FORMATS[self.form]) and (self.out / heatmap).is_file())

    def _is_done(self, step: Step, complete: set[str], volumes: dict[str, str]) -> bool:
        if not all(_key(source) in complete for source in step.sources):
            return False
        if step.volume is None:
            return True
        name = _volume_name(step.volume)
        return name in volumes and self._is_there(volumes[name], ".nii.gz")

    def _do(self, step: Step) -> None:
        predictions, start = self.detector.predict(step.sources, on_error="record"), self._number
        rows = predictions.to_rows()
        self._check_columns([*rows[0], "heatmap"])
        files: Sequence[Path | None] = [None] * len(rows)
        if self.form is not None:
            files = predictions.save_heatmaps(self.out / "heatmaps", start, self.form)
        volumes = self._save_volumes(step.volume, predictions, start) if step.volume else []
        predictions.to_jsonl(self.audit)
        append(self.volumes, volumes)
        append(
            self.table,
            [
                {**row, "name": cell(row["name"]), "heatmap": str(file.relative_to(self.out)) if file else ""}
                for row, file in zip(rows, files, strict=True)
            ],
        )
        self.listed, self._number = self.listed + len(rows), start + len(rows)

    def _check_columns(self, wanted: list[str]) -> None:
        found = next(lines(self.table), "")
        if found and next(csv.reader([found])) != wanted:
            raise ConfigError(
                f"{self.table} has the columns {found.strip()}; wanted {','.join(wanted)}. Give another --out."
            )

    def _save_volumes(self, volume: tuple[File, str], predictions: Any, start: int) -> list[dict[str, Any]]:
        """Write the heatmap of a volume on its own grid; its line for `VOLUMES`."""
        try:
            (found,) = predictions.volumes()
        except ImageError:  # its slices say why
            return []
        path = self.out / "volumes" / file_name(start, Path(found.name).name.split(".")[0], ".nii.gz")
        if self.form is not None:
            path.parent.mkdir(exist_ok=True)
            found.save(path)
        heatmap = "" if self.form is None else str(path.relative_to(self.out))
        return [dict(zip(VOLUME_COLUMNS, (_volume_name(volume), found.score, heatmap), strict=True))]


def _key(source: Any) -> str:
    """What an image is called in the table."""
    return cell(written(str(source)))


def _volume_name(volume: tuple[File, str]) -> str:
    """What a volume is called in `VOLUMES`: by its file, and by its axis too if that is not the file's first."""
    file, axis = volume
    try:
        first = next(iter(open_stack(file).axes))
    except ImageError:  # gone meanwhile
        first = axis
    return _key(file if axis == first else f"{file}[{axis}]")


def _steps(sources: Sequence[Any], chunk: int, listed: Iterable[str]) -> Iterator[Step]:
    """Slices of one volume together, with those that are listed already; other images by ``chunk``."""
    earlier: dict[tuple[str, str], list[int]] = {}
    for name in listed:
        if found := _ADDRESS.fullmatch(name):
            earlier.setdefault((found[1], found[2]), []).append(int(found[3]))
    volumes: dict[tuple[File, str], dict[Slice, None]] = {}
    for source in sources:
        if (volume := _volume_of(source)) is not None:
            volumes.setdefault(volume, {})[source] = None
    for (file, axis), slices in volumes.items():
        slices |= {Slice(file, axis, index): None for index in earlier.get((_key(file), axis), [])}
    others: list[Any] = []
    for source in sources:
        volume = _volume_of(source)
        if volume is None:
            others.append(source)
        if others and (volume is not None or len(others) == chunk):
            yield Step(others)
            others = []
        if volume in volumes:
            yield Step(list(volumes.pop(volume)), volume)
    if others:
        yield Step(others)


def _volume_of(source: Any) -> tuple[File, str] | None:
    return (source.path, source.axis) if isinstance(source, Slice) and source.axis != "frame" else None
