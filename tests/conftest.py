from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneshot_medad import AnomalyDetector, Recipe, _predicting
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.datasets import Sample, load_sample
from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.preprocess import to_field
from oneshot_medad.images.read import MedicalImage
from oneshot_medad.training.cache import Views, make_views


@pytest.fixture(scope="session")
def sample() -> Sample:
    return load_sample(n_normal=4, n_abnormal=4)


@pytest.fixture(scope="session")
def small() -> Recipe:
    """The default recipe, small enough for a test."""
    return replace(Recipe.named("default"), n_views=4, n_lesions=4, n_held=3, n_steps=2, batch_size=3)


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return load_backbone(get_spec("tiny"), torch.device("cpu"))


@pytest.fixture(scope="session")
def views(backbone: Backbone, sample: Sample, small: Recipe) -> Views:
    field = to_field(torch.from_numpy(sample.support)[None].expand(3, -1, -1) / 255, backbone.spec.image_px)
    return make_views(backbone, field[None], small, torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def fitted(sample: Sample, small: Recipe) -> AnomalyDetector:
    return AnomalyDetector(recipe=small, random_state=0).fit(sample.support)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that take no time: the score is the mean, the heatmap the picture."""

    def score(
        fitted: FittedDetector, images: list[MedicalImage], fetch: bool
    ) -> Iterator[tuple[float, np.ndarray, float, str]]:
        for image in images:
            yield float(image.pixels.mean()), image.pixels[0].numpy().copy(), 1.0, ""

    monkeypatch.setattr(_predicting, "score", score)
