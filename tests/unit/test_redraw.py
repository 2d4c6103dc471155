import torch

from oneshot_medad.nn.matching import References
from oneshot_medad.nn.redraw import expected, redrawn


def scene(p=8):
    """A picture of four greys in the quarters of a 16 × 16 grid, each with a feature of its own."""
    kind = torch.zeros(16, 16, dtype=torch.long)
    kind[:8, 8:], kind[8:, :8], kind[8:, 8:] = 1, 2, 3
    greys = torch.tensor([0.2, 0.4, 0.6, 0.8])[kind]
    field = greys.repeat_interleave(p, 0).repeat_interleave(p, 1).expand(3, -1, -1).clone()
    features = torch.nn.functional.one_hot(kind, 4).permute(2, 0, 1).float() * 10
    return field, torch.stack([features, features.flip(-1)])


def sick(p=8):
    """The scene with a white spot on place (2, 2), whose feature is unlike any other."""
    field, own = scene(p)
    field[:, 2 * p : 3 * p, 2 * p : 3 * p] = 1.0
    own[0, :, 2, 2] = own[1, :, 2, 13] = 9.0
    hot = torch.zeros(16, 16, dtype=torch.bool)
    hot[2, 2] = True
    return field, own, hot


def test_a_hot_place_becomes_what_is_normal_there():
    for p in (4, 8):
        healthy, features = scene(p)
        field, own, hot = sick(p)
        healed = redrawn(field, own, features[0], hot)
        torch.testing.assert_close(healed, healthy, atol=1e-5, rtol=0)
        other_side = redrawn(field, own, None, hot)[:, 2 * p : 3 * p, 2 * p : 3 * p]
        torch.testing.assert_close(
            other_side, torch.full((3, p, p), 0.4)
        )  # with nothing to go by, the same place there


def test_what_is_normal_is_taken_from_wherever_it_is():
    field, own, hot = sick()
    wanted = own[0].clone()
    wanted[:, :7, :7] = own[0][:, 12:13, 12:13]  # the references have the last grey in the first corner
    healed = redrawn(field, own, wanted, hot)
    torch.testing.assert_close(healed[:, 20, 20], torch.full((3,), 0.8))  # around it patches blend
    assert torch.equal(healed[:, 64:], field[:, 64:])  # far away nothing moves


def test_nothing_hot_and_everything_hot_leave_the_image_alone():
    field, own = scene()
    for hot in (torch.zeros(16, 16, dtype=torch.bool), torch.ones(16, 16, dtype=torch.bool)):
        assert torch.equal(redrawn(field, own, own[0], hot), field)


def test_the_closest_reference_says_what_is_expected():
    levels = [torch.randn(3, 5, 8, 8), torch.randn(3, 6, 4, 4)]
    references = References(levels, torch.ones(2, 2))
    seen = [torch.stack([level[1] + 0.01, level[2]]) for level in levels]
    assert torch.equal(expected(seen, references), levels[0][1])
