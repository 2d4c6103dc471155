"""What `AnomalyDetector.predict` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


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
    """

    scores: np.ndarray
    heatmaps: list[np.ndarray]
    threshold: float
    names: list[str]
    reasons: list[str] = field(default_factory=list)
    normal_scores: np.ndarray | None = None

    @property
    def flags(self) -> np.ndarray:
        """(N,) bool: ``scores > threshold``; false where there is no score."""
        return self.scores > self.threshold

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
        """One dictionary an image: name, score, threshold, flag, percentile and p-value where known, and the reason."""
        columns: dict[str, Any] = {"name": self.names, "score": self.scores.tolist(), "flag": self.flags.tolist()}
        if self.normal_scores is not None:
            columns |= {"percentile": self.percentiles, "p_value": self.p_values}
        columns["reason"] = self.reasons or [""] * len(self)
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
        """Write the rows to a Parquet file; needs pyarrow."""
        self.to_frame().to_parquet(path, index=False)
        return Path(path)

    def save_heatmaps(self, folder: str | Path, start: int = 0) -> list[Path | None]:
        """Write every heatmap as a 16-bit grey PNG on its image's own grid; 0 to 65535 stand for 0 to 1, cut there.

        Parameters
        ----------
        folder
            Made if it does not exist.
        start
            Number of the first image; files are called by number and name, so that equal names stay apart.

        Returns
        -------
        The files; None for an image without a heatmap.
        """
        from PIL import Image

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths: list[Path | None] = []
        for number, (name, heatmap) in enumerate(zip(self.names, self.heatmaps, strict=True), start=start):
            path = folder / f"{number:05d}-{Path(name).stem}.png" if heatmap.size else None
            if path:
                Image.fromarray((heatmap.clip(0, 1) * 65535).round().astype(np.uint16)).save(path)
            paths.append(path)
        return paths

    def __iter__(self) -> Iterator[np.ndarray | list[np.ndarray]]:
        return iter((self.scores, self.heatmaps))

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        """A table of file, score and flag."""
        width = max([len("image"), *map(len, self.names)])
        rows = [f"{'image':<{width}}  {'score':>7}  flag"]
        for row in self.to_rows():
            word = row["reason"] or ("ABNORMAL" if row["flag"] else "normal")
            rows.append(f"{row['name']:<{width}}  {row['score']:7.3f}  {word}")
        return "\n".join(rows)
