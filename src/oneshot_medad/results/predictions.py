"""What `AnomalyDetector.predict` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_medad.calibration import p_values, percentiles, shown
from oneshot_medad.errors import ImageFileError
from oneshot_medad.images.read import MedicalImage, read_image
from oneshot_medad.results.regions import Region, find_regions
from oneshot_medad.studies.limits import Limits
from oneshot_medad.studies.volume import Volume, assemble
from oneshot_medad.verdicts import ABNORMAL, CANNOT_JUDGE, JUDGED, beyond, count, decide, held_back, places_from

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, repr=False)
class Predictions:
    """Scores and heatmaps of a list of images; unpacks into exactly ``(scores, heatmaps)``.

    ``scores`` and ``heatmaps`` are what was computed. Everything else says what follows from it, by the `verdicts`:
    nothing is flagged, listed or pictured as abnormal in an image that is not called so. As an array, predictions are
    labels, 1 for a flagged image and 0 for any other, which is what scikit-learn expects of ``predict``. They are plain
    values: what writes or draws them imports this class, and is loaded when a method asks for it.

    Attributes
    ----------
    scores
        (N,) float64, higher is more abnormal. 0 is the median of the fit's own normal views, 1 what nine of
        ten further normal images are expected to stay below; values may lie outside. NaN for an image not read.
    heatmaps
        N arrays (H, W) float32, each on its image's own grid, on the scale of the scores.
    threshold
        Score above which an image is flagged.
    names
        File paths, or positions in the input.
    reasons
        Why an image has no score; empty for all others.
    normal_scores
        (n,) scores of the normal images that the detector was calibrated on; None if it was not.
    spacings
        Height and width of a pixel in millimetres for every image whose source says so, else None.
    sources
        What each image was read from, so that `image` can show it again.
    intensity_range
        Of the detector, needed to read the sources again.
    provenance
        Hash, backbone, number of normal images, rule of the threshold, last evaluation of the detector; versions, time.
    uncertain_from
        Scores from here to the threshold are called uncertain; None calls none so.
    similarities
        (N,) how alike in kind each image is to those that the detector was fitted on, higher for more alike
        (`backbones.kinds.similarity`).
    least_similarity
        Below it an image is not judged; None judges all.
    left_out
        How many files were passed over, by what they are: suffixes, modalities without a picture, folders not searched.
    positions
        Where along its volume each slice lies, from 0 to 1; None for an image that is no slice, was blank or not read.
    volume_limits
        What volumes are judged by; None takes the limits for single images.
    poses
        How each image lies if unlike the normal ones ("turned by 90 degrees"), else empty; it changes no verdict.
    span
        Positions of the first and last slice fitted on, beyond which slices are not judged; None judges them anywhere.
    """

    scores: np.ndarray
    heatmaps: list[np.ndarray]
    threshold: float
    names: list[str]
    reasons: list[str] = field(default_factory=list)
    normal_scores: np.ndarray | None = None
    spacings: list[tuple[float, float] | None] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list, repr=False)
    intensity_range: tuple[float, float] | None = None
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    uncertain_from: float | None = None
    similarities: np.ndarray | None = None
    least_similarity: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    positions: list[float | None] = field(default_factory=list)
    volume_limits: Limits | None = None
    poses: list[str] = field(default_factory=list)
    span: tuple[float, float] | None = None

    def read(self, i: int) -> MedicalImage:
        """Image ``i``, read again as the detector read it.

        Raises
        ------
        ImageError, ImageFileError, ImageTypeError
            Its source is not known or gone, or never could be read.
        """
        if not self.sources:
            raise ImageFileError("Got predictions without sources; wanted those of `AnomalyDetector.predict`.")
        return read_image(self.sources[i], self.names[i], self.intensity_range)

    def spacing(self, i: int) -> tuple[float, float] | None:
        """Height and width of a pixel of image ``i`` in millimetres, if known."""
        return self.spacings[i] if self.spacings else None

    def image(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8: image ``i`` as the detector read it, on its own grid.

        Raises
        ------
        ImageFileError
            Its file is gone, or never could be read.
        """
        return (self.read(i).pixels.permute(1, 2, 0) * 255).round().byte().numpy()

    @property
    def shown(self) -> np.ndarray:
        """(N,) scores in (0, 1) for people: the raw scores stretched so that the threshold lies at exactly 0.5.

        NaN where an image could not be read or judged.
        """
        return np.where(self.judged, shown(self.scores, self.threshold), np.nan)

    def volumes(self) -> list[Volume]:
        """All of `iter_volumes`."""
        return list(self.iter_volumes())

    def iter_volumes(self) -> Iterator[Volume]:
        """Every NIfTI volume and DICOM series among the images, with its verdict and its heatmap on its own grid.

        Slices that cannot be judged, as there may be at both ends, count like blank ones. One at a time, so that memory
        need not hold more: the heatmap of a volume is as large as those of its slices.

        Raises
        ------
        ImageFileError
            A volume's file is gone.
        """
        judged, none = self.judged, np.zeros((0, 0), np.float32)
        heatmaps = [heatmap if known else none for heatmap, known in zip(self.heatmaps, judged, strict=True)]
        limits = self.volume_limits or Limits(self.threshold, self.uncertain_from)
        unlike = [i for i in range(len(self)) if self.verdict(i) == CANNOT_JUDGE]
        return assemble(self.sources, np.where(judged, self.scores, np.nan), heatmaps, limits, unlike, self.provenance)

    def verdict(self, i: int) -> str:
        """What to say of image ``i``; see `verdicts`."""
        alike = 1.0 if self.similarities is None else float(self.similarities[i])
        limits = self.threshold, self.uncertain_from, alike, self.least_similarity, bool(self.outside(i))
        return decide(float(self.scores[i]), *limits)

    def outside(self, i: int) -> str:
        """Why image ``i`` cannot be judged where it lies in its volume; empty if it can."""
        return beyond(self.positions[i] if self.positions else None, self.span)

    @property
    def verdicts(self) -> list[str]:
        """What to say of each image: "normal", "uncertain", "abnormal", "cannot judge" or "not read".

        "cannot judge" is an image unlike those fitted on, such as a knee given to a chest detector, or a slice from
        elsewhere in its volume: its score means nothing. "uncertain" lies in `AnomalyDetector.calibrate`'s reject band.
        """
        return [self.verdict(i) for i in range(len(self))]

    @property
    def judged(self) -> np.ndarray:
        """(N,) bool: images that were read and are of the detector's kind, so that their scores mean something."""
        return np.array([verdict in JUDGED for verdict in self.verdicts], dtype=bool)

    @property
    def flags(self) -> np.ma.MaskedArray:
        """(N,) bool: "abnormal", which is ``scores > threshold``; empty (masked) where nothing can be said.

        A masked array counts and averages over what is known, and ``tolist()`` gives None for the rest.
        ``flags.filled(False)`` is a plain array.
        """
        return np.ma.array([verdict == ABNORMAL for verdict in self.verdicts], mask=~self.judged, dtype=bool)

    def counts(self) -> dict[str, int]:
        """How many images got which verdict, as the command line and the report say it.

        ``images`` is the sum of ``flagged``, ``uncertain``, ``normal``, ``cannot_judge``, ``blank`` (slices of volumes
        without content) and ``failed`` (could not be read).
        """
        return count(zip(self.verdicts, self.reasons or [""] * len(self), strict=True))

    @property
    def p_values(self) -> np.ndarray | None:
        """(N,) conformal p-values against the calibration's n normal images, from 1 / (n + 1) to 1; None without any.

        Small means that few normal images score as high. It holds for images of the same population, scanner and
        protocol, and says nothing about the probability of disease. NaN where an image could not be read or judged.
        """
        if self.normal_scores is None:
            return None
        return np.where(self.judged, p_values(self.scores, self.normal_scores), np.nan)

    @property
    def percentiles(self) -> np.ndarray | None:
        """(N,) percent of the calibration's normal images that score lower, NaN as for `p_values`; None without any."""
        if self.normal_scores is None:
            return None
        return np.where(self.judged, percentiles(self.scores, self.normal_scores), np.nan)

    def to_rows(self) -> list[dict[str, Any]]:
        r"""One dictionary an image: name, verdict, score, shown, flag, reason and threshold, and what else is known.

        None where there is nothing to say: of an image that was not read, or that the detector cannot judge. A name is
        one printable line: bytes that are no UTF-8 are written ``\xfc``, control characters ``\u000a``.
        """
        from oneshot_medad.results.tables import rows_of

        return rows_of(self)

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame; ``flag`` has the nullable type ``boolean``."""
        from oneshot_medad.results.tables import frame_of

        return frame_of(self)

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows to a CSV file; ``./`` stands before names that a spreadsheet would take for formulas."""
        from oneshot_medad.results.tables import write_csv

        return write_csv(self, Path(path))

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows to a Parquet file.

        Raises
        ------
        ExtraError
            pyarrow is not installed: ``pip install "oneshot-medad[parquet]"``.
        """
        from oneshot_medad.results.tables import write_parquet

        return write_parquet(self, Path(path))

    def to_jsonl(self, path: str | Path) -> Path:
        """Append one audit record an image to a JSON Lines file; lines that are there already stay.

        A record holds the SHA-256 of the detector and of the input (of the file as it is now, or of the pixels where
        there is no file), versions, threshold and its rule, scores, decision, reason and time (UTC).
        """
        from oneshot_medad.results.audit import append_jsonl

        return append_jsonl(self, Path(path))

    def to_html(self, path: str | Path, title: str | None = None) -> Path:
        """Write a report: one HTML file with pictures that sorts, filters and moves the threshold, without a network.

        Parameters
        ----------
        path
            The file.
        title
            Of the page.
        """
        from oneshot_medad.results.report import write_report

        return write_report(self, Path(path), title)

    def save_heatmaps(self, folder: str | Path, start: int = 0, format: str = "png") -> list[Path | None]:  # noqa: A002
        """Write every heatmap to a file of its own, on its image's own grid.

        Parameters
        ----------
        folder
            Made if it does not exist.
        start
            Number of the first image; files are called by number and name, so that equal names stay apart.
        format
            ``"overlay"``: the picture of `overlay` as PNG. ``"png"``: 16-bit grey, what `pictured` gives on the shown
            scale, 0 to 65535 for 0 to 1, the threshold in the middle. ``"npz"``: ``heatmap`` (H, W) float32 as in
            `heatmaps`, ``threshold``, ``verdict``, and ``spacing_mm`` if known. ``"nifti"``: the same values as one
            slice, the spacing in its affine.
            ``"dicom"``: the picture of `overlay` as a secondary capture that says what it is, in the study of its
            source if that is a DICOM file; needs ``pip install "oneshot-medad[dicom]"``.

        Returns
        -------
        The files; None for an image that was not read or cannot be judged.

        Raises
        ------
        ConfigError
            An unknown format.
        ExtraError
            A format whose package is not installed.
        """
        from oneshot_medad.results.heatmaps import save_heatmaps

        return save_heatmaps(self, Path(folder), start, format)

    def save_parametric_map(self, i: int, path: str | Path) -> Path:
        """Write the raw heatmap of a single DICOM image as `Volume.save_parametric_map` does; see `results.objects`."""
        from oneshot_medad.results.objects import save_parametric_map

        return save_parametric_map(self, i, path)

    def save_segmentation(self, i: int, path: str | Path, fractional: bool = False) -> Path:
        """Write the regions of a single DICOM image as `Volume.save_segmentation` does; see `results.objects`."""
        from oneshot_medad.results.objects import save_segmentation

        return save_segmentation(self, i, path, fractional)

    def save_objects(self, i: int, stem: Path) -> list[Path]:
        """Write what of both the standard has for a single DICOM image to files that begin with ``stem``."""
        from oneshot_medad.results.objects import save_objects

        return save_objects(self, i, stem)

    def regions(self, i: int) -> list[Region]:
        """Connected places of image ``i`` that exceed the limit its score has passed, highest first.

        The limit is ``threshold`` for an abnormal image and ``uncertain_from`` for an uncertain one. An image that is
        called normal, or that cannot be judged, has none, whatever single places of its heatmap exceed.
        """
        limit = places_from(self.verdict(i), self.threshold, self.uncertain_from)
        return find_regions(self.pictured(i), limit, self.spacing(i))

    def pictured(self, i: int) -> np.ndarray:
        """(H, W) heatmap ``i`` as every picture shows it, on the scale of the scores.

        That of an image which is not flagged is cut at the threshold, so that it never looks more abnormal than it is
        called; that of one which cannot be judged is empty, (0, 0). ``heatmaps[i]`` is the whole of it.
        """
        return held_back(self.heatmaps[i], self.verdict(i), self.threshold)

    def overlay(self, i: int) -> Image.Image:
        """Image ``i``, its heatmap, and both blended, side by side; `pictures.picture` says more."""
        from oneshot_medad.results.pictures import picture

        return picture(self, i)

    def plot(self, n: int = 12, columns: int = 4) -> Any:
        """A matplotlib figure of the first ``n`` images with heatmaps and scores; `pictures.plot` says more."""
        from oneshot_medad.results.pictures import plot

        return plot(self, n, columns)

    def _repr_html_(self) -> str:
        """A table with thumbnails for notebooks, of the first 20 images."""
        from oneshot_medad.results.report import notebook_table

        return notebook_table(self)

    def __iter__(self) -> Iterator[np.ndarray | list[np.ndarray]]:
        return iter((self.scores, self.heatmaps))

    def __len__(self) -> int:
        return len(self.scores)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """(N,) labels: 1 for a flagged image, 0 for any other."""
        return self.flags.filled(False).astype(int if dtype is None else dtype)

    def __repr__(self) -> str:
        found = {name: n for name, n in self.counts().items() if n and name != "images"}
        said = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in found.items())
        return f"<Predictions: {len(self)} images, {said}, threshold {self.threshold:.3f}>"

    def __str__(self) -> str:
        from oneshot_medad.results.tables import text_of

        return text_of(self)
