"""Depthwise blocks of YOLOv10.

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
Paper: YOLOv10 (arXiv 2405.14458).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from deploykit.models.families.ultralytics.blocks.c2f import C2f
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.norm import scale_batch_norms
from deploykit.models.layers.rep import folded_sum

__all__ = ["CIB", "C2fCIB", "RepVGGDW", "SCDown"]


class SCDown(nn.Module):
    """A 1x1 convolution, then a depthwise k x k with stride ``s`` and without an activation."""

    def __init__(self, c1: int, c2: int, k: int, s: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 1)
        self.cv2 = Conv(c2, c2, k, s, g=c2, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv2(self.cv1(x))
        return out


class RepVGGDW(nn.Module):
    """The activation of the sum of a 7x7 and a 3x3 depthwise convolution; ``fuse`` gives one 7x7."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = Conv(c, c, 7, g=c, act=nn.Identity())
        self.conv1 = Conv(c, c, 3, g=c, act=nn.Identity())
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x) + self.conv1(x))
        return out

    def random_weights(self, gain: float) -> None:
        """Branches that are smaller by as much as their sum is larger than one of them."""
        scale_batch_norms(self, math.sqrt(0.5))

    def fuse(self, path: str) -> Conv:
        """One convolution, under the names that the project gives it when it folds: ``conv`` and its bias."""
        return Conv.folded(folded_sum({"conv": self.conv, "conv1": self.conv1}, path), self.act)


class CIB(nn.Module):
    """Depthwise and 1x1 convolutions in turn; the input is added where ``shortcut`` asks for it and channels stay.

    ``lk``: the middle one is a :class:`RepVGGDW`, not 3x3.
    """

    def __init__(self, c1: int, c2: int, shortcut: bool = True, e: float = 0.5, lk: bool = False) -> None:
        super().__init__()
        wide = 2 * int(c2 * e)
        self.cv1 = nn.Sequential(
            Conv(c1, c1, 3, g=c1),
            Conv(c1, wide, 1),
            RepVGGDW(wide) if lk else Conv(wide, wide, 3, g=wide),
            Conv(wide, c2, 1),
            Conv(c2, c2, 3, g=c2),
        )
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv1(x)
        return x + y if self.add else y

    def random_weights(self, gain: float) -> None:
        """Half as much added to the input, so that the sum does not grow."""
        if self.add:
            scale_batch_norms(self.cv1[-1], 0.5)


class C2fCIB(C2f):
    """C2f with ``n`` :class:`CIB`. ``g`` has no use."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, lk: bool = False, g: int = 1, e: float = 0.5
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e, block=lambda c: CIB(c, c, shortcut, 1.0, lk))
