"""Blocks of YOLOX (upstream ``yolox/models/network_blocks.py``, Apache-2.0: facts only, the code is ours).

They compute what blocks of YOLOv5 compute, under other attribute names, because the names are the state dict's keys.
Each takes a function that makes its activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deploykit.models.layers.conv import Conv
from deploykit.models.layers.norm import scale_batch_norms

__all__ = ["Activation", "Bottleneck", "CSPLayer", "DepthwiseConv", "Residual", "SPPBottleneck", "conv_of"]

Activation = Callable[[], nn.Module]


class DepthwiseConv(nn.Module):
    """k x k on each channel by itself, then 1x1 across them; batch norm and activation after both."""

    def __init__(self, c1: int, c2: int, k: int, s: int = 1, *, act: Activation) -> None:
        super().__init__()
        self.dconv = Conv(c1, c1, k, s, g=c1, act=act())
        self.pconv = Conv(c1, c2, 1, act=act())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pconv(self.dconv(x))
        return out


def conv_of(c1: int, c2: int, k: int, s: int = 1, *, depthwise: bool, act: Activation) -> nn.Module:
    """A convolution, or a depthwise one in its place."""
    return DepthwiseConv(c1, c2, k, s, act=act) if depthwise else Conv(c1, c2, k, s, act=act())


class Bottleneck(nn.Module):
    """1x1 then 3x3, of as many channels all the way; the input is added where ``shortcut`` asks for it."""

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool, act: Activation) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 1, act=act())
        self.conv2 = conv_of(channels, channels, 3, depthwise=depthwise, act=act)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return x + y if self.add else y

    def random_weights(self, gain: float) -> None:
        """Half as much added to the input, so that the sum does not grow."""
        if self.add:
            scale_batch_norms(self.conv2.pconv if isinstance(self.conv2, DepthwiseConv) else self.conv2, 0.5)


class CSPLayer(nn.Module):
    """``n`` bottlenecks on one half of the channels, nothing on the other; joined in the order (worked, bypass)."""

    def __init__(
        self, c1: int, c2: int, n: int, *, shortcut: bool = True, depthwise: bool = False, act: Activation
    ) -> None:
        super().__init__()
        hidden = c2 // 2
        self.conv1 = Conv(c1, hidden, 1, act=act())
        self.conv2 = Conv(c1, hidden, 1, act=act())
        self.conv3 = Conv(2 * hidden, c2, 1, act=act())
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut, depthwise=depthwise, act=act) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        worked, bypass = self.conv1(x), self.conv2(x)
        out: Tensor = self.conv3(torch.cat((self.m(worked), bypass), 1))
        return out


class SPPBottleneck(nn.Module):
    """Max pools of several sizes side by side, beside what they pool.

    The ``ti_lite`` models pool by chains of 3x3 instead, which gives the same and has no weights either.
    """

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), *, act: Activation) -> None:
        super().__init__()
        hidden = c1 // 2
        self.conv1 = Conv(c1, hidden, 1, act=act())
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in k)
        self.conv2 = Conv(hidden * (len(k) + 1), c2, 1, act=act())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out: Tensor = self.conv2(torch.cat((x, *(m(x) for m in self.m)), 1))
        return out


class Residual(nn.Module):
    """1x1 to half of the channels, 3x3 back, and the input added (YOLOv3's Darknet)."""

    def __init__(self, channels: int, *, act: Activation) -> None:
        super().__init__()
        self.layer1 = Conv(channels, channels // 2, 1, act=act())
        self.layer2 = Conv(channels // 2, channels, 3, act=act())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer2(self.layer1(x))
        return x + y

    def random_weights(self, gain: float) -> None:
        """Half as much added to the input, so that the sum does not grow."""
        scale_batch_norms(self.layer2, 0.5)
