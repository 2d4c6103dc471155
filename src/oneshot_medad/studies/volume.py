"""A volume with a verdict: one score, one heatmap on its own grid, and the regions that stand out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad.calibration import p_values, percentiles, shown
from oneshot_medad.errors import ConfigError
from oneshot_medad.images.files import File, Series, Slice, is_part_of_volume
from oneshot_medad.images.formats import NIFTI
from oneshot_medad.images.grid import AXES, Grid
from oneshot_medad.images.open import open_stack
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.regions import VolumeRegion, find_volume_regions
from oneshot_medad.verdicts import ABNORMAL, CANNOT_JUDGE, NOT_READ, decide, places_from

MAP, SEGMENTATION = ".map.dcm", ".seg.dcm"
"""What the files of DICOM objects end in."""
TOP = 3
"""Highest slice scores that make the score of a volume: unlike artefacts, lesions seldom show on one slice alone."""


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """What was found in one volume.

    Attributes
    ----------
    name
        Its file, or that of its `Series`.
    score
        Mean of its three highest slice scores; NaN if no slice has one.
    heatmap
        (X, Y, Z) float32 on the stored grid, on the scale of the scores; `level` where a slice has none. Of a DICOM
        series that grid has columns, rows and slices from inferior, posterior or left.
    affine
        (4, 4) from that grid to RAS+ millimetres (the unit of the file, in NIfTI), completed where it lacks the
        direction across a single slice.
    axis
        Along which its slices were predicted.
    slice_scores
        (N,) along that axis; NaN where a slice has no score.
    limits
        What it is judged by.
    place
        Its file or `Series`.
    sources
        The slice at every position along ``axis`` that was predicted.
    judgeable
        Whether any slice that was read is of the detector's kind.
    provenance
        As in `Predictions`.
    """

    name: str
    score: float
    heatmap: np.ndarray
    affine: np.ndarray
    axis: str
    slice_scores: np.ndarray
    limits: Limits
    place: File | Series | None = None
    sources: dict[int, Slice] = field(default_factory=dict)
    judgeable: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """What to say of it: "normal", "uncertain", "abnormal", "cannot judge" (no slice can be), or "not read".

        Before `AnomalyDetector.calibrate` has seen volumes, the threshold is the one for single images. A volume has
        many slices, so a normal one exceeds it more often than a normal image does.
        """
        if np.isnan(self.score):
            return NOT_READ if self.judgeable else CANNOT_JUDGE
        return decide(self.score, self.threshold, self.limits.uncertain_from, 1.0, None)

    @property
    def threshold(self) -> float:
        """Score above which the volume is abnormal."""
        return self.limits.threshold

    @property
    def flag(self) -> bool | None:
        """Whether it is abnormal; None where nothing can be said."""
        return None if np.isnan(self.score) else self.verdict == ABNORMAL

    @property
    def shown(self) -> float:
        """Score in (0, 1) for people, the threshold at exactly 0.5; NaN without a score."""
        return float(shown(np.array(self.score), self.threshold))

    @property
    def p_value(self) -> float | None:
        """Conformal p-value against the normal volumes calibrated on, as `Predictions.p_values`; None without any."""
        return self._against(p_values)

    @property
    def percentile(self) -> float | None:
        """Percent of the normal volumes calibrated on that score lower; None without any."""
        return self._against(percentiles)

    def _against(self, measure: Any) -> float | None:
        known = self.limits.normal_scores
        return None if known is None or np.isnan(self.score) else float(measure(np.array([self.score]), known)[0])

    @property
    def peak_slice(self) -> int | None:
        """Position of the highest slice score along ``axis``; None without any."""
        return None if np.isnan(self.slice_scores).all() else int(np.nanargmax(self.slice_scores))

    @property
    def level(self) -> float:
        """What the heatmap holds where nothing was judged: the normal level, well below the threshold."""
        return level_of(self.threshold)

    @property
    def grid(self) -> Grid:
        """How the heatmap lies in the patient."""
        return Grid(self.affine, self.heatmap.shape)

    @property
    def limit(self) -> float:
        """What a place must exceed to be named: the limit that the score has passed; infinity if none."""
        return places_from(self.verdict, self.threshold, self.limits.uncertain_from)

    def regions(self) -> list[VolumeRegion]:
        """Connected places of the volume that exceed the limit its score has passed, highest first.

        The limit is ``threshold`` for an abnormal volume and ``uncertain_from`` for an uncertain one; a volume that is
        called normal has none, whatever single places exceed.
        """
        return list(self._regions)

    @cached_property
    def _regions(self) -> list[VolumeRegion]:
        along, backwards = self.grid.stored_axis(self.axis)
        return find_volume_regions(self.heatmap, self.limit, self.affine, along, backwards)

    def to_row(self) -> dict[str, Any]:
        """One line for a table; None where there is nothing to say."""
        known, regions = not np.isnan(self.score), self.regions()
        largest = max(regions, key=lambda region: region.ml, default=None)
        place = self.place
        return {
            "name": self.name,
            "study": place.study if isinstance(place, Series) else None,
            "series": place.uid if isinstance(place, Series) else None,
            "verdict": self.verdict,
            "score": self.score if known else None,
            "shown": self.shown if known else None,
            "flag": self.flag,
            "p_value": self.p_value,
            "percentile": self.percentile,
            "threshold": self.threshold,
            "rule": self.limits.rule,
            "axis": self.axis,
            "slices": len(self.slice_scores),
            "judged": int((~np.isnan(self.slice_scores)).sum()),
            "peak_slice": self.peak_slice,
            "regions": len(regions),
            "ml": sum(region.ml for region in regions),
            "largest_at_mm": None if largest is None else " ".join(f"{v:.1f}" for v in largest.centroid),
        }

    def save(self, path: str | Path) -> Path:
        """Write the heatmap as NIfTI; it lies on the volume in any viewer.

        ``cal_min`` and ``cal_max`` put the threshold in the middle of what a viewer shows from black to white.

        Raises
        ------
        ConfigError
            A path that does not end in ``.nii`` or ``.nii.gz``.
        """
        import nibabel

        if not str(path).lower().endswith(NIFTI):
            raise ConfigError(f"Got path {str(path)!r}; wanted one that ends in .nii or .nii.gz.")
        image = nibabel.Nifti1Image(self.heatmap, self.affine)
        image.header["cal_min"], image.header["cal_max"] = self.level, 2 * self.threshold - self.level
        if isinstance(self.place, Series):
            image.header.set_xyzt_units("mm")
        said = f"oneshot-medad heatmap, threshold {self.threshold:.6g}, {self.verdict}"
        image.header["descrip"] = said.encode()
        nibabel.save(image, path)
        return Path(path)

    def save_parametric_map(self, path: str | Path) -> Path:
        """Write the raw heatmap of a DICOM series as a Parametric Map that refers to its images.

        32-bit floating point, with a real-world value mapping that says what the values are and a window that has the
        threshold in its middle.

        Raises
        ------
        ConfigError
            A volume that is no DICOM series.
        ExtraError
            highdicom is not installed: ``pip install "oneshot-medad[dicom]"``.
        """
        from oneshot_medad.studies.objects import finding_of, write_parametric_map

        return write_parametric_map(finding_of(self), Path(path))

    def save_segmentation(self, path: str | Path, fractional: bool = False) -> Path:
        """Write the `regions` of a DICOM series as a Segmentation that refers to its images.

        Parameters
        ----------
        path
            The file.
        fractional
            Store the shown score (0 to 1, the threshold at 0.5) of every place in them, rather than where they are. The
            standard calls it a probability; it is none.

        Raises
        ------
        ConfigError
            A volume that is no DICOM series.
        ImageError
            A volume without regions.
        ExtraError
            highdicom is not installed: ``pip install "oneshot-medad[dicom]"``.
        """
        from oneshot_medad.studies.objects import finding_of, write_segmentation

        return write_segmentation(finding_of(self), Path(path), fractional)

    def save_objects(self, stem: Path) -> list[Path]:
        """Write the parametric map, and the segmentation if there are regions, to files that begin with ``stem``."""
        files = [self.save_parametric_map(stem.with_name(stem.name + MAP))]
        if self.regions():
            files.append(self.save_segmentation(stem.with_name(stem.name + SEGMENTATION)))
        return files

    def __repr__(self) -> str:
        said = "no score" if np.isnan(self.score) else f"score {self.score:.3f}, threshold {self.threshold:.3f}"
        return f"<Volume {self.name!r}: {self.verdict}, {said}, {len(self.slice_scores)} {self.axis} slices>"


def level_of(threshold: float) -> float:
    """The normal level on the scale of heatmaps: 0, or half a unit below a threshold below 0.5."""
    return min(0.0, threshold - 0.5)


def assemble(
    sources: Sequence[Any],
    scores: np.ndarray,
    heatmaps: Sequence[np.ndarray],
    limits: Limits,
    unlike: Iterable[int] = (),
    provenance: dict[str, Any] | None = None,
) -> Iterator[Volume]:
    """One `Volume` for every volume and axis among the sources, in their order, built when it is asked for.

    Parameters
    ----------
    sources
        Entries of `expand`; those that are no slices of a volume are passed over.
    scores, heatmaps
        Of the sources; NaN and empty where there is none.
    limits
        For scores of volumes.
    unlike
        Which of the sources cannot be judged.
    provenance
        What the scores were made with.
    """
    found: dict[tuple[File | Series, str], dict[int, int]] = {}
    for i, source in enumerate(sources):
        if is_part_of_volume(source):
            found.setdefault((source.path, source.axis), {})[source.index] = i
    foreign = set(unlike)
    for (place, axis), rows in found.items():
        grid: Grid = open_stack(place).grid  # type: ignore[attr-defined]
        planes = {z: heatmaps[i] for z, i in rows.items() if heatmaps[i].size}
        slice_scores = np.full(grid.shape[AXES[axis]], np.nan)
        for z, i in rows.items():
            slice_scores[z] = scores[i]
        known = np.sort(slice_scores[~np.isnan(slice_scores)])
        yield Volume(
            str(place),
            float(known[-TOP:].mean()) if len(known) else float("nan"),
            grid.stored(planes, axis, level_of(limits.threshold)),
            grid.affine,
            axis,
            slice_scores,
            limits,
            place,
            {z: sources[i] for z, i in rows.items()},
            not foreign.intersection(rows.values()) or bool(len(known)),
            provenance or {},
        )
