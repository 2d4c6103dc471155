"""What is found of each source while it is found, with torch or without, and the predictions that it makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from oneshot_medad.calibration import normal_scores
from oneshot_medad.errors import BlankImageError, ImageError
from oneshot_medad.images.expand import Sources, name_of
from oneshot_medad.images.files import Slice
from oneshot_medad.images.read import BLANK
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.studies.limits import Limits


class Read(Protocol):
    """An image that was read, in whatever form."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def spacing(self) -> tuple[float, float] | None: ...  # noqa: D102

    @property
    def position(self) -> float | None: ...  # noqa: D102


Image = TypeVar("Image", bound=Read)


class Gathering:
    """Places for what is found of each of some sources.

    Parameters
    ----------
    sources
        What `expand` found.
    on_error
        As for `AnomalyDetector.predict`.
    """

    def __init__(self, sources: Sources, on_error: str) -> None:
        count = len(sources)
        self.sources, self.on_error = sources, on_error
        self.scores, self.similarities = np.full((2, count), np.nan)
        self.heatmaps = [np.zeros((0, 0), np.float32)] * count
        self.names, self.reasons, self.poses = ([""] * count for _ in range(3))
        self.spacings: list[tuple[float, float] | None] = [None] * count
        self.positions: list[float | None] = [None] * count

    def read(self, i: int, reader: Callable[[Any, int], Image]) -> Image | None:
        """Source ``i`` by ``reader(source, i)``; None where it cannot be read, and the reason is kept."""
        source = self.sources[i]
        try:
            image = reader(source, i)
        except ImageError as error:
            blank = isinstance(error, BlankImageError) and isinstance(source, Slice)
            if self.on_error == "raise" and not blank:
                raise
            self.names[i], self.reasons[i] = name_of(source, i), BLANK if blank else str(error)
            return None
        self.names[i], self.spacings[i], self.positions[i] = image.name, image.spacing, image.position
        return image

    def put(self, i: int, score: float, heatmap: np.ndarray, similarity: float, pose: str) -> None:
        """What a detector makes of image ``i``; the heatmap on its own grid."""
        self.scores[i], self.heatmaps[i], self.similarities[i], self.poses[i] = score, heatmap, similarity, pose

    def predictions(
        self,
        calibration: dict[str, Any],
        provenance: dict[str, Any],
        intensity_range: tuple[float, float] | None,
        span: tuple[float, float] | None = None,
    ) -> Predictions:
        """All of it, judged by a detector's calibration; ``span`` is what positions its references cover."""
        return Predictions(
            self.scores,
            self.heatmaps,
            float(calibration["threshold"]),
            self.names,
            self.reasons,
            normal_scores(calibration),
            self.spacings,
            self.sources,
            intensity_range,
            provenance,
            calibration["uncertain_from"],
            self.similarities,
            calibration["least_similarity"],
            dict(self.sources.left_out),
            self.positions,
            Limits.of(calibration),
            self.poses,
            span,
        )
