"""Frozen convolutions together with the batch normalisation and the activation behind them, as one operation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
"""What oneDNN computes on the way: its name and numbers for each activation."""


class FusedConv(nn.Module):
    """A convolution and its activation; on a CPU they are one pass over memory.

    Parameters
    ----------
    conv
        Frozen, with a bias.
    activation
        One of `ACTIVATIONS`.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation
        self.kind = ACTIVATIONS[type(activation)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) → what convolution, normalisation and activation give."""
        conv = self.conv
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if not plain or torch.is_grad_enabled() or torch.compiler.is_compiling():  # an export is one, too
            return self.activation(conv(x))
        # what torch's own compiler puts in place of a convolution with an activation
        return torch.ops.mkldnn._convolution_pointwise(
            x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, *self.kind, ""
        )


def fuse(module: nn.Module) -> nn.Module:
    """Replace, in place, every convolution whose parent holds a batch normalisation next to it.

    Which belongs to which is told from their order alone; whoever calls compares the outcome with a stored one.
    """
    before = ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before:
            conv, activation = getattr(module, before), getattr(child, "act", nn.Identity())  # timm's holds its own
            if type(activation) in ACTIVATIONS and conv.out_channels == child.num_features:
                setattr(module, before, FusedConv(fuse_conv_bn_eval(conv, child), activation))
                setattr(module, name, nn.Identity())
        else:
            fuse(child)
        before = name if isinstance(child, nn.Conv2d) else ""
    return module
