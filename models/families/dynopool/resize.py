"""DynOPool: a resizing whose ratio is learned (arXiv 2205.15254, of which no code is public; the code is ours).

The output has ``H r_h x W r_w`` cells, rounded to the nearest. Each looks at the input at four points, a quarter of a
cell from its middle in both directions, interpolates there bilinearly, and keeps the largest of the four values.

Those points are the middles of half cells. So the whole is a bilinear resize to twice the output's size, pixel centres
aligned, and a 2 x 2 max pooling of that: two operators, which ONNX Runtime and TensorRT both have. With r = 1/2 and
even sides the points are the input's own pixels, and it is max pooling. (The source leaves open how far the points lie
from the middle; a quarter is what makes that so.)

How r is kept is not published either beyond that it is not learned directly, because its gradient explodes: here it is
1 / alpha, so a step in alpha changes the size of a cell, and large maps change slowly.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DynOPool", "FixedPool", "complexity", "in_units", "output_side", "resize_and_pool"]

UNIT = 1 << 32
"""What ratios are counted in, so that a side is a product of whole numbers: exact, and the same in a graph."""

CLOSE = 1.0 + 2.0**-22
"""Ratios are taken this much larger, so that halves are rounded up: 5 cells at 0.3 are 2, whatever a float32 alpha
makes of 1 / 0.3."""


def in_units(ratio: float) -> int:
    """A ratio as :func:`output_side` takes it, a multiple of ``1 / UNIT``."""
    return round(ratio * CLOSE * UNIT)


def output_side(side: int, units: int) -> int:
    """``side * r`` to the nearest whole number, halves up, and at least 1; r is in units. The one rule, for training,
    for export, and in a graph.

    With whole numbers only, because an exporter writes a float as float32, which rounds to other sides.
    """
    cells: int | Tensor = (side * units + UNIT // 2) // UNIT
    if isinstance(cells, Tensor):  # torch's legacy exporter, for which max() would choose once, by the example
        return cells.clamp(min=1)  # type: ignore[return-value]  # stands for an int while that traces
    return max(1, cells)


def resize_and_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to ``(B, C, *size)``, without a gradient for the size."""
    height, width = x.shape[2:]
    twice = (2 * size[0], 2 * size[1])
    # At a ratio of 1/2 the points are the pixels. That holds only for a known size: asked of a free one while it
    # is exported, the example's answer would be that of every size, and odd sides would lose their last row.
    known = all(isinstance(n, int) for n in (height, width, *twice))
    if not (known and twice == (height, width)):
        x = functional.interpolate(x, size=twice, mode="bilinear", align_corners=False)
    return functional.max_pool2d(x, 2)


class DynOPool(nn.Module):
    """The learned form: ``(B, C, H, W)`` to ``(B, C, H r_h, W r_w)``, rounded.

    The size is a whole number, so it has no gradient; the ratio gets the gradient of the points' places (straight
    through). Values are those of :func:`resize_and_pool`.

    Args:
        ratio: r of both axes before training.
    """

    def __init__(self, ratio: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((2,), 1.0 / ratio))

    @property
    def ratio(self) -> Tensor:
        """``(2,)``: r_h and r_w, with the gradient of alpha."""
        return 1.0 / self.alpha

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The output's size for an input's."""
        rows, columns = self._units()
        return output_side(height, rows), output_side(width, columns)

    def _units(self) -> tuple[int, int]:
        rows, columns = (in_units(1.0 / a) for a in self.alpha.detach().double().tolist())
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        size = self.size_of(height, width)
        ratio = self.ratio
        for axis, (side, cells) in enumerate(zip((height, width), size, strict=True)):
            real = ratio[axis] + (cells / side - ratio[axis]).detach()  # the whole number's, with r's gradient
            middles = (torch.arange(2 * cells, dtype=x.dtype, device=x.device) + 0.5) / (2 * real)
            x = _lerp(x, axis + 2, middles - 0.5)
        return functional.max_pool2d(x, 2)

    def fuse(self, path: str) -> FixedPool:
        """The form with ratios that are not learned any more."""
        return FixedPool(*self._units())

    def random_weights(self, gain: float) -> None:
        """Ratios near those before training, and not the same on both axes."""
        with torch.no_grad():
            self.alpha.mul_(torch.empty(2).uniform_(0.85, 1.15))


def _lerp(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Values between the pixels of an axis, at ``places`` in pixels; beyond the ends those of the ends."""
    last = x.shape[axis] - 1
    inside = places.clamp(0, last)
    below = inside.detach().floor().long()
    above = (below + 1).clamp(max=last)
    shape = [1] * x.ndim
    shape[axis] = -1
    share = (inside - below).view(shape).to(x.dtype)
    return x.index_select(axis, below) * (1 - share) + x.index_select(axis, above) * share


class FixedPool(nn.Module):
    """The frozen form of a :class:`DynOPool`, for inference and export; sizes follow from its input's by the same rule.

    Exported for one size, the output's size is a constant; with a free shape the rule becomes part of the graph.

    Args:
        rows, columns: r_h and r_w, :func:`in_units`.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return resize_and_pool(x, (output_side(height, self.rows), output_side(width, self.columns)))


def complexity(areas: Iterable[tuple[int, tuple[DynOPool, ...]]]) -> Tensor:
    """The loss term that keeps maps small: multiply-adds in units of 10^9, with a gradient for every ratio.

    Args:
        areas: of each layer its multiply-adds, and the resizings between the image and it, of which both axes'
            ratios scale them.
    """
    total = torch.zeros(())
    for count, pools in areas:
        share = torch.ones(())
        for pool in pools:
            product = pool.ratio.prod()
            share = share * product / product.detach()
        total = total + count / 1e9 * share
    return total
