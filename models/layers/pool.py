"""Pooling: blocks of the YOLO families (upstream ``models/common.py``, GPL-3.0: facts only, the code is ours), and the
mean of a whole map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploykit.models.layers.conv import Conv
from deploykit.models.layers.norm import scale_batch_norms


class GlobalMean(nn.Module):
    """The mean of each channel: ``(B, C, H, W)`` to ``(B, C, 1, 1)``.

    It is a mean of rows, then one of their means. ONNX Runtime (1.31 at least) adds up a map value by value in float32:
    where three quarters are equal, as in a dark image, the mean of 112 x 112 is off by 2e-5 of its value, of 256 x 256
    by 9e-5 and of 1024 x 1024 by 1.5e-3. Means of rows leave 4e-7, 2e-6 and 6e-6.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(3, keepdim=True).mean(2, keepdim=True)


class ZeroPad2d(nn.ZeroPad2d):
    """Torch's layer, ``padding`` is (left, right, top, bottom), exported as a concatenation with zeros.

    ONNX Runtime (1.31 at least) merges a padding into the max pool behind it, which pads with minus infinity: where
    values are negative, its result is another than that of the two (microsoft/onnxruntime, its PadFusion).
    """

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.padding
        if min(self.padding) < 0:  # it crops
            return super().forward(x)
        return _with_zeros(_with_zeros(x, 3, left, right), 2, top, bottom)


def _with_zeros(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """``x`` between so many zeros along an axis."""
    parts = [x]
    for count, place in ((before, 0), (after, 2)):
        if count:
            shape = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
            parts.insert(place, x.new_zeros(shape))
    return torch.cat(parts, axis)


class MP(nn.Module):
    """Max pool k x k, stride k."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(k, k)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.m(x)
        return out


class SP(nn.Module):
    """Max pool k x k, stride ``s`` (1), padded to keep the size."""

    def __init__(self, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(k, s, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.m(x)
        return out


class SPF(SP):
    """SP by a chain of (k - 1) // 2 pools of 3x3 in the yolov7-face project, which give what one large pool gives."""

    def __init__(self, k: int = 3, s: int = 1) -> None:
        if s != 1:
            raise ValueError(f"a chain of pools with stride {s} is no single pool")
        super().__init__(2 * ((k - 1) // 2) + 1)


class SPPCSPC(nn.Module):
    """Spatial pyramid pooling in a cross-stage block; the concatenation's order is (pooled, bypass)."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = False,
        g: int = 1,
        e: float = 0.5,
        k: tuple[int, ...] = (5, 9, 13),
    ) -> None:
        super().__init__()
        hidden = int(2 * c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(hidden, hidden, 3, 1)
        self.cv4 = Conv(hidden, hidden, 1, 1)
        self.m: nn.Module = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in k)
        self.cv5 = Conv(4 * hidden, hidden, 1, 1)
        self.cv6 = Conv(hidden, hidden, 3, 1)
        self.cv7 = Conv(2 * hidden, c2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        main = self.cv4(self.cv3(self.cv1(x)))
        pooled = self.cv6(self.cv5(torch.cat((main, *self._pools(main)), 1)))
        out: Tensor = self.cv7(torch.cat((pooled, self.cv2(x)), 1))
        return out

    def _pools(self, x: Tensor) -> list[Tensor]:
        assert isinstance(self.m, nn.ModuleList)
        return [pool(x) for pool in self.m]


class SPPFCSPC(SPPCSPC):
    """SPPCSPC with one pool three times in a row (yolov7-face, and many derivatives of YOLOv7)."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5, k: int = 5
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e, ())
        hidden = self.cv1.conv.out_channels
        self.m = nn.MaxPool2d(k, 1, k // 2)
        self.cv5 = Conv(4 * hidden, hidden, 1, 1)

    def _pools(self, x: Tensor) -> list[Tensor]:
        once = self.m(x)
        twice = self.m(once)
        return [once, twice, self.m(twice)]


class SPP(nn.Module):
    """Max pools of several sizes side by side, beside what they pool (YOLOv5 before 6.0)."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        out: Tensor = self.cv2(torch.cat((x, *(m(x) for m in self.m)), 1))
        return out


class SPPF(nn.Module):
    """``n`` chained max pools instead of parallel ones of growing size (YOLOv5 6.0 and later, yolov7-lite).

    ``shortcut``: the input is added where the channels stay the same; ``act`` is that of ``cv1``, None is SiLU.
    """

    def __init__(
        self, c1: int, c2: int, k: int = 5, n: int = 3, shortcut: bool = False, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1, act=act)
        self.cv2 = Conv(hidden * (n + 1), c2, 1, 1)
        self.m = nn.MaxPool2d(k, 1, k // 2)
        self.n = n
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.cv1(x)]
        for _ in range(self.n):
            pooled.append(self.m(pooled[-1]))
        y: Tensor = self.cv2(torch.cat(pooled, 1))
        return x + y if self.add else y

    def random_weights(self, gain: float) -> None:
        """Half as much added to the input, so that the sum does not grow."""
        if self.add:
            scale_batch_norms(self.cv2, 0.5)
