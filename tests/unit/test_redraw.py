import torch

from oneshot_medad.nn.matching import References
from oneshot_medad.nn.redraw import expected, redrawn


def scene(seed=0, p=8):
    """A picture of four textures in the quarters of an 8 × 8 grid, each with a feature of its own."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.zeros(8, 8, dtype=torch.long)
    kind[:4, 4:], kind[4:, :4], kind[4:, 4:] = 1, 2, 3
    levels = torch.tensor([0.2, 0.4, 0.6, 0.8])[kind]
    field = levels.repeat_interleave(p, 0).repeat_interleave(p, 1).expand(3, -1, -1).clone()
    features = torch.nn.functional.one_hot(kind, 4).permute(2, 0, 1).float() * 5
    features = features + 0.01 * torch.randn(4, 8, 8, generator=generator)
    return field, torch.stack([features, features.flip(-1)])


def test_a_hot_place_becomes_what_is_normal_there():
    for p in (4, 8):
        field, own = scene(p=p)
        sick, hot = field.clone(), torch.zeros(8, 8, dtype=torch.bool)
        hot[1, 1] = True
        sick[:, p : 2 * p, p : 2 * p] = 1.0
        changed = own.clone()
        changed[0, :, 1, 1] = changed[1, :, 1, 6] = 9.0
        healed = redrawn(sick, changed, own[0], hot)
        torch.testing.assert_close(healed, field, atol=0.02, rtol=0)
        far = torch.ones(8 * p, 8 * p, dtype=torch.bool)
        far[: 4 * p, : 4 * p] = False
        assert torch.equal(healed[:, far], sick[:, far])


def test_what_is_normal_is_taken_from_wherever_it_is():
    field, own = scene()
    wanted = own[0].clone()
    wanted[:, :3, :3] = own[0][:, 6:7, 6:7]  # the references have the last texture in the first quarter
    hot = torch.zeros(8, 8, dtype=torch.bool)
    hot[1, 1] = True
    assert torch.allclose(redrawn(field, own, wanted, hot)[:, 10:14, 10:14], torch.tensor(0.8), atol=0.02)


def test_nothing_hot_and_everything_hot_leave_the_image_alone():
    field, own = scene()
    for hot in (torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)):
        assert torch.equal(redrawn(field, own, own[0], hot), field)
    hot[4:] = False
    assert redrawn(field, own, None, hot).shape == field.shape


def test_the_closest_reference_says_what_is_expected():
    levels = [torch.randn(3, 5, 8, 8), torch.randn(3, 6, 4, 4)]
    references = References(levels, torch.ones(2, 2))
    seen = [torch.stack([level[1] + 0.01, level[2]]) for level in levels]
    assert torch.equal(expected(seen, references), levels[0][1])
