"""Blocks of YOLOv6 beside RepVGG (upstream ``yolov6/layers/common.py``, GPL-3.0: facts only, the code is ours).

Papers: arXiv 2209.02976 (YOLOv6), arXiv 2301.05586 (YOLOv6 3.0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.norm import scale_batch_norms
from deploykit.models.layers.pool import SPPF

Block = Callable[[int, int], nn.Module]
"""A 3x3 block of stride 1 by its channels, in and out."""


class BottleRep(nn.Module):
    """Two blocks, and ``alpha * x`` with one learned number added where the channels agree."""

    def __init__(self, c1: int, c2: int, block: Block) -> None:
        super().__init__()
        self.conv1 = block(c1, c2)
        self.conv2 = block(c2, c2)
        self.add = c1 == c2
        self.alpha: Tensor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return y + self.alpha * x if self.add else y

    def random_weights(self, gain: float) -> None:
        """Half as much added, and less than the whole input: what a block gives is never negative."""
        scale_batch_norms(self.conv2, 0.5)
        nn.init.uniform_(self.alpha, 0.6, 0.9)

    def fuse(self, path: str) -> BottleRep:
        """Fold both blocks; the learned number becomes a constant, so that parameters are those of convolutions."""
        new = BottleRep.__new__(BottleRep)
        modules = {name: fuse_model(m, f"{path}.{name}") for name, m in self.named_children()}
        new.__dict__ = {**self.__dict__, "_modules": modules, "_parameters": {}}
        new.register_buffer("alpha", self.alpha.detach())
        return new


class Chain(nn.Module):
    """``count`` blocks in a row; the first may change the number of channels (upstream's RepBlock)."""

    def __init__(self, c1: int, c2: int, count: int, block: Block) -> None:
        super().__init__()
        self.conv1 = block(c1, c2)
        self.block = nn.Sequential(*(block(c2, c2) for _ in range(count - 1))) if count > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return x if self.block is None else cast(Tensor, self.block(x))


class BepC3(nn.Module):
    """A chain of bottlenecks beside a 1x1 convolution, joined by another; ``hidden`` channels in each."""

    def __init__(
        self, c1: int, c2: int, count: int, block: Block, hidden: int, act: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.cv1 = Conv(c1, hidden, act=act())
        self.cv2 = Conv(c1, hidden, act=act())
        self.cv3 = Conv(2 * hidden, c2, act=act())
        self.m = Chain(hidden, hidden, count, lambda a, b: BottleRep(a, b, block))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return out


class Transpose(nn.Module):
    """Twice the size by a learned 2x2 transposed convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsample_transpose = nn.ConvTranspose2d(channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.upsample_transpose(x))


class BiFusion(nn.Module):
    """Three levels to the middle one: the small one enlarged, the middle one, the large one halved, then a 1x1.

    ``(B, c, H/2, W/2)``, ``(B, c_same, H, W)``, ``(B, c_large, 2H, 2W)`` to ``(B, c, H, W)``.
    """

    def __init__(self, c_same: int, c_large: int, c: int) -> None:
        super().__init__()
        self.cv1 = Conv(c_same, c, act=nn.ReLU())
        self.cv2 = Conv(c_large, c, act=nn.ReLU())
        self.cv3 = Conv(3 * c, c, act=nn.ReLU())
        self.upsample = Transpose(c)
        self.downsample = Conv(c, c, 3, 2, act=nn.ReLU())

    def forward(self, small: Tensor, same: Tensor, large: Tensor) -> Tensor:
        parts = (self.upsample(small), self.cv1(same), self.downsample(self.cv2(large)))
        out: Tensor = self.cv3(torch.cat(parts, 1))
        return out


class SimSPPF(SPPF):
    """SPPF with another activation than SiLU."""

    def __init__(self, c1: int, c2: int, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__(c1, c2)
        self.cv1.act, self.cv2.act = act(), act()


class CSPSPPF(nn.Module):
    """SPPF in a cross-stage block; the concatenation's order is (bypass, pooled), the other way than in SPPCSPC."""

    def __init__(self, c1: int, c2: int, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(c1, hidden, act=act())
        self.cv2 = Conv(c1, hidden, act=act())
        self.cv3 = Conv(hidden, hidden, 3, act=act())
        self.cv4 = Conv(hidden, hidden, act=act())
        self.m = nn.MaxPool2d(5, 1, 2)
        self.cv5 = Conv(4 * hidden, hidden, act=act())
        self.cv6 = Conv(hidden, hidden, 3, act=act())
        self.cv7 = Conv(2 * hidden, c2, act=act())

    def forward(self, x: Tensor) -> Tensor:
        main = self.cv4(self.cv3(self.cv1(x)))
        once = self.m(main)
        twice = self.m(once)
        pooled = self.cv6(self.cv5(torch.cat((main, once, twice, self.m(twice)), 1)))
        out: Tensor = self.cv7(torch.cat((self.cv2(x), pooled), 1))
        return out
