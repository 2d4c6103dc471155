import pytest
import torch
import torch.nn.functional as F

from oneshot_medad.nn.adapters import Adapters, ContextAdapters, Judged, highest, pooled
from oneshot_medad.nn.maps import embedded_cosines, similarity_map
from oneshot_medad.nn.matching import References

GRIDS = ((4, 8), (6, 4))


def levels(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, c, side, side, generator=generator) for c, side in GRIDS]


@pytest.fixture
def text():
    return F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(9)), dim=1)


@pytest.fixture
def adapters():
    torch.manual_seed(0)
    return ContextAdapters([c for c, _ in GRIDS], 16, width=8).eval()


def test_similarity_map_is_the_mean_over_levels_of_softmaxed_cosines():
    fine = torch.zeros(1, 2, 4, 4)
    fine[:, 1] = 1  # everywhere the abnormal direction
    coarse = torch.zeros(1, 2, 2, 2)
    coarse[:, 0] = 1  # everywhere the normal one
    got = similarity_map([fine, coarse], 2.0, (4, 4))
    p = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(got, torch.full((1, 4, 4), float((p + 1 - p) / 2)))


def test_cosines_without_embeddings_are_those_of_the_embeddings():
    torch.manual_seed(0)
    last, text = torch.nn.Conv2d(8, 24, 1), torch.nn.functional.normalize(torch.randn(2, 24), dim=1)
    found = []
    for way in (
        lambda h: embedded_cosines(h, last, text),
        lambda h: torch.einsum("bdhw,kd->bkhw", torch.nn.functional.normalize(last(h), dim=1), text),
    ):
        hidden = torch.linspace(-2, 3, 2 * 8 * 9).reshape(2, 8, 3, 3).requires_grad_()
        cosines = way(hidden)
        moved = [hidden, last.weight, last.bias]
        found.append((cosines, *torch.autograd.grad(cosines.square().sum(), moved)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_mediclips_adapters_map_the_cosines_of_their_embeddings(text):
    torch.manual_seed(0)
    plain, features = Adapters([c for c, _ in GRIDS], 16), levels(2, 1)
    cosines = [
        torch.einsum("bdhw,kd->bkhw", F.normalize(adapter(f), dim=1), text)
        for adapter, f in zip(plain.levels, features, strict=True)
    ]
    judged = plain(features, text, 5.0)
    torch.testing.assert_close(judged.probability, similarity_map(cosines, 5.0, (8, 8)))
    assert not judged.image.any()
    torch.testing.assert_close(plain.map_logit(judged).sigmoid(), judged.probability, atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.image_logit(judged, 1 / 64), judged.probability.flatten(1).amax(1).logit())


def test_context_adapters_read_the_references_and_judge_each_image_by_itself(adapters, text):
    features, one, other = levels(2, 1), References.of(levels(3, 2)), References.of(levels(3, 3))
    judged = adapters(features, text, 10.0, one)
    assert judged.probability.shape == (2, 8, 8)
    assert judged.image.shape == (2,)
    changed = adapters(features, text, 10.0, other)
    assert not torch.allclose(judged.probability, changed.probability)
    assert not torch.allclose(judged.image, changed.image)
    alone = adapters([f[:1] for f in features], text, 10.0, one)
    torch.testing.assert_close(alone.probability, judged.probability[:1])
    torch.testing.assert_close(alone.image, judged.image[:1])


def test_an_image_that_equals_a_reference_is_judged_too(adapters, text):
    features = levels(1, 1)
    judged = adapters(features, text, 10.0, References.of([torch.cat([f, f + 1]) for f in features]))
    assert judged.probability.isfinite().all()
    assert judged.image.isfinite().all()


def test_with_residuals_alone_a_common_shift_of_all_features_changes_nothing(adapters, text):
    features, references = levels(2, 1), levels(3, 2)
    shift = [torch.randn(1, c, 1, 1) for c, _ in GRIDS]
    moved = [f + s for f, s in zip(features, shift, strict=True)]
    around = References.of([r + s for r, s in zip(references, shift, strict=True)])
    hidden, still = (
        adapters(f, text, 10.0, r, residuals_alone=True)
        for f, r in ((features, References.of(references)), (moved, around))
    )
    torch.testing.assert_close(hidden.probability, still.probability, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(hidden.image, still.image, atol=1e-3, rtol=1e-3)
    shown = adapters(features, text, 10.0, References.of(references))
    assert not torch.allclose(hidden.probability, shown.probability)


def test_gradients_reach_features_that_are_moved(adapters, text):
    features = [f.requires_grad_() for f in levels(1, 1)]
    judged = adapters(features, text, 10.0, References.of(levels(2, 2)))
    (judged.probability.sum() + judged.image.sum()).backward()
    assert all(f.grad.abs().sum() > 0 for f in features)


def test_an_image_counts_with_its_highest_places_and_as_a_whole(adapters):
    maps = torch.full((1, 8, 8), 0.1)
    maps[0, 2, 3] = 0.9
    adapters.calibration.data = torch.tensor([2.0, 0.5, 3.0])
    judged = Judged(maps, torch.tensor([0.7]))
    wanted = 2 * torch.tensor(0.9).logit() + 0.5 + 3 * 0.7
    torch.testing.assert_close(adapters.image_logit(judged, 1 / 64), wanted[None])
    torch.testing.assert_close(adapters.map_logit(judged)[0, 2, 3], 2 * torch.tensor(0.9).logit() + 0.5)


def test_the_highest_share_of_a_map():
    maps = torch.arange(100.0).reshape(1, 10, 10)
    assert highest(maps, 0.02).tolist() == [98.5]
    assert highest(maps, 1e-6).tolist() == [99.0]


def test_pooled_features_are_means_and_deviations():
    features = levels(2, 4)
    found = pooled(features)
    assert found.shape == (2, 2 * (4 + 6))
    torch.testing.assert_close(found[1, :4], features[0][1].mean((1, 2)))
    torch.testing.assert_close(found[1, 4:8], features[0][1].std((1, 2)))
