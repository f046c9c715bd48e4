"""Operators that torch lacks: each has one meaning here, and a translation of its own in an export.

Importing this module registers them. They are of detectors in two stages; :func:`best_scores` is of all NMS in graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["best_scores", "keep_best", "roi_align"]

CHUNK = 1 << 24  # values of one corner that are gathered at once


@torch.library.custom_op("deploykit::best_scores", mutates_args=())
def best_scores(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest of each line of ``(B, N)``, the highest first, at equal ones the lower index first.

    ONNX's TopK promises that order and torch's does not, so the two need an operator of their own between them.
    """
    values, index = torch.sort(scores, dim=1, descending=True, stable=True)
    return values[:, :count].contiguous(), index[:, :count].contiguous()


@best_scores.register_fake
def _(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], count)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("deploykit::keep_best", mutates_args=())
def keep_best(boxes: Tensor, groups: Tensor, exists: Tensor, iou: Tensor, count: int) -> Tensor:
    """Which boxes greedy NMS keeps, ``(B, N)`` bool.

    Args:
        boxes: ``(B, N, 4)`` xyxy, within each group the best first.
        groups: ``(B, N)`` int64, 0 to ``count - 1``; only boxes of one group suppress each other.
        exists: ``(B, N)`` bool; what does not is not kept and suppresses nothing.
        iou: ``(1,)``; a box goes if a kept, better one overlaps it by more than this.
        count: how many groups there are, so that no size in a graph depends on the boxes.
    """
    return torch.stack([_kept(*one, iou) for one in zip(boxes, groups, exists, strict=True)])


@keep_best.register_fake
def _(boxes: Tensor, groups: Tensor, exists: Tensor, iou: Tensor, count: int) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def _kept(boxes: Tensor, groups: Tensor, exists: Tensor, iou: Tensor) -> Tensor:
    kept = torch.zeros_like(exists)
    for group in sorted(set(groups[exists].tolist())):
        index = torch.nonzero(exists & (groups == group))[:, 0]
        x1, y1, x2, y2 = boxes[index].unbind(1)
        area = (x2 - x1) * (y2 - y1)
        left = torch.ones(len(index), dtype=torch.bool)
        for i in range(len(index)):
            if not left[i]:
                continue
            kept[index[i]] = True
            across = torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :])
            down = torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :])
            inter = across.clamp(min=0) * down.clamp(min=0)
            left[i + 1 :] &= ~(inter / (area[i] + area[i + 1 :] - inter) > iou)
    return kept


@torch.library.custom_op("deploykit::roi_align", mutates_args=())
def roi_align(
    levels: Sequence[Tensor], boxes: Tensor, images: Tensor, level: Tensor, strides: Sequence[int], size: int
) -> Tensor:
    """RoIAlign (arXiv 1703.06870) of boxes on maps of several strides, ``(N, C, size, size)``.

    Args:
        levels: maps ``(B, C, H / s, W / s)``, one of each stride.
        boxes: ``(N, 4)`` xyxy in the pixels of the image.
        images: ``(N,)`` int64, which image each box is of.
        level: ``(N,)`` int64, on which map it is looked up.
        strides: of the maps.
        size: cells per side. Each is the mean of ``ceil(side of the box / size)`` samples per side, bilinear, pixel
            centres at half coordinates (``aligned``, ``sampling_ratio`` 0).
    """
    out = boxes.new_zeros(len(boxes), levels[0].shape[1], size, size)
    for i, (planes, stride) in enumerate(zip(levels, strides, strict=True)):
        index = torch.nonzero(level == i)[:, 0]
        if len(index):
            out[index] = _aligned(planes, boxes[index] / stride - 0.5, images[index], size)
    return out


@roi_align.register_fake
def _(
    levels: Sequence[Tensor], boxes: Tensor, images: Tensor, level: Tensor, strides: Sequence[int], size: int
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], levels[0].shape[1], size, size)


def _aligned(planes: Tensor, boxes: Tensor, images: Tensor, size: int) -> Tensor:
    """Boxes in the cells of one map; those with as many samples go together."""
    sides = boxes[:, 2:] - boxes[:, :2]
    counts = torch.ceil(sides / size).clamp(min=0).long()  # across, down
    out = boxes.new_zeros(len(boxes), planes.shape[1], size, size)
    for across, down in sorted({(a, b) for a, b in counts.tolist()}):
        if not across or not down:
            continue  # of no samples the mean is 0
        index = torch.nonzero((counts[:, 0] == across) & (counts[:, 1] == down))[:, 0]
        each = max(CHUNK // (planes.shape[1] * size * size * across * down), 1)
        for part in torch.split(index, each):
            rows = _samples(boxes[part, 1], sides[part, 1], down, size, planes.shape[2])
            columns = _samples(boxes[part, 0], sides[part, 0], across, size, planes.shape[3])
            out[part] = _mean(planes, images[part], rows, columns, (down, across), size)
    return out


Samples = tuple[Tensor, Tensor, Tensor, Tensor]


def _samples(start: Tensor, side: Tensor, count: int, size: int, cells: int) -> Samples:
    """Along an axis ``(n, size * count)``: the cells below and above each sample, and their weights."""
    steps = (torch.arange(size * count).to(start) + 0.5) / count
    places = start[:, None] + steps * (side / size)[:, None]
    inside = ((places >= -1) & (places <= cells)).to(start)
    places = places.clamp(min=0)
    low = places.floor().long().clamp(max=cells - 1)
    high = (low + 1).clamp(max=cells - 1)
    part = torch.where(low < cells - 1, places - low, 0.0)  # beyond the last centre it is the last cell
    return low, high, (1 - part) * inside, part * inside


def _mean(
    planes: Tensor, images: Tensor, rows: Samples, columns: Samples, counts: tuple[int, int], size: int
) -> Tensor:
    n, channels, width = len(images), planes.shape[1], planes.shape[3]
    flat = planes.flatten(2).transpose(1, 2)  # (B, cells, C)
    total = flat.new_zeros(n, size * counts[0], size * counts[1], channels)
    for row, down in ((rows[0], rows[2]), (rows[1], rows[3])):
        for column, across in ((columns[0], columns[2]), (columns[1], columns[3])):
            place = row[:, :, None] * width + column[:, None]
            total += flat[images[:, None, None], place] * (down[:, :, None] * across[:, None])[..., None]
    cells = total.reshape(n, size, counts[0], size, counts[1], channels).mean((2, 4))
    return cells.permute(0, 3, 1, 2)
