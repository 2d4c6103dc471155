"""The way of images through a fitted detector: read, squared, encoded, scored, and back on their own grids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from oneshot_medad.fitted import FittedDetector
from oneshot_medad.images.expand import Sources, name_of
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.read import MedicalImage, read_image
from oneshot_medad.images.sanity import Watcher
from oneshot_medad.persistence.describe import origin
from oneshot_medad.provenance import stamp
from oneshot_medad.results.gathering import Gathering
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.training.cache import ENCODE_BATCH


def predict_sources(
    fitted: FittedDetector,
    sources: Sources,
    *watchers: Watcher,
    on_error: str = "raise",
    intensity_range: tuple[float, float] | None = None,
    fetch: bool = True,
    progress: bool = False,
) -> Predictions:
    """Predictions of what `expand` found.

    Parameters
    ----------
    fitted
        The detector.
    sources
        The images.
    watchers
        Called with position, source and image of every image that was read.
    on_error, intensity_range, progress
        As for `AnomalyDetector`.
    fetch
        Whether the Hub may be asked for frozen networks.
    """

    def read(source: Any, i: int) -> MedicalImage:
        return read_one(source, i, intensity_range)

    found = Gathering(sources, on_error)
    # without a bar no tqdm either, which starts a thread
    with tqdm(total=len(sources), desc="predict") if progress else nullcontext() as bar:
        for start in range(0, len(sources), ENCODE_BATCH):
            chunk: dict[int, MedicalImage] = {}
            for i in range(start, min(start + ENCODE_BATCH, len(sources))):
                if (image := found.read(i, read)) is not None:
                    chunk[i] = image
                    for watcher in watchers:
                        watcher(i, sources[i], image)
            images = list(chunk.values())
            if len(sources) > ENCODE_BATCH:  # batches of one size: the same bits whatever else is in the call
                images += images[-1:] * (ENCODE_BATCH - len(images))
            for i, values in zip(chunk, score(fitted, images, fetch), strict=False):
                found.put(i, *values)
            if bar is not None:
                bar.update(min(ENCODE_BATCH, len(sources) - start))
    return found.predictions(
        fitted.calibration, {**origin(fitted, fetch), **stamp()}, intensity_range, fitted.scorer.span
    )


def read_one(source: Any, position: int, intensity_range: tuple[float, float] | None) -> MedicalImage:
    """The image that one entry of `expand` stands for."""
    return read_image(source, name_of(source, position), intensity_range)


@torch.no_grad()
def score(
    fitted: FittedDetector, images: list[MedicalImage], fetch: bool
) -> Iterator[tuple[float, np.ndarray, float, str]]:
    """Score, heatmap on its own grid, similarity and pose of each image."""
    if not images:
        return
    scorer, backbone = fitted.scorer, fitted.networks.load(fetch)
    side = backbone.spec.image_px
    fields = torch.stack([to_field(image.pixels, side, image.aspect) for image in images]).to(backbone.device)
    z = backbone.latents.encode(fields) if scorer.recipe.reads_latents else None
    features = backbone.vision(fields)
    mirrored = backbone.vision(fields.flip(-1)) if scorer.recipe.mirror else None
    positions = torch.tensor([math.nan if image.position is None else image.position for image in images])
    scores, maps = scorer(z, features, mirrored, positions)
    similar = scorer.similarity(backbone.kind(features)).tolist()
    poses = scorer.poses(features, mirrored)
    for image, value, heatmap, like, pose in zip(images, scores.tolist(), maps.cpu(), similar, poses, strict=True):
        yield value, from_field(heatmap, side, image.size, image.aspect).numpy(), like, pose
