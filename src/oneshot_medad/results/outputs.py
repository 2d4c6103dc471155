"""The folder of a run: what it lists, and what is written next."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_medad._listing import append, drop, first_cell, lines, record_of, recorded_name, rows_of, write_rows
from oneshot_medad._names import cell, file_name
from oneshot_medad.errors import ConfigError
from oneshot_medad.results.heatmaps import FORMATS, form_of
from oneshot_medad.studies.volume import MAP, SEGMENTATION
from oneshot_medad.verdicts import JUDGED

TABLE, AUDIT, VOLUMES = "scores.csv", "audit.jsonl", "volumes.csv"
HEATMAPS, OF_VOLUMES, OVERLAYS = "heatmaps", "volumes", "overlays"
COLUMNS = ("name", "verdict", "flag", "reason", "threshold", "heatmap")
"""Those that are read again."""
VOLUME_COLUMNS = ("name", "score", "threshold", "heatmap")

ASIDE = ".aside"
"""Suffix of heatmaps that wait for another number."""

_NUMBER = re.compile(r"\w+[/\\](\d+)-")


@dataclass
class Made:
    """What was written of an image or a volume, until it is written again.

    ``heatmap`` and ``overlay`` are where its files wait.
    """

    row: dict[str, Any]
    record: str = ""
    heatmap: Path | None = None
    overlay: Path | None = None


class Outputs:
    """Tables and heatmaps of a run.

    Parameters
    ----------
    out
        The folder, which exists.
    form
        Format of the heatmaps that are wanted; None wants none.
    detector
        The fitted detector that all of it must be of.
    overlays
        Whether pictures beside the heatmaps are wanted.

    Attributes
    ----------
    table
        The file that lists the images.
    heatmaps, volumes
        Path of the heatmap of every image and every volume that is listed, by name.
    complete
        Names of the images that lack nothing of what is wanted.

    Raises
    ------
    ConfigError
        The folder holds what another detector found, or tables of another kind.
    """

    def __init__(self, out: Path, form: str | None, detector: Any, overlays: bool = False) -> None:
        self.out, self.form, self.overlays = out, form, overlays
        self.table, self._audit, self._volumes = (out / name for name in (TABLE, AUDIT, VOLUMES))
        for folder in (HEATMAPS, OF_VOLUMES, OVERLAYS):
            for path in out.glob(f"{folder}/.*{ASIDE}"):
                path.unlink()  # by a run that was stopped
        recorded = set()
        for record in filter(None, map(record_of, lines(self._audit))):
            if record.get("detector_sha256") != detector.fingerprint_:
                raise ConfigError(f"{self._audit} is of another detector. Give another --out.")
            recorded.add(cell(record["name"]))
        self.heatmaps: dict[str, str] = {}
        self.complete: set[str] = set()
        for row in rows_of(self.table, COLUMNS):
            if row["threshold"] != str(detector.threshold_):
                raise ConfigError(
                    f"{self.table} holds the scores of a detector with another threshold. Give another --out."
                )
            self.heatmaps[row["name"]] = row["heatmap"]
            if row["name"] in recorded and (row["verdict"] not in JUDGED or self._is_there(row["heatmap"])):
                self.complete.add(row["name"])
        self.volumes: dict[str, str] = {}
        self._unjudged = set()
        own = detector.calibration_["volumes"]
        limit = str(own["threshold"] if own else detector.threshold_)
        for row in rows_of(self._volumes, VOLUME_COLUMNS):
            if row["threshold"] != limit:
                raise ConfigError(f"{self._volumes} holds volumes judged by another threshold. Give another --out.")
            self.volumes[row["name"]] = row["heatmap"]
            if not row["score"]:
                self._unjudged.add(row["name"])

    def has_volume(self, name: str) -> bool:
        """Whether a volume is listed, with its heatmap if one is wanted and any slice was judged."""
        return name in self._unjudged or (name in self.volumes and self._is_there(self.volumes[name], ".nii.gz"))

    def _is_there(self, heatmap: str, suffix: str | None = None) -> bool:
        if self.form is None:
            return True
        path, right = self.out / heatmap, heatmap.endswith(suffix) if suffix else form_of(heatmap) == self.form
        if self.overlays and not suffix and not self.overlay_of(heatmap).is_file():
            return False
        return right and path.is_file() and path.stat().st_size > 0

    def overlay_of(self, heatmap: str) -> Path:
        """Where the picture lies that belongs to the heatmap of an image."""
        name = Path(heatmap).name
        return self.out / OVERLAYS / (name.removesuffix(FORMATS.get(str(form_of(name)), "")) + FORMATS["overlay"])

    def take_off(self, images: set[str], volumes: set[str], kept: set[str]) -> dict[str, Made]:
        """Take images and volumes off the lists, and their heatmaps away; what was made of ``kept`` comes back by name.

        Heatmaps go before the rows that say they are there.
        """
        rows = [row for row in self.rows() if row["name"] in images]
        rows += [row for row in rows_of(self._volumes, VOLUME_COLUMNS) if row["name"] in volumes]
        made = {row["name"]: Made(row) for row in rows if row["name"] in kept}
        for line in lines(self._audit) if made else ():
            if (name := recorded_name(line)) in made:
                made[str(name)].record = line
        for number, row in enumerate(rows):
            path = self.out / row["heatmap"]
            if path.parent not in (self.out / HEATMAPS, self.out / OF_VOLUMES) or not path.is_file():
                continue
            overlay = self.overlay_of(path.name)
            if row["name"] in made:
                made[row["name"]].heatmap = path.rename(path.with_name(f".{number}{ASIDE}"))
                if path.parent.name == HEATMAPS and overlay.is_file():
                    made[row["name"]].overlay = overlay.rename(overlay.with_name(f".{number}{ASIDE}"))
            elif self.form is not None and form_of(path.name) in (self.form, "nifti"):
                path.unlink()
                if path.parent.name == HEATMAPS:
                    overlay.unlink(missing_ok=True)
                for suffix in (MAP, SEGMENTATION):
                    stem = path.name.removesuffix(".nii.gz").removesuffix(".dcm")
                    path.with_name(stem + suffix).unlink(missing_ok=True)
        drop(self.table, images, first_cell, header=1)
        drop(self._audit, images, recorded_name)
        drop(self._volumes, volumes, first_cell, header=1)
        self.heatmaps = {name: path for name, path in self.heatmaps.items() if name not in images}
        self.volumes = {name: path for name, path in self.volumes.items() if name not in volumes}
        return made

    def next_number(self) -> int:
        """A number that no heatmap has, whichever commands wrote here; in a new folder they count the images."""
        paths = (*self.heatmaps.values(), *self.volumes.values())
        return max([len(self.heatmaps), *(int(found[1]) + 1 for path in paths if (found := _NUMBER.match(path)))])

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Refuse to go on in a table of other columns."""
        found = next(lines(self.table), "")
        if found and next(csv.reader([found])) != [*wanted]:
            raise ConfigError(
                f"{self.table} has the columns {found.strip()}; wanted {','.join(wanted)}. Give another --out."
            )

    def write(self, rows: Sequence[dict[str, Any]], records: Sequence[str], volumes: Sequence[dict[str, Any]]) -> None:
        """Add what a step made, its rows last: they say that the rest is there."""
        append(self._audit, "".join(records))
        write_rows(self._volumes, volumes)
        write_rows(self.table, rows)

    def put(self, one: Made, number: int, name: str) -> dict[str, Any]:
        """Give the heatmap of what was made another number; its row."""
        if one.heatmap is None:
            return one.row
        suffix = FORMATS[str(form_of(one.row["heatmap"]))]
        path = one.heatmap.rename(one.heatmap.with_name(file_name(number, name, suffix)))
        if one.overlay is not None:
            one.overlay.rename(self.overlay_of(path.name))
        return {**one.row, "heatmap": self.relative(path)}

    def rows(self) -> Iterator[dict[str, str]]:
        """All rows of the table."""
        return rows_of(self.table, COLUMNS)

    def volume_rows(self) -> Iterator[dict[str, str]]:
        """All rows of the table of volumes."""
        return rows_of(self._volumes, VOLUME_COLUMNS)

    def relative(self, path: Path | None) -> str:
        """A path as the tables hold it."""
        return "" if path is None else str(path.relative_to(self.out))
