import torch
from torch import nn

from oneshot_medad.backbones import read_visual
from oneshot_medad.backbones.fused import FusedConv, fuse
from oneshot_medad.backbones.specs import WEIGHTS


class Block(nn.Module):
    """Convolutions with a normalisation behind, one whose activation is unknown, and one of another width."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.bn2.act = nn.GELU()
        self.conv3, self.bn3 = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.bn1(self.conv1(x))
        return self.conv3(self.bn3(self.bn2.act(self.bn2(self.conv2(x)))))


@torch.no_grad()
def test_only_what_belongs_together_is_fused():
    torch.manual_seed(0)
    block = Block().eval()
    for name in ("bn1", "bn2", "bn3"):
        norm = getattr(block, name)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
    images = torch.rand(2, 3, 16, 16)
    before = block(images)
    fuse(block)
    assert [name for name, m in block.named_modules() if isinstance(m, FusedConv)] == ["conv1"]
    torch.testing.assert_close(block(images), before, atol=1e-5, rtol=1e-5)


def test_the_embedded_tower_is_fused_whole_and_gives_what_it_gave():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    visual = read_visual(WEIGHTS).eval().requires_grad_(False)
    before = visual(images)
    fuse(visual)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in visual.modules())
    with torch.no_grad():
        torch.testing.assert_close(visual(images), before, atol=1e-4, rtol=1e-4)
    with torch.enable_grad():  # what oneDNN fuses has no gradient
        found = visual(images.requires_grad_())
        torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-4)
        found.sum().backward()
    assert images.grad is not None
