import pytest
import torch

from oneshot_medad.nn.matching import References, match
from oneshot_medad.scoring.distances import Subspace, distance_map, distance_score
from oneshot_medad.scoring.trust import KNOWN, NEW, reach, trust_in_distance


def normal_like(count, seed=0, channels=8, side=6):
    """Features that lie in a plane of three dimensions, and hardly beside it."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(3, channels, generator=torch.Generator().manual_seed(42))
    inside = torch.randn(count, side, side, 3, generator=generator) @ basis
    return (inside + 0.05 * torch.randn(inside.shape, generator=generator)).permute(0, 3, 1, 2)


def test_a_subspace_knows_what_leaves_it():
    views, turned = normal_like(6), normal_like(4, 1)
    subspace = Subspace.of([views], [turned], torch.zeros(6, dtype=torch.long))
    assert 1 <= subspace.get_buffer("minor0").shape[0] <= 8 - 3
    inside = subspace([normal_like(2, 2)])[0]
    assert float(inside.mean()) == pytest.approx(1, abs=0.3)  # in units of the spread of normal features
    outside = normal_like(1, 3)
    outside[0, :, 2, 4] += 3 * subspace.get_buffer("minor0")[0]
    found = subspace([outside])[0][0]
    assert divmod(int(found.argmax()), 6) == (2, 4)
    assert float(found.max()) > 10 * float(found.median())


def test_the_spread_of_several_images_is_that_between_them():
    one = normal_like(4)
    other = one + 0.5 * torch.randn(1, 8, 1, 1, generator=torch.Generator().manual_seed(1))
    images = torch.cat([one, other])
    alone = Subspace.of([images], [one[:1]], torch.zeros(8, dtype=torch.long)).spread
    between = Subspace.of([images], [one[:1]], torch.tensor([0] * 4 + [1] * 4)).spread
    assert float(between[0]) > float(alone[0])


def test_the_subspace_counts_as_one_more_reference():
    images, reference = normal_like(2, 3), normal_like(2, 4)
    references = References.of([reference])
    found, beyond = match(images, reference), torch.full((2, 6, 6), 7.0)
    for n_images in (1, 16):
        got = distance_map([found], references, [beyond], n_images)
        near = found.distance[1] / references.spread[0, 1]
        torch.testing.assert_close(got, (n_images * near + 7) / (n_images + 1))


def test_the_score_is_half_of_the_highest_places_and_half_of_all():
    maps = torch.ones(1, 10, 10)
    maps[0, 0, :5] = 21.0
    assert float(distance_score(maps)) == pytest.approx(0.5 * (torch.tensor(21.0).log() + torch.tensor(2.0).log()))


def test_trust_in_distance_falls_towards_the_pool():
    found = [trust_in_distance(s, s - 1) for s in (0.0, NEW, (NEW + KNOWN) / 2, KNOWN, 1.0)]
    assert found[0] == pytest.approx(1)
    assert found[1] > found[2] > found[3] == pytest.approx(found[4])
    assert trust_in_distance(0.4, 0.8) > 2 * trust_in_distance(0.4, 0.2)  # goods


def test_reach_is_the_similarity_to_the_closest_of_the_pool():
    pool = torch.eye(8)
    kinds = torch.cat([pool, torch.zeros(8, 1)], dim=1)
    assert reach(kinds[:1], None) == 0
    assert reach(kinds[:2], pool[:1].expand(9, -1)) == pytest.approx(0.5)  # one image alike, one not
