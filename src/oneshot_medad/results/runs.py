"""Predictions of any number of images in one folder, in steps of which none is left half done.

A step is a chunk of images, or the slices of a volume. Its heatmaps are written first, then its audit records and the
line of its volume, and last its rows in the table: these say that it is done. What a run left of a step when it was
stopped is dropped by the next one, and the whole step is done again, in the same batches and under the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from oneshot_medad._names import cell, file_name, written
from oneshot_medad.errors import ConfigError, ImageError
from oneshot_medad.images.expand import Sources, slices
from oneshot_medad.images.files import File, Series, Slice, is_part_of_volume, volumes_of
from oneshot_medad.images.open import open_stack
from oneshot_medad.images.sanity import Oddities
from oneshot_medad.results.audit import record_lines
from oneshot_medad.results.outputs import HEATMAPS, OF_VOLUMES, OVERLAYS, Outputs

Rows = list[dict[str, Any]]
Place: TypeAlias = tuple[File | Series, str]


@dataclass(frozen=True)
class Step:
    """Images that are predicted together; ``volume`` is the place and axis that all of them are slices of, if any."""

    sources: list[Any]
    volume: Place | None = None

    @property
    def names(self) -> list[str]:
        """What the tables call the images."""
        return list(map(listed_name, self.sources))


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
    overlays
        Whether to write pictures with regions beside the heatmaps.

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

    def __init__(
        self, detector: Any, sources: Iterable[Any], out: Path, form: str | None, chunk: int, overlays: bool = False
    ) -> None:
        self.detector, self.form, self._odd = detector, form, Oddities()
        self.sources = list({listed_name(source): source for source in sources}.values())
        self._outputs = outputs = Outputs(out, form, detector, overlays)
        steps = list(_steps(self.sources, chunk, outputs.heatmaps))
        done = [step for step in steps if self._is_done(step)]
        in_place = _in_place(steps, done, outputs.heatmaps)
        self.steps = steps[in_place:]
        moved = done[in_place:] if form != "dicom" else []  # captures hold their number
        images, volumes = _names(self.steps, bool(outputs.volumes))
        self._made = outputs.take_off(images, volumes, set().union(*_names(moved)))
        self.table, self.listed, self._number = outputs.table, len(outputs.heatmaps), outputs.next_number()

    def __len__(self) -> int:
        """Images still to do."""
        return sum(len(step.sources) for step in self.steps)

    def __iter__(self) -> Iterator[int]:
        """Do the steps; gives the number of images of each. What there is to warn about is said once, at the end."""
        try:
            for step in self.steps:
                rows, records, volumes = self._moved(step) if step.names[0] in self._made else self._predicted(step)
                self._outputs.write(rows, records, volumes)
                self.listed, self._number = self.listed + len(rows), self._number + len(rows)
                yield len(rows)
        finally:
            self._odd.warn(stacklevel=1)

    def rows(self) -> Iterator[dict[str, str]]:
        """The table's rows of all images of this run."""
        wanted = set(map(listed_name, self.sources))
        return (row for row in self._outputs.rows() if row["name"] in wanted)

    def volumes(self) -> list[dict[str, str]]:
        """The rows of all volumes of this run."""
        wanted = set(map(volume_name, volumes_of(self.sources)))
        return [row for row in self._outputs.volume_rows() if row["name"] in wanted]

    def _is_done(self, step: Step) -> bool:
        complete = all(name in self._outputs.complete for name in step.names)
        return complete and (step.volume is None or self._outputs.has_volume(volume_name(step.volume)))

    def _predicted(self, step: Step) -> tuple[Rows, list[str], Rows]:
        """Rows, audit records and the line of the volume of a step; its heatmaps are written."""
        out, start = self._outputs, self._number
        predictions = self.detector._predict(Sources(step.sources), "record", self._odd.see)
        rows = predictions.to_rows()
        out.check_columns([*rows[0], "heatmap"])
        files: list[Path | None] = [None] * len(rows)
        if self.form is not None:
            files = predictions.save_heatmaps(out.out / HEATMAPS, start, self.form)
        if self.form == "dicom":
            _objects(predictions, step.sources, files)
        if out.overlays:
            predictions.save_heatmaps(out.out / OVERLAYS, start, "overlay")
        for row, file in zip(rows, files, strict=True):
            row |= {"name": cell(row["name"]), "heatmap": out.relative(file)}
        volumes = self._volume(step.volume, predictions) if step.volume else []
        return rows, record_lines(predictions), volumes

    def _volume(self, volume: Place, predictions: Any) -> Rows:
        try:
            (found,) = predictions.volumes()
        except ImageError:  # its slices say why
            return []
        path = None
        judged = not np.isnan(found.score)  # if no slice is, zeros would look calm
        if self.form is not None and judged:
            path = self._outputs.out / OF_VOLUMES / file_name(self._number, _stem(volume), ".nii.gz")
            path.parent.mkdir(exist_ok=True)
            found.save(path)
            if self.form == "dicom" and isinstance(volume[0], Series):
                try:
                    found.save_objects(path.with_name(path.name.removesuffix(".nii.gz")))
                except (ConfigError, ImageError) as error:  # the NIfTI file is there
                    warnings.warn(str(error), stacklevel=2)
        return [found.to_row() | {"name": volume_name(volume), "heatmap": self._outputs.relative(path)}]

    def _moved(self, step: Step) -> tuple[Rows, list[str], Rows]:
        """The same of a step that was done before, its heatmaps under new numbers."""
        rows, records, volumes = [], [], []
        for number, source in enumerate(step.sources, self._number):
            one = self._made.pop(listed_name(source))
            rows.append(self._outputs.put(one, number, str(source)))
            records.append(one.record)
        if step.volume:
            one = self._made.pop(volume_name(step.volume))
            volumes.append(self._outputs.put(one, self._number, _stem(step.volume)))
        return rows, records, volumes


def _objects(predictions: Any, sources: Sequence[Any], captures: Sequence[Path | None]) -> None:
    """Maps and segmentations beside the captures of single DICOM images, where they can have any."""
    for i, (source, capture) in enumerate(zip(sources, captures, strict=True)):
        if capture is not None and not is_part_of_volume(source):
            with suppress(ConfigError, ImageError):  # the capture is there
                predictions.save_objects(i, capture.with_suffix(""))


def listed_name(source: Any) -> str:
    """What an image is called in the tables."""
    return cell(written(str(source)))


def volume_name(volume: Place) -> str:
    """What a volume is called in the tables: by its file, and by its axis too if that is not the file's first."""
    file, axis = volume
    try:
        first = next(iter(open_stack(file).axes))
    except ImageError:  # gone meanwhile
        first = axis
    return listed_name(file if axis == first else f"{file}[{axis}]")


def _stem(volume: Place) -> str:
    return Path(str(volume[0])).name.split(".")[0]


def _names(steps: Iterable[Step], volumes: bool = True) -> tuple[set[str], set[str]]:
    """Names of the images, and, if they are wanted, of the volumes."""
    steps = list(steps)
    images = {name for step in steps for name in step.names}
    return images, {volume_name(step.volume) for step in steps if step.volume} if volumes else set()


def _in_place(steps: Sequence[Step], done: Sequence[Step], listed: Iterable[str]) -> int:
    """How many steps are done and stand in the table before all others, in their order."""
    names = {name for step in steps for name in step.names}
    order = [name for name in listed if name in names]
    count = at = 0
    while count < len(done) and done[count] is steps[count]:
        here = steps[count].names
        if order[at : at + len(here)] != here:
            break
        count, at = count + 1, at + len(here)
    return count


def _steps(sources: Sequence[Any], chunk: int, listed: Iterable[str]) -> Iterator[Step]:
    """Slices of one volume together, in their order, with those that are listed already; other images by ``chunk``."""
    earlier = set(listed)
    volumes: dict[Place, set[Slice]] = {}
    for source in sources:
        if (volume := _volume_of(source)) is not None:
            volumes.setdefault(volume, set()).add(source)
    for (place, axis), chosen in volumes.items() if earlier else ():
        with suppress(ImageError):  # what cannot be opened has no others
            chosen.update(one for one in slices(place, axis) if listed_name(one) in earlier)
    others: list[Any] = []
    for source in sources:
        volume = _volume_of(source)
        if volume is None:
            others.append(source)
        if others and (volume is not None or len(others) == chunk):
            yield Step(others)
            others = []
        if volume in volumes:
            yield Step(sorted(volumes.pop(volume), key=lambda one: one.index), volume)
    if others:
        yield Step(others)


def _volume_of(source: Any) -> Place | None:
    return (source.path, source.axis) if is_part_of_volume(source) else None
