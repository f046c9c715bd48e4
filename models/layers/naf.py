"""Blocks of NAFNet (arXiv 2204.04676; megvii-research/NAFNet, MIT) and of its test-time local converter (TLC, arXiv
2112.04491): state-dict keys and numbers are the original's, the code is ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.fuse import check_fold, fold_into, probe_of, shared_copy
from deploykit.models.layers.norm import LayerNorm2d
from deploykit.models.layers.pool import GlobalMean

__all__ = ["BoxMean", "FixedAttention", "NafBlock", "naf_blocks", "simple_gate"]


def simple_gate(x: Tensor) -> Tensor:
    """One half of the channels times the other."""
    one, other = x.chunk(2, 1)
    return one * other


class BoxMean(nn.Module):
    """The mean of a window around each pixel, in place of a global mean: ``(B, C, H, W)`` to the same.

    The window is ``side`` pixels, or the map where that is smaller; it never leaves the map, so near the borders the
    nearest whole window's mean is repeated. Where it covers the map, the result is the global mean ``(B, C, 1, 1)``.

    One running sum an axis, not one of both: the sums then stay small, and float32 is off by 1.4e-7 of values of 0 to
    1 where windows of 192 slide over 360 x 640. A pooling layer of that window takes ONNX Runtime four times as long.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.whole = GlobalMean()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.side >= height and self.side >= width:
            mean: Tensor = self.whole(x)
            return mean
        rows, columns = min(self.side, height), min(self.side, width)
        means = _running_mean(_running_mean(x, 2, rows), 3, columns)
        top, left = (rows - 1) // 2, (columns - 1) // 2
        borders = (left, columns - 1 - left, top, rows - 1 - top)
        return functional.pad(means, borders, mode="replicate")


def _running_mean(x: Tensor, axis: int, window: int) -> Tensor:
    """The means of all whole windows along an axis."""
    count = x.shape[axis] - window + 1
    sums = functional.pad(x.cumsum(axis), (1, 0) if axis == 3 else (0, 0, 1, 0))
    return (sums.narrow(axis, window, count) - sums.narrow(axis, 0, count)) / window


class FixedAttention(nn.Module):
    """A channel attention that was measured once, on one image: it looks at nothing any more."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.values, Tensor)
        return self.values


class NafBlock(nn.Module):
    """Two residual branches, without an activation: a gated depthwise one with channel attention, and a gated one of
    1 x 1 convolutions. ``(B, C, H, W)`` to the same.

    Args:
        channels: C.
        wide: channels of the first branch's convolutions, 2 C as published.
        wide_ffn: of the second's.
    """

    def __init__(self, channels: int, wide: int, wide_ffn: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(wide // 2, channels, 1)
        self.sca: nn.Module = nn.Sequential(GlobalMean(), nn.Conv2d(wide // 2, wide // 2, 1))
        self.conv4 = nn.Conv2d(channels, wide_ffn, 1)
        self.conv5 = nn.Conv2d(wide_ffn // 2, channels, 1)
        self.norm1, self.norm2 = LayerNorm2d(channels), LayerNorm2d(channels)
        self.beta: nn.Parameter | None = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma: nn.Parameter | None = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def gated(self, x: Tensor) -> Tensor:
        """What the channel attention looks at, and what it is multiplied with."""
        return simple_gate(self.conv2(self.conv1(self.norm1(x))))

    def forward(self, x: Tensor) -> Tensor:
        gated = self.gated(x)
        first = self.conv3(gated * self.sca(gated))
        x = x + (first if self.beta is None else self.beta * first)
        second = self.conv5(simple_gate(self.conv4(self.norm2(x))))
        out: Tensor = x + (second if self.gamma is None else self.gamma * second)
        return out

    def fuse(self, path: str) -> NafBlock:
        """Fold the learned factors of both branches into their last convolutions."""
        new = shared_copy(self)
        new.conv3, new.beta = _scaled(self.conv3, self.beta, f"{path}.conv3"), None
        new.conv5, new.gamma = _scaled(self.conv5, self.gamma, f"{path}.conv5"), None
        return new

    def random_weights(self, gain: float) -> None:
        """Branches that add a part of what is there already, and an attention around 1: its input has no mean here."""
        for factor in (self.beta, self.gamma):
            assert factor is not None
            nn.init.uniform_(factor, 0.2, 0.4)
        assert isinstance(self.sca, nn.Sequential)
        last = self.sca[1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.normal_(last.bias, 1.0, 0.1)


def _scaled(conv: nn.Conv2d, factor: nn.Parameter | None, path: str) -> nn.Conv2d:
    if factor is None:
        return conv
    wide = factor.detach().double()
    bias = torch.zeros(conv.out_channels, dtype=torch.float64) if conv.bias is None else conv.bias.detach().double()
    folded = fold_into(conv, conv.weight.detach().double() * wide.view(-1, 1, 1, 1), bias * wide.flatten())

    def before(x: Tensor) -> Tensor:
        return wide * functional.conv2d(x, conv.weight.double(), bias)

    def after(x: Tensor) -> Tensor:
        assert folded.bias is not None
        return functional.conv2d(x, folded.weight.double(), folded.bias.double())

    check_fold(path, "factor", before, after, probe_of(conv))
    return folded


def naf_blocks(module: nn.Module) -> Iterator[NafBlock]:
    """Every block of a network, in its order."""
    return (m for m in module.modules() if isinstance(m, NafBlock))
