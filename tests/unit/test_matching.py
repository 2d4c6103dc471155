import torch

from oneshot_medad.nn.matching import GROUP, UNKNOWN, References, as_rows, match


def features(count, channels=5, side=9, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_counterparts_are_the_closest_rows_anywhere_and_nearby():
    images, reference = features(2, seed=1), features(3, seed=2)
    found, rows = match(images, reference), as_rows(reference)
    for b in range(2):
        for y in range(9):
            for x in range(9):
                squares = (rows - images[b, :, y, x]).square().mean(1)
                assert int(found.rows[0, b, y, x]) == int(squares.argmin())
                torch.testing.assert_close(found.distance[0, b, y, x], squares.min(), atol=1e-5, rtol=1e-4)
                near = squares.reshape(3, 9, 9)[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                torch.testing.assert_close(found.distance[1, b, y, x], near.min(), atol=1e-5, rtol=1e-4)


def test_the_search_in_groups_finds_what_a_search_through_all_finds():
    images, reference = features(2, side=16, seed=1), features(3, side=16, seed=2)
    assert 3 * 16 * 16 % GROUP == 0
    found, distance = match(images, reference), torch.cdist(as_rows(images), as_rows(reference))
    assert torch.equal(found.rows[0].flatten(), distance.argmin(dim=1))
    torch.testing.assert_close(found.distance[0].flatten(), distance.amin(dim=1).square() / 5, atol=1e-5, rtol=1e-4)


def test_a_place_that_moved_further_than_the_reach_is_found_anywhere_only():
    reference = features(1)
    moved = reference.roll(4, dims=3)
    found = match(moved, reference)
    assert float(found.distance[0].max()) < 1e-5
    assert float(found.distance[1].min()) > 1e-3


def test_hidden_rows_and_a_left_out_image_are_passed_over():
    reference = features(2)
    assert float(match(reference[:1], reference).distance.max()) < 1e-5
    other = match(reference[:1], reference, left_out=0)
    assert int(other.rows.min()) >= 81
    hidden = torch.zeros(2 * 81, dtype=torch.bool)
    hidden[:40] = True
    assert int(match(reference[:1], reference, hidden=hidden).rows[0].min()) >= 40


def test_the_spread_of_references_is_that_of_each_to_the_others():
    reference = features(3)
    spread = References.of([reference]).spread
    apart = [match(reference[k : k + 1], torch.cat([reference[:k], reference[k + 1 :]])).distance for k in range(3)]
    torch.testing.assert_close(spread[0], torch.cat(apart, dim=1).mean((1, 2, 3)), atol=1e-5, rtol=1e-4)
    assert References.of([reference[:1]]).spread.tolist() == [list(torch.tensor(UNKNOWN).tolist())]


def test_a_match_of_some_images_is_part_of_the_match_of_all():
    images, reference = features(4, seed=1), features(2, seed=2)
    whole, part = match(images, reference), match(images[2:3], reference)
    assert torch.equal(whole[torch.tensor([2])].rows, part.rows)
    torch.testing.assert_close(whole[torch.tensor([2])].distance, part.distance)
