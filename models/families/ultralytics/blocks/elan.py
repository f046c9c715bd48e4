"""Blocks of YOLOv9: ELAN with re-parameterised convolutions, its ways to halve a map, and the links of YOLOv9-E.

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
Paper: YOLOv9 (arXiv 2402.13616).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.models.layers.conv import Conv
from deploykit.models.layers.csp import C3, Bottleneck
from deploykit.models.layers.norm import scale_batch_norms
from deploykit.models.layers.rep import folded_sum

__all__ = [
    "ELAN1",
    "SPPELAN",
    "AConv",
    "ADown",
    "CBFuse",
    "CBLinear",
    "RepBottleneck",
    "RepCSP",
    "RepConv",
    "RepNCSPELAN4",
]


class RepConv(nn.Module):
    """The activation of the sum of a 3x3 and a 1x1 convolution; ``fuse`` gives one 3x3. ``act``: None is SiLU."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = Conv(c1, c2, k, s, g=g, act=nn.Identity())
        self.conv2 = Conv(c1, c2, 1, s, g=g, act=nn.Identity())
        self.act = nn.SiLU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv1(x) + self.conv2(x))
        return out

    def random_weights(self, gain: float) -> None:
        """Branches that are smaller by as much as their sum is larger than one of them."""
        scale_batch_norms(self, math.sqrt(0.5))

    def fuse(self, path: str) -> Conv:
        """One convolution, under the names that the project gives it when it folds: ``conv`` and its bias."""
        return Conv.folded(folded_sum({"conv1": self.conv1, "conv2": self.conv2}, path), self.act)


class RepBottleneck(Bottleneck):
    """A bottleneck that begins with a :class:`RepConv`, both 3x3."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, shortcut, g, e, (3, 3))
        self.cv1 = RepConv(c1, int(c2 * e), 3)


class RepCSP(C3):
    """C3 with :class:`RepBottleneck`."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, e=e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(RepBottleneck(hidden, hidden, shortcut, g, 1.0) for _ in range(n)))


class ELAN1(nn.Module):
    """Two 3x3 convolutions in a row on the second half of the ``c3`` channels; both halves and both results are kept.

    ``c4``: channels of a result.
    """

    def __init__(self, c1: int, c2: int, c3: int, c4: int) -> None:
        super().__init__()
        self.c = c3 // 2
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2: nn.Module = Conv(self.c, c4, 3)
        self.cv3: nn.Module = Conv(c4, c4, 3)
        self.cv4 = Conv(2 * self.c + 2 * c4, c2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.cv1(x).split((self.c, self.c), 1)
        once = self.cv2(second)
        out: Tensor = self.cv4(torch.cat((first, second, once, self.cv3(once)), 1))
        return out


class RepNCSPELAN4(ELAN1):
    """ELAN1 in which each 3x3 convolution follows a :class:`RepCSP` of ``n``."""

    def __init__(self, c1: int, c2: int, c3: int, c4: int, n: int = 1) -> None:
        super().__init__(c1, c2, c3, c4)
        self.cv2 = nn.Sequential(RepCSP(self.c, c4, n), Conv(c4, c4, 3))
        self.cv3 = nn.Sequential(RepCSP(c4, c4, n), Conv(c4, c4, 3))


class AConv(nn.Module):
    """Half the size: a mean of 2x2 pixels with stride 1, then a 3x3 convolution with stride 2."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv1(F.avg_pool2d(x, 2, 1))
        return out


class ADown(nn.Module):
    """Half the size: a mean of 2x2 pixels with stride 1, then a half of the channels each in two ways with stride 2.

    The first half passes a 3x3 convolution, the second a max pool and a 1x1.
    """

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1 // 2, self.c, 3, 2)
        self.cv2 = Conv(c1 // 2, self.c, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.avg_pool2d(x, 2, 1).chunk(2, 1)
        return torch.cat((self.cv1(first), self.cv2(F.max_pool2d(second, 3, 2, 1))), 1)


class SPPELAN(nn.Module):
    """Three chained max pools of ``c3`` channels, all kept with what they pool."""

    def __init__(self, c1: int, c2: int, c3: int, k: int = 5) -> None:
        super().__init__()
        self.c = c3
        self.cv1 = Conv(c1, c3, 1)
        self.cv2 = nn.MaxPool2d(k, 1, k // 2)
        self.cv3 = nn.MaxPool2d(k, 1, k // 2)
        self.cv4 = nn.MaxPool2d(k, 1, k // 2)
        self.cv5 = Conv(4 * c3, c2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.cv1(x)]
        for pool in (self.cv2, self.cv3, self.cv4):
            kept.append(pool(kept[-1]))
        out: Tensor = self.cv5(torch.cat(kept, 1))
        return out


class CBLinear(nn.Module):
    """A 1x1 convolution with a bias, whose channels are cut into parts of the given widths: a map to several maps."""

    def __init__(self, c1: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.conv = nn.Conv2d(c1, sum(widths), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.widths, 1)  # type: ignore[no-any-return]

    def random_weights(self, gain: float) -> None:
        """Biases that are not 0, and half as much to add, because :class:`CBFuse` adds several of them to a map."""
        bias = self.conv.bias
        assert bias is not None
        nn.init.normal_(bias, std=0.1)
        self.conv.weight.data *= 0.5


class CBFuse(nn.Module):
    """The sum of the last input and of one part of each other input, scaled to its size by the nearest pixel.

    ``index``: which part, for each input but the last.
    """

    def __init__(self, index: Sequence[int]) -> None:
        super().__init__()
        self.idx = tuple(index)

    def forward(self, *inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
        total = inputs[-1]
        assert isinstance(total, Tensor)
        size = total.shape[2:]
        for parts, i in zip(inputs[:-1], self.idx, strict=True):
            total = total + F.interpolate(parts[i], size=size, mode="nearest")
        return total
