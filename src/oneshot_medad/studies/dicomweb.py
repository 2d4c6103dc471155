"""Studies in a picture archive: fetched, judged series by series, and what was found stored beside them (DICOMweb)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_medad._names import printable
from oneshot_medad.errors import ArchiveError, ConfigError, ImageError
from oneshot_medad.images.files import is_part_of_volume
from oneshot_medad.studies.client import NO_IMAGES, asking, client_of, first_value, plain
from oneshot_medad.studies.client import PREFIX as PREFIX
from oneshot_medad.studies.volume import Volume
from oneshot_medad.verdicts import ABNORMAL, CANNOT_JUDGE, JUDGED, NORMAL, NOT_READ, UNCERTAIN

if TYPE_CHECKING:
    from oneshot_medad.results.predictions import Predictions

_UID = re.compile(r"[0-9.]{1,64}")
OWN = "oneshot-medad"
"""Manufacturer of what this package stored, which is not judged again."""


@dataclass(repr=False)
class Judged:
    """What was found in one series of a study.

    Attributes
    ----------
    study, series
        Their UIDs.
    modality, number, description
        Of the series, as the archive has them.
    volumes
        With a verdict each, where its images make up volumes.
    predictions
        Of all its images; None if nothing was fetched.
    reason
        Why nothing was judged; empty otherwise.
    stored
        UIDs of the objects that were stored beside it.
    """

    study: str
    series: str
    modality: str = ""
    number: str = ""
    description: str = ""
    volumes: list[Volume] = field(default_factory=list)
    predictions: Predictions | None = None
    reason: str = ""
    stored: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """The most serious verdict on its volumes and single images."""
        said = {volume.verdict for volume in self.volumes}
        if self.predictions is not None:
            said |= {
                verdict
                for source, verdict in zip(self.predictions.sources, self.predictions.verdicts, strict=True)
                if not is_part_of_volume(source)
            }
        return next((one for one in (ABNORMAL, UNCERTAIN, NORMAL, CANNOT_JUDGE) if one in said), NOT_READ)

    def to_row(self) -> dict[str, Any]:
        """One line for a table."""
        best = max(self.volumes, key=lambda one: one.score, default=None)
        return {
            "series": self.series,
            "number": self.number,
            "modality": self.modality,
            "description": printable(self.description),
            "images": 0 if self.predictions is None else len(self.predictions),
            "volumes": len(self.volumes),
            "verdict": self.verdict,
            "score": None if best is None or best.score != best.score else best.score,
            "p_value": None if best is None else best.p_value,
            "regions": sum(len(one.regions()) for one in self.volumes),
            "reason": self.reason,
            "stored": len(self.stored),
        }

    def __repr__(self) -> str:
        return f"<Judged series {self.number or self.series} ({self.modality}): {self.verdict}>"


def judge_study(
    detector: Any, url: str, study: str, *, store: bool = False, folder: str | Path | None = None
) -> Iterator[Judged]:
    """Judge every series of a study that a detector can judge, one at a time.

    Parameters
    ----------
    detector
        A fitted `AnomalyDetector`.
    url
        Of the archive's DICOMweb service, such as ``"https://pacs.example/dicom-web"``. Credentials come from the
        environment (``ONESHOT_MEDAD_DICOMWEB_TOKEN``, or ``…_USER`` and ``…_PASSWORD``) or from ``~/.netrc``, and no
        output holds them.
    study
        Its StudyInstanceUID.
    store
        Store what was found back: a Parametric Map and, if there are regions, a Segmentation, of every volume and of
        every single image that can have them (`Predictions.save_parametric_map`); of single images captures, too.
    folder
        Where to keep the images that are fetched, by series; None drops those of each series before the next.

    Yields
    ------
    One `Judged` a series, also for those without images and those that cannot be judged, with the reason.

    Raises
    ------
    ArchiveError
        The archive cannot be reached, refuses, or has no such study.
    ExtraError
        dicomweb-client or pydicom is not installed: ``pip install "oneshot-medad[dicom]"``.
    """
    client = client_of(url)
    with asking(url):
        found = client.search_for_series(study_instance_uid=study)
    if not found:
        raise ArchiveError(f"Got no series of study {study} from {plain(url)}; wanted at least one. Check the UID.")
    for about in sorted(found, key=lambda one: int(first_value(one, "00200011") or 0)):
        one = Judged(
            study,
            first_value(about, "0020000E"),
            first_value(about, "00080060"),
            first_value(about, "00200011"),
            first_value(about, "0008103E"),
        )
        if not _UID.fullmatch(one.series):  # it names a folder here
            raise ArchiveError(f"Got the series UID {printable(one.series)!r}; wanted digits and dots.")
        if one.modality in NO_IMAGES:
            one.reason = f"no images ({one.modality})"
            yield one
            continue
        with tempfile.TemporaryDirectory() as aside:
            place = Path(folder, one.series) if folder else Path(aside, one.series)
            with asking(url):
                count = _fetch(client, study, one.series, place)
            if not count:
                one.reason = "made by this package"
            else:
                _judge(detector, place, one)
                files = _objects(one, Path(aside)) if store else []
                with asking(url):
                    one.stored = _store(client, files, study)
            yield one


def store(url: str, files: Iterable[str | Path]) -> list[str]:
    """Store DICOM files in an archive; the UIDs of what it took.

    Parameters
    ----------
    url
        As for `judge_study`.
    files
        For example what `Volume.save_parametric_map` wrote.

    Raises
    ------
    ArchiveError
        The archive cannot be reached, or did not take all of them.
    """
    with asking(url):
        return _store(client_of(url), map(Path, files), None)


def _judge(detector: Any, place: Path, one: Judged) -> None:
    try:
        one.predictions = detector.predict(place, on_error="record")
    except ImageError as error:  # no image among the objects
        one.reason = printable(str(error).replace(f"{place}", "the series"))
        return
    one.volumes = one.predictions.volumes()
    if one.verdict not in JUDGED:
        said = [row["reason"] for row in one.predictions.to_rows() if row["reason"]]
        one.reason = said[0] if said else "nothing to judge"


def _fetch(client: Any, study: str, series: str, place: Path) -> int:
    """Write the instances of a series to files, as they are stored; those of this package are left out."""
    place.mkdir(parents=True, exist_ok=True)
    count = 0
    for ds in client.iter_series(study, series, media_types=(("application/dicom", "*"),)):
        if str(ds.get("Manufacturer", "")) != OWN:
            ds.save_as(place / f"{count:06d}.dcm", enforce_file_format=True)
            count += 1
    return count


def _objects(one: Judged, aside: Path) -> list[Path]:
    """What is to be stored of a series, as files."""
    files: list[Path] = []
    for number, volume in enumerate(one.volumes):
        try:
            files += volume.save_objects(aside / f"{number}") if volume.verdict in JUDGED else []
        except (ConfigError, ImageError) as error:
            one.reason = printable(str(error))
    if one.predictions is not None and not one.volumes:
        captures = one.predictions.save_heatmaps(aside / "captures", format="dicom")
        for i, capture in ((i, capture) for i, capture in enumerate(captures) if capture):
            files.append(capture)
            try:
                files += one.predictions.save_objects(i, capture.with_suffix(""))
            except (ConfigError, ImageError) as error:
                one.reason = printable(str(error))
    return files


def _store(client: Any, files: Iterable[Path], study: str | None) -> list[str]:
    from pydicom import dcmread

    stored = []
    for file in files:  # one at a time, so that memory holds one
        ds = dcmread(file)
        answer = client.store_instances([ds], study)
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            code = int(failed[0].get("FailureReason", 0))
            raise ArchiveError(f"Got failure 0x{code:04X} for {ds.SOPClassUID.name}; wanted it stored.")
        stored.append(str(ds.SOPInstanceUID))
    return stored
