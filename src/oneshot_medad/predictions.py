"""What `AnomalyDetector.predict` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneshot_medad.calibration import finest_rate, shown
from oneshot_medad.errors import ExtraError, ImageFileError
from oneshot_medad.export import append_jsonl, save_heatmaps
from oneshot_medad.images.folders import said
from oneshot_medad.images.read import MedicalImage, read_image
from oneshot_medad.images.volumes import Volume, assemble
from oneshot_medad.regions import Region, find_regions
from oneshot_medad.visualize import picture, plot


@dataclass(frozen=True)
class Predictions:
    """Scores and heatmaps of a list of images; unpacks into exactly ``(scores, heatmaps)``.

    Attributes
    ----------
    scores
        (N,) float64, higher is more abnormal. 0 is the median of the fit's own normal views, 1 the median of its
        synthetic anomalies; values may lie outside. NaN for an image that could not be read.
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
        What the predictions were made with: hash, backbone, number of normal images, rule of the threshold and last
        evaluation of the detector, versions, and time (UTC).
    uncertain_from
        Scores from here to the threshold are called uncertain; None calls none so.
    similarities
        (N,) cosine in [-1, 1] between what kind of image each is and what kind the detector was fitted on.
    least_similarity
        Below it an image is not judged; None judges all.
    left_out
        How many files beside the images were passed over, by kind: suffixes, modalities of DICOM objects without a
        picture, folders that were not searched.
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
        """(N,) scores in (0, 1) for people: the raw scores stretched so that the threshold lies at exactly 0.5."""
        return shown(self.scores, self.threshold)

    def volumes(self) -> list[Volume]:
        """Every NIfTI volume among the images with its score and its heatmap on its own grid.

        Raises
        ------
        ImageFileError
            A volume's file is gone.
        """
        return assemble(self.sources, self.scores, self.heatmaps)

    @property
    def flags(self) -> np.ndarray:
        """(N,) bool: ``scores > threshold``; false where there is no score."""
        return self.scores > self.threshold

    @property
    def verdicts(self) -> list[str]:
        """What to say of each image: "normal", "uncertain", "abnormal", "cannot judge" or "not read".

        "cannot judge" is an image unlike those the detector was fitted on, such as a knee given to a chest detector:
        its score means nothing. "uncertain" lies in the reject band that `AnomalyDetector.calibrate` can set.
        """
        least = -np.inf if self.least_similarity is None else self.least_similarity
        similar = np.ones(len(self)) if self.similarities is None else self.similarities
        band = self.threshold if self.uncertain_from is None else self.uncertain_from
        return [
            "not read" if np.isnan(score)
            else "cannot judge" if like < least
            else "abnormal" if score > self.threshold
            else "uncertain" if score > band
            else "normal"
            for score, like in zip(self.scores, similar, strict=True)
        ]  # fmt: skip

    @property
    def p_values(self) -> np.ndarray | None:
        """(N,) conformal p-values against the calibration's n normal images, from 1 / (n + 1) to 1; None without any.

        Small means that few normal images score as high. It holds for images of the same population, scanner and
        protocol, and says nothing about the probability of disease.
        """
        if self.normal_scores is None:
            return None
        at_least = (self.normal_scores[None] >= self.scores[:, None]).sum(axis=1)
        return np.where(np.isnan(self.scores), np.nan, (1 + at_least) / (len(self.normal_scores) + 1))

    @property
    def percentiles(self) -> np.ndarray | None:
        """(N,) percent of the calibration's normal images that score lower; None without any."""
        if self.normal_scores is None:
            return None
        lower = 100 * (self.normal_scores[None] < self.scores[:, None]).mean(axis=1)
        return np.where(np.isnan(self.scores), np.nan, lower)

    def to_rows(self) -> list[dict[str, Any]]:
        """One dictionary an image: name, verdict, score, shown, flag, reason and threshold, and what else is known."""
        columns: dict[str, Any] = {"name": self.names, "verdict": self.verdicts, "score": self.scores.tolist()}
        columns |= {"shown": self.shown.tolist(), "flag": self.flags.tolist()}
        if self.similarities is not None:
            columns["similarity"] = self.similarities.tolist()
        if self.normal_scores is not None:
            columns |= {"percentile": self.percentiles, "p_value": self.p_values}
        reasons = self.reasons or [""] * len(self)
        columns["reason"] = [r.removeprefix(f"{name}: ") for name, r in zip(self.names, reasons, strict=True)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{**row, "threshold": self.threshold} for row in rows]

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows to a CSV file."""
        self.to_frame().to_csv(path, index=False)
        return Path(path)

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows to a Parquet file.

        Raises
        ------
        ExtraError
            pyarrow is not installed: ``pip install "oneshot-medad[parquet]"``.
        """
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ExtraError(
                f"Writing Parquet needs pyarrow ({error}): pip install 'oneshot-medad[parquet]'"
            ) from error
        self.to_frame().to_parquet(path, index=False, engine="pyarrow")
        return Path(path)

    def to_jsonl(self, path: str | Path) -> Path:
        """Append one audit record an image to a JSON Lines file; lines that are there already stay.

        A record holds the SHA-256 of the detector and of the input (of the file as it is now, or of the pixels where
        there is no file), versions, threshold and its rule, scores, decision, reason and time (UTC).
        """
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
        from oneshot_medad.report import write_report

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
            ``"png"``: 16-bit grey on the shown scale, 0 to 65535 for 0 to 1, the threshold in the middle. ``"npz"``:
            ``heatmap`` (H, W) float32 on the scale of the scores, ``threshold``, and ``spacing_mm`` if known.
            ``"nifti"``: the same values as one slice, the spacing in its affine. ``"dicom"``: the picture of
            `overlay` as a secondary capture that says what it is, in the study of its source if that is a DICOM file;
            needs ``pip install "oneshot-medad[dicom]"``.

        Returns
        -------
        The files; None for an image without a heatmap.

        Raises
        ------
        ConfigError
            An unknown format.
        ExtraError
            A format whose package is not installed.
        """
        return save_heatmaps(self, Path(folder), start, format)

    def regions(self, i: int) -> list[Region]:
        """Connected regions of heatmap ``i`` above the threshold, highest score first; none if nothing exceeds it."""
        return find_regions(self.heatmaps[i], self.threshold, self.spacing(i))

    def overlay(self, i: int) -> Image.Image:
        """Image ``i``, its heatmap, and both blended, side by side; `visualize.picture` says more."""
        return picture(self, i)

    def plot(self, n: int = 12, columns: int = 4) -> Any:
        """A matplotlib figure of the first ``n`` images with heatmaps and scores; `visualize.plot` says more."""
        return plot(self, n, columns)

    def _repr_html_(self) -> str:
        """A table with thumbnails for notebooks, of the first 20 images."""
        from oneshot_medad.report import notebook_table

        return notebook_table(self)

    def __iter__(self) -> Iterator[np.ndarray | list[np.ndarray]]:
        return iter((self.scores, self.heatmaps))

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        """A table of file, score and verdict, with p-values and the finest of them after a calibration."""
        width = max([len("image"), *map(len, self.names)])
        known = self.normal_scores is not None
        rows = [f"{'image':<{width}}  {'score':>7}  {'p-value  ' * known}verdict"]
        for row in self.to_rows():
            word = row["reason"] or row["verdict"].replace("abnormal", "ABNORMAL")
            p_value = f"{row['p_value']:7.3g}  " if known else ""
            rows.append(f"{row['name']:<{width}}  {row['score']:7.3f}  {p_value}{word}")
        if self.normal_scores is not None:
            rows.append(f"p-values: {finest_rate(len(self.normal_scores))}.")
        if self.left_out:
            rows.append(f"{said(self.left_out)}.")
        return "\n".join(rows)
