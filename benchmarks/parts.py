"""What each part of a prediction costs, how many images a second that makes, and how many anomalib's PatchCore manages.

All parts are measured in turn, several times over, in one process; a part's figure is its median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from oneshot_medad.backbones import Backbone
from oneshot_medad.images.preprocess import from_field, to_field
from oneshot_medad.images.read import read_image
from oneshot_medad.nn.matching import match
from oneshot_medad.scoring import Scorer

BATCH = 8
SIZE = (512, 512)
"""Of the pictures that are read."""


def in_turn(calls: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
    """Median seconds of every call, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(times + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seen) for name, seen in found.items()}


@torch.no_grad()
def parts(backbone: Backbone, scorer: Scorer, times: int) -> dict[str, float]:
    """Milliseconds an image of each part of a prediction of a batch, and images a second of their sum."""
    side, recipe = backbone.spec.image_px, scorer.recipe
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *SIZE), dtype=np.uint8)
    images = [read_image(picture) for picture in pixels]
    fields = torch.stack([to_field(image.pixels, side) for image in images])
    features = backbone.vision(fields)
    mirrored = features if recipe.mirror else None
    z = backbone.latents.encode(fields) if recipe.reads_latents else None
    maps, references = scorer(z, features, mirrored)[1].cpu(), scorer.references()
    sides = 1 + recipe.mirror
    calls: dict[str, Callable[[], object]] = {
        "reading and windowing": lambda: [to_field(read_image(picture).pixels, side) for picture in pixels],
        "vision tower": partial(backbone.vision, fields),
        "all branches and fusion": partial(scorer, z, features, mirrored),
        "kind of image": lambda: scorer.similarity(backbone.kind(features)),
        "heatmap on its own grid": lambda: [from_field(heatmap, side, SIZE) for heatmap in maps],
    }
    if recipe.mirror:
        calls["vision tower, mirror image"] = lambda: backbone.vision(fields.flip(-1))
    if recipe.reads_latents:
        calls["autoencoder"] = partial(backbone.latents.encode, fields)
    inside: dict[str, Callable[[], object]] = {}
    if references is not None:
        levels = references.levels
        inside["of the branches: comparison with the references"] = lambda: [
            [match(f, r) for f, r in zip(features, levels, strict=True)] for _ in range(sides)
        ]
    seconds = in_turn({**calls, **inside}, times)
    found = {f"{name}, ms": round(1000 * s / BATCH, 2) for name, s in seconds.items()}
    return found | {"images a second": round(BATCH / sum(seconds[name] for name in calls), 1)}


@torch.no_grad()
def patchcore(times: int) -> dict[str, float] | None:
    """Images a second of anomalib's PatchCore on its default backbone's architecture, random weights; None without it.

    Its memory holds one normal image, at its own input size of 256 cut to 224.
    """
    try:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    except ImportError:
        return None
    model = PatchcoreModel(("layer2", "layer3"), "wide_resnet50_2", pre_trained=False)
    model.train()(torch.rand(1, 3, 224, 224))
    model.subsample_embedding(0.1)
    model.eval()
    images = torch.rand(BATCH, 3, 224, 224)
    seconds = in_turn({"predict": lambda: model(images)}, times)["predict"]
    return {"images a second": round(BATCH / seconds, 1)}
