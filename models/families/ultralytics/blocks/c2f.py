"""Cross-stage blocks of YOLOv8 and YOLO11, and those of YOLOv5 with other kernels.

Facts from the published model descriptions (ultralytics, AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deploykit.models.families.ultralytics.blocks.psa import PSABlock, heads_of
from deploykit.models.layers import csp
from deploykit.models.layers.conv import Conv, Size
from deploykit.models.layers.csp import C3
from deploykit.models.layers.norm import scale_batch_norms
from deploykit.models.layers.pool import SPP, SPPF

__all__ = ["C1", "C2", "C3", "SPP", "SPPF", "Bottleneck", "C2f", "C3k", "C3k2", "C3x"]


class Bottleneck(csp.Bottleneck):
    """Two convolutions, both 3x3 unless ``k`` says otherwise; the input is added as in :class:`csp.Bottleneck`."""

    def __init__(
        self,
        c1: int,
        c2: int,
        shortcut: bool = True,
        g: int = 1,
        k: tuple[Size, Size] = (3, 3),
        e: float = 0.5,
    ) -> None:
        super().__init__(c1, c2, shortcut, g, e, k)


class C1(nn.Module):
    """A 1x1 convolution, and ``n`` of 3x3 in a row whose result is added to its own."""

    def __init__(self, c1: int, c2: int, n: int = 1) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 1)
        self.m = nn.Sequential(*(Conv(c2, c2, 3) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv1(x)
        added: Tensor = self.m(y)
        return y + added

    def random_weights(self, gain: float) -> None:
        """Half as much added, so that the sum does not grow."""
        scale_batch_norms(self.m[-1], 0.5)


class C2(nn.Module):
    """``n`` bottlenecks on the first half of the channels, nothing on the second; only the last one's result is kept.

    ``c``: channels of a half.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        self.c = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv(2 * self.c, c2, 1)
        self.m = nn.Sequential(*(Bottleneck(self.c, self.c, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        worked, bypass = self.cv1(x).split((self.c, self.c), 1)
        out: Tensor = self.cv2(torch.cat((self.m(worked), bypass), 1))
        return out


class C2f(nn.Module):
    """``n`` bottlenecks in a row on the second half of the channels; both halves and every result are kept.

    ``c``: channels of a half. ``block``: makes other blocks than bottlenecks, given their channels.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = False,
        g: int = 1,
        e: float = 0.5,
        *,
        block: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.c = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv((2 + n) * self.c, c2, 1)
        make = block or (lambda c: Bottleneck(c, c, shortcut, g, e=1.0))
        self.m = nn.ModuleList(make(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        kept = list(self.cv1(x).split((self.c, self.c), 1))
        for block in self.m:
            kept.append(block(kept[-1]))
        out: Tensor = self.cv2(torch.cat(kept, 1))
        return out


class C3k(C3):
    """C3 with bottlenecks of two k x k convolutions."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, k: int = 3
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e, (k, k))


class C3x(C3):
    """C3 with bottlenecks of a 1x3 and a 3x1 convolution."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e, ((1, 3), (3, 1)))


class C3k2(C2f):
    """C2f with ``n`` narrower bottlenecks, or with C3k where ``c3k`` asks for it.

    ``attn``: a bottleneck and a :class:`PSABlock` instead of either.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        c3k: bool = False,
        e: float = 0.5,
        attn: bool = False,
        g: int = 1,
        shortcut: bool = True,
    ) -> None:
        def block(c: int) -> nn.Module:
            if attn:
                return nn.Sequential(Bottleneck(c, c, shortcut, g), PSABlock(c, heads=heads_of(c)))
            return C3k(c, c, 2, shortcut, g) if c3k else Bottleneck(c, c, shortcut, g)

        super().__init__(c1, c2, n, shortcut, g, e, block=block)
