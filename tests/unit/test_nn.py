import torch

from oneshot_medad.nn.losses import dice_loss, focal_loss
from oneshot_medad.nn.projection import ProjectionHead
from oneshot_medad.nn.unet import DeviationUNet


def test_losses_prefer_the_truth():
    mask = torch.zeros(2, 8, 8)
    mask[0, 2:5, 2:5] = 1
    good, bad = mask * 0.8 + 0.1, 0.9 - mask * 0.8
    for loss in (focal_loss, dice_loss):
        assert loss(good, mask) < loss(torch.full_like(mask, 0.5), mask) < loss(bad, mask)
    assert dice_loss(mask, mask) < 1e-6


def test_unet_uses_its_timestep_and_takes_any_size():
    torch.manual_seed(0)
    net = DeviationUNet(4, width=16)
    torch.nn.init.normal_(net.last.weight)
    z = torch.randn(2, 4, 15, 18)
    early, late = (net(z, torch.full((2,), t)) for t in (0, 9))
    assert early.shape == z.shape
    assert (early - late).abs().mean() > 1e-3


def test_projection_gives_every_level_its_own_grid():
    head = ProjectionHead(4, [(5, 32), (6, 16), (7, 8)], grid=32, width=16)
    assert [tuple(f.shape) for f in head(torch.randn(2, 4, 32, 32))] == [(2, 5, 32, 32), (2, 6, 16, 16), (2, 7, 8, 8)]
    coarser = ProjectionHead(4, [(5, 16), (5, 16)], grid=28, width=16)
    assert [tuple(f.shape) for f in coarser(torch.randn(1, 4, 28, 28))] == [(1, 5, 16, 16)] * 2
