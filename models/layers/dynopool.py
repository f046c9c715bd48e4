"""DynOPool: a resizing whose ratio is learned (arXiv 2205.15254, of which no code is public; the code is ours).

The output has ``floor(H r_h) x floor(W r_w)`` cells. Each looks at the input at four points, a quarter of a cell from
its middle in both directions, interpolates there bilinearly, and keeps the largest of the four values.

Those points are the middles of half cells. So the whole is a bilinear resize to twice the output's size, pixel centres
aligned, and a 2 x 2 max pooling of that: two operators, which ONNX Runtime and TensorRT both have. With r = 1/2 and
even sides the points are the input's own pixels, and it is max pooling. (The source leaves open how far the points lie
from the middle; a quarter is what makes that so.)

How r is kept is not published either beyond that it is not learned directly, because its gradient explodes: here it is
1 / alpha, so a step in alpha changes the size of a cell, and large maps change slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models._fuse import shared_copy

__all__ = ["DynOPool", "FixedPool", "complexity", "freeze", "output_side", "resize_and_pool"]

ROUNDING = 1e-6
"""Of a side times a ratio: 9 cells at a ratio of 1/3 are 3, whatever float32 makes of a third."""


def output_side(side: int, ratio: float) -> int:
    """``floor(side * ratio)``, and at least 1: the one rule, for training and for export."""
    return max(1, math.floor(side * ratio + ROUNDING))


def resize_and_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to ``(B, C, *size)``, without a gradient for the size."""
    twice = (2 * size[0], 2 * size[1])
    if twice != tuple(x.shape[2:]):  # at a ratio of 1/2 the points are the pixels
        x = functional.interpolate(x, size=twice, mode="bilinear", align_corners=False)
    return functional.max_pool2d(x, 2)


class DynOPool(nn.Module):
    """The learned form: ``(B, C, H, W)`` to ``(B, C, floor(H r_h), floor(W r_w))``.

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
        rows, columns = (1.0 / a for a in self.alpha.detach().double().tolist())
        return output_side(height, rows), output_side(width, columns)

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
        rows, columns = (1.0 / a for a in self.alpha.detach().double().tolist())
        return FixedPool(rows, columns)

    def random_weights(self) -> None:
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
    """

    def __init__(self, rows: float, columns: float) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return resize_and_pool(x, (output_side(height, self.rows), output_side(width, self.columns)))


def freeze(network: nn.Module) -> nn.Module:
    """A copy with every :class:`DynOPool` in its frozen form, and nothing else changed."""
    if isinstance(network, DynOPool):
        return network.fuse("")
    new = shared_copy(network)
    new._modules = {name: None if m is None else freeze(m) for name, m in network._modules.items()}
    return new.train(network.training)


def complexity(areas: Iterable[tuple[int, tuple[DynOPool, ...]]]) -> Tensor:
    """The loss term that keeps maps small: multiply-adds in units of 10^9, with a gradient for every ratio.

    Args:
        areas: of each layer its multiply-adds, and the resizings between the picture and it, of which both axes'
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
