import numpy as np
import pytest
import torch

from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.resample import field_of, map_of

SIZES = [((100, 100), 1.0), ((700, 411), 1.0), ((37, 100), 0.6), ((64, 64), 1.0), ((3, 500), 1.7), ((300, 20), 1.0)]


@pytest.mark.parametrize(("size", "aspect"), SIZES)
def test_field_and_heatmap_are_those_of_torch(size, aspect):
    rng = np.random.default_rng(0)
    grey, colour = rng.random(size, np.float32), rng.random((*size, 3), np.float32)
    for values, pixels in (
        (grey, torch.from_numpy(grey).expand(3, -1, -1)),
        (colour, torch.from_numpy(colour).permute(2, 0, 1)),
    ):
        np.testing.assert_allclose(field_of(values, 64, aspect), to_field(pixels, 64, aspect), atol=2e-6)
    heatmap = rng.normal(size=(64, 64)).astype(np.float32)
    # torch rounds places near 64 to 8e-6 of a cell, and neighbouring cells differ by up to 6
    np.testing.assert_allclose(
        map_of(heatmap, size, aspect), from_field(torch.from_numpy(heatmap), 64, size, aspect), atol=5e-5
    )
