"""Cells of feature maps: where they lie, how they are picked, and how distances around them become boxes.

Facts from the published model descriptions (the original is AGPL-3.0); the code is ours. The distribution over
distances is that of arXiv 2006.04388.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Cells", "Distribution", "RawLevel", "cells_of", "corners", "turned_box", "upright_box"]


class RawLevel(NamedTuple):
    """What a head computes from one feature map, before any decode; all of one height and width.

    ``box`` is ``(B, 4 reg_max, H, W)``, ``cls`` ``(B, classes, H, W)`` logits, ``extra`` ``(B, extras, H, W)`` or None.
    """

    box: Tensor
    cls: Tensor
    extra: Tensor | None


class Cells(NamedTuple):
    """Cells with their raw values: first :func:`cells_of` all levels, and then those that :meth:`take` picks.

    ``box`` is ``(B, N, 4 reg_max)``, ``cls`` ``(B, N, classes)``, ``extra`` ``(B, N, extras)`` or None. ``points`` are
    the middles of the cells in (x, y) in cells of their level, ``strides`` the width of a cell in pixels: ``(N, 2)``
    and ``(N, 1)`` for all, ``(B, k, 2)`` and ``(B, k, 1)`` for picked cells.
    """

    box: Tensor
    cls: Tensor
    extra: Tensor | None
    points: Tensor
    strides: Tensor

    def take(self, index: Tensor) -> Cells:
        """The cells ``index`` (B, k) of each image; of all cells only."""
        box, cls = _picked(self.box, index), _picked(self.cls, index)
        extra = None if self.extra is None else _picked(self.extra, index)
        return Cells(box, cls, extra, F.embedding(index, self.points), F.embedding(index, self.strides))


def _picked(values: Tensor, index: Tensor) -> Tensor:
    """``(B, N, C)`` and ``(B, k)`` to ``(B, k, C)``."""
    return torch.gather(values, 1, index[..., None].expand(-1, -1, values.shape[2]))


def cells_of(raw: Sequence[RawLevel], strides: Sequence[int]) -> Cells:
    """All cells of all levels: levels in their order, each by grid rows and then columns."""
    box = torch.cat([level.box.flatten(2) for level in raw], 2).transpose(1, 2)
    cls = torch.cat([level.cls.flatten(2) for level in raw], 2).transpose(1, 2)
    extras = [level.extra.flatten(2) for level in raw if level.extra is not None]
    extra = torch.cat(extras, 2).transpose(1, 2) if extras else None
    points = torch.cat([_middles(level.box) for level in raw])
    widths = [level.box.new_full((level.box[0, 0].numel(), 1), s) for level, s in zip(raw, strides, strict=True)]
    return Cells(box, cls, extra, points, torch.cat(widths))


def _middles(like: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(H W, 2)``."""
    h, w = like.shape[2:]
    x = torch.arange(w, dtype=like.dtype, device=like.device) + 0.5
    y = torch.arange(h, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1)


class Distribution(nn.Module):
    """Means of distributions over the distances 0, 1, ..., one for each side: ``(..., 4 bins)`` to ``(..., 4)``."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.conv = _Values(bins)

    def forward(self, x: Tensor) -> Tensor:
        shares = x.reshape(*x.shape[:-1], 4, self.bins).softmax(-1)
        # A matrix of one column and not a vector: ONNX Runtime multiplies all rows by it at once, and by a vector one
        # cell after the other, which takes 25 times as long.
        return (shares @ self.conv.weight.view(self.bins, 1)).squeeze(-1)


class _Values(nn.Module):
    """The bins' values, which the original keeps as the weight of a convolution."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        # On the meta device torch.arange imports torch's compiler, which takes a second.
        values = torch.tensor(range(bins), dtype=torch.float32).view(1, bins, 1, 1)
        self.weight = nn.Parameter(values, requires_grad=False)


def upright_box(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Distances left, top, right, bottom ``(..., 4)`` in cells to ``cx, cy, w, h`` in pixels."""
    before, after = torch.split(distances, 2, -1)
    return torch.cat((points + (after - before) / 2, before + after), -1) * strides


def turned_box(distances: Tensor, angle: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """The same around a point of a box that is turned by ``angle`` (..., 1), in radians from x towards y."""
    before, after = torch.split(distances, 2, -1)
    x, y = torch.split((after - before) / 2, 1, -1)
    cos, sin = angle.cos(), angle.sin()
    offset = torch.cat((x * cos - y * sin, x * sin + y * cos), -1)
    return torch.cat((points + offset, before + after), -1) * strides


def corners(boxes: Tensor) -> Tensor:
    """``cx, cy, w, h`` (..., 4) to ``x1, y1, x2, y2``."""
    centre, size = torch.split(boxes, 2, -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1)
