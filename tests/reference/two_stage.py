"""The parts of a detector in two stages by their definitions, a second time: one box and one sample after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def roi_align(planes: Tensor, box: Tensor, stride: int, size: int) -> Tensor:
    """One box ``(4,)`` on one map ``(C, H, W)``, ``(C, size, size)``: means of bilinear samples."""
    x1, y1, x2, y2 = (float(v) / stride - 0.5 for v in box)
    across, down = math.ceil((x2 - x1) / size), math.ceil((y2 - y1) / size)
    out = torch.zeros(planes.shape[0], size, size, dtype=planes.dtype)
    for row in range(size):
        for column in range(size):
            for i in range(down):
                for j in range(across):
                    y = y1 + (y2 - y1) / size * (row + (i + 0.5) / down)
                    x = x1 + (x2 - x1) / size * (column + (j + 0.5) / across)
                    out[:, row, column] += bilinear(planes, y, x) / (down * across)
    return out


def bilinear(planes: Tensor, y: float, x: float) -> Tensor:
    height, width = planes.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(planes.shape[0], dtype=planes.dtype)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    value = torch.zeros(planes.shape[0], dtype=planes.dtype)
    for i, share in ((top, 1 - (y - top)), (top + 1, y - top)):
        for j, part in ((left, 1 - (x - left)), (left + 1, x - left)):
            if share * part:
                value += share * part * planes[:, i, j]
    return value


def level(box: Tensor) -> int:
    """Of strides 4 to 32, by the published formula."""
    side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
    return min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5) - 2


def iou(a: Tensor, b: Tensor) -> float:
    across = max(float(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])), 0.0)
    down = max(float(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])), 0.0)
    areas = sum(float((x[2] - x[0]) * (x[3] - x[1])) for x in (a, b))
    union = areas - across * down
    return across * down / union if union > 0 else 0.0


def kept(boxes: Tensor, groups: Tensor, exists: Tensor, threshold: float) -> list[bool]:
    """Greedy NMS within groups, the best first."""
    found: list[int] = []
    for i in range(len(boxes)):
        rivals = [j for j in found if groups[j] == groups[i] and iou(boxes[j], boxes[i]) > threshold]
        if exists[i] and not rivals:
            found.append(i)
    return [i in found for i in range(len(boxes))]


def moved(box: Tensor, deltas: Tensor, weights: tuple[float, ...]) -> Tensor:
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + deltas[0] / weights[0] * width, box[1] + height / 2 + deltas[1] / weights[1] * height
    most = math.log(1000 / 16)
    width = width * math.exp(min(float(deltas[2] / weights[2]), most))
    height = height * math.exp(min(float(deltas[3] / weights[3]), most))
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def pasted(mask: Tensor, box: tuple[float, ...], height: int, width: int) -> list[list[bool]]:
    """A mask ``(S, S)`` over a box, as pixels of an image."""
    cells = mask.shape[0]
    rows = []
    for r in range(height):
        row = []
        for c in range(width):
            y, x = r + 0.5, c + 0.5
            inside = box[0] <= x <= box[2] and box[1] <= y <= box[3] and box[2] > box[0] and box[3] > box[1]
            value = 0.0
            if inside:
                v = (y - box[1]) / (box[3] - box[1]) * cells - 0.5
                u = (x - box[0]) / (box[2] - box[0]) * cells - 0.5
                for i in range(cells):
                    for j in range(cells):
                        value += float(mask[i, j]) * max(0.0, 1 - abs(v - i)) * max(0.0, 1 - abs(u - j))
            row.append(inside and value >= 0.5)
        rows.append(row)
    return rows
