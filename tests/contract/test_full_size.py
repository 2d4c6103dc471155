"""The full-size preset with the true architectures and random weights, as a user would type it."""

import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from backbone_repos import FULL_DD, VIT_L14, clip_repo, medvae_repo

from oneshot_medad import AnomalyDetector, Recipe
from oneshot_medad.backbones import load_backbone, read_visual
from oneshot_medad.backbones.resolve import cache_folder
from oneshot_medad.backbones.specs import OPENAI, get_spec

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture
def served(hub, monkeypatch, tmp_path):
    spec = get_spec("medvae-vitl14")
    hub.put(spec.autoencoder.repo_id, medvae_repo(FULL_DD))
    hub.put(spec.clip.repo_id, clip_repo(VIT_L14, half=True, scale=OPENAI))
    monkeypatch.setenv("ONESHOT_MEDAD_CACHE", str(tmp_path / "own-cache"))
    yield hub
    hub.commits.clear()
    load_backbone.cache_clear()


def test_fit_save_load_and_predict_through_the_hub(served, sample, tmp_path):
    recipe = replace(
        Recipe.named("scratch"), n_reference=2, n_views=3, n_lesions=3, n_held=2, n_steps=2, batch_size=2,
        branches={"clip": 1.0, "latent": 1.0, "distance": 8.0},
    )  # fmt: skip
    detector = AnomalyDetector(backbone="medvae-vitl14", recipe=recipe, random_state=0).fit(sample.support)
    scores, heatmaps = detector.predict(sample.images[:2])
    assert np.isfinite(scores).all()
    assert heatmaps[0].shape == sample.images[0].shape
    folder = detector.save_pretrained(tmp_path / "detector")
    assert sum(p.stat().st_size for p in folder.iterdir()) < 40e6
    asked = len(served.requests)
    again = AnomalyDetector.from_pretrained(folder, fetch="never")
    assert np.array_equal(again.predict(sample.images[:2]).scores, scores)
    assert len(served.requests) == asked

    # MediCLIP's layout: the patch tokens after blocks 12, 18 and 24, without the class token
    backbone = again._fitted.networks.load()
    image = torch.rand(1, 3, 224, 224)
    kept = []
    visual = read_visual(cache_folder(get_spec("medvae-vitl14")))
    for block in (12, 18, 24):
        visual.transformer.resblocks[block - 1].register_forward_hook(lambda m, i, o: kept.append(o))
    mean, std = (torch.tensor(v)[:, None, None] for v in OPENAI)
    with torch.no_grad():
        visual((image - mean) / std)
    for i, (level, tokens) in enumerate(zip(backbone.vision(image), kept, strict=True)):
        patches = tokens.reshape(257, 1024)[1:]
        grid = patches.T.reshape(1, 1024, 16, 16)
        raw = level * backbone.vision.get_buffer(f"std{i}") + backbone.vision.get_buffer(f"mean{i}")
        limit = 1e-3 if backbone.dtype == torch.float32 else 0.1
        torch.testing.assert_close(raw, grid, atol=limit, rtol=limit)
    assert backbone.latents.encode(image).shape == (1, 4, 28, 28)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 2**20
