"""A detector without networks, which workers of Ray can import."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np

from oneshot_medad import AnomalyDetector, Predictions, _predicting
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.images.read import MedicalImage


class StubDetector(AnomalyDetector):
    """The score is the mean of the field, the heatmap the field; ``seconds`` an image may be set on an instance."""

    seconds = 0.0

    @classmethod
    def of(cls, fitted: AnomalyDetector, seconds: float = 0.0) -> StubDetector:
        stub = object.__new__(cls)
        stub.__dict__.update(fitted.__dict__, seconds=seconds)
        return stub

    def _predict(self, *given: Any) -> Predictions:
        with patch.object(_predicting, "score", self._score):
            return super()._predict(*given)

    def _score(
        self, fitted: FittedDetector, images: list[MedicalImage], fetch: bool
    ) -> Iterator[tuple[float, np.ndarray, float, str]]:
        for image in images:
            time.sleep(self.seconds)
            field = to_field(image.pixels, fitted.networks.spec.image_px, image.aspect)
            yield float(field.mean()), field[0].numpy().copy(), 1.0, ""
