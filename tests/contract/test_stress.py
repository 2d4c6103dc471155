"""Eight threads, fifty calls each, on one detector and on two that share their frozen networks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_repos import SMALL_CLIP, SMALL_DD, clip_repo, medvae_repo, small_spec

from oneshot_medad import AnomalyDetector
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.resolve import resolve

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]
THREADS, CALLS = 8, 50
CNN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
TIMM = {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear"}
TOWERS = {
    "transformer": (SMALL_CLIP["vision_cfg"], 64, small_spec().levels),
    "ResNet": (CNN, 512, ("layer2", "layer3", "layer4")),
    "timm": (TIMM, 64, ("trunk.stages.1", "trunk.stages.2")),
}


@pytest.fixture
def spec(hub, tmp_path, monkeypatch, request):
    config, embed_dim, levels = TOWERS[request.param]
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "cache"))
    hub.put("stanfordmimi/MedVAE", medvae_repo(SMALL_DD))
    hub.put("clinic/clip", clip_repo({**SMALL_CLIP, "embed_dim": embed_dim, "vision_cfg": config}))
    yield resolve(small_spec(levels=levels, half=False))
    load_backbone.cache_clear()


@pytest.mark.parametrize("spec", TOWERS, indirect=True)
def test_levels_of_every_tower(spec):
    vision = Backbone(spec, torch.device("cpu")).vision
    images = [torch.rand(1, 3, 64, 64) for _ in range(8)]
    alone = [vision(image) for image in images]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(vision, images * 10))
    for levels, wanted in zip(found, alone * 10, strict=True):
        assert all(map(torch.equal, levels, wanted))


@pytest.mark.parametrize("spec", ["transformer"], indirect=True)
def test_detectors_and_fits(spec, small, sample):
    recipe = replace(small, branches={"clip": 1.0, "distance": 8.0})

    def fit(seed):
        return AnomalyDetector(spec, recipe=recipe, random_state=seed).fit(sample.support)

    detectors = [fit(0), fit(1)]
    images = sample.images[:4]
    alone = [[detector.predict(image) for image in images] for detector in detectors]

    def calls(thread):
        wrong = 0
        for call in range(CALLS):
            which, image = (thread + call) % 2, (thread // 2 + call) % 4
            found, wanted = detectors[which].predict(images[image]), alone[which][image]
            wrong += found.scores[0] != wanted.scores[0] or not np.array_equal(found.heatmaps[0], wanted.heatmaps[0])
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        beside = [pool.submit(calls, thread) for thread in range(THREADS - 2)]
        fits = [pool.submit(fit, seed) for seed in (0, 1)]
        beside += [pool.submit(calls, thread) for thread in (0, 1)]
        assert [call.result() for call in beside] == [0] * THREADS
        for detector, again in zip(detectors, fits, strict=True):
            assert again.result().history_ == detector.history_
            assert np.array_equal(again.result().predict(images).scores, detector.predict(images).scores)
