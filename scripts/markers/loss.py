"""The loss of the marker model: which anchors answer for a code, and how far their rows are from it.

The parts are those of YOLOv5 and YOLOv7 (facts: anchors within a ratio, a cell and its two nearest neighbours; CIoU,
arXiv 2005.03572; objectness that learns the IoU) with corners of equal weight beside them. The code is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploykit.models.layers.anchor_head import IKeypoint

RATIO = 3.0  # how much larger or smaller than an anchor a code may be
LEVELS = (3.0, 1.0, 0.6)  # weights of the objectness: fine levels have most cells
CORNER_UNIT = 0.04  # of a code's side: nearer than that the loss of a corner is quadratic
WEIGHTS = {"box": 1.0, "object": 100.0, "class": 1.0, "corner": 0.8, "seen": 0.1}
"""So that no part's gradient rules the layers that all share: a corner's is some twenty times that of a class."""


@dataclass(frozen=True)
class Targets:
    """Codes of a batch: ``image`` (N,), ``label`` (N,), ``box`` (N, 4) as cx, cy, w, h, ``corners`` (N, 4, 3).

    In network pixels. ``ignored`` (M, 5) are boxes ``image, x1, y1, x2, y2`` in which nothing is learned of objectness.
    """

    image: Tensor
    label: Tensor
    box: Tensor
    corners: Tensor
    ignored: Tensor


def loss_of(head: IKeypoint, raw: list[Tensor], targets: Targets) -> dict[str, Tensor]:
    """The weighted parts of the loss; ``raw`` are the head's values per level, ``(B, anchors * columns, H, W)``."""
    parts = {name: raw[0].new_zeros(()) for name in WEIGHTS}
    bce = nn.functional.binary_cross_entropy_with_logits
    answered = 0
    for level, values in enumerate(raw):
        b, _, h, w = values.shape
        cells = values.view(b, head.num_anchors, -1, h, w).permute(0, 1, 3, 4, 2)
        stride, anchors = head.stride[level], head.anchor_grid[level].view(-1, 2)
        which, anchor, y, x = matches(targets.box, anchors, stride, h, w)
        objectness = cells.new_zeros(cells.shape[:4])
        if len(which):
            answered += len(which)
            row = cells[targets.image[which], anchor, y, x]
            grid = torch.stack((x, y), -1).float()
            centre = (2 * row[:, :2].sigmoid() - 0.5 + grid) * stride
            size = (2 * row[:, 2:4].sigmoid()) ** 2 * anchors[anchor]
            overlap = ciou(torch.cat((centre, size), -1), targets.box[which])
            parts["box"] = parts["box"] + (1 - overlap).sum()
            objectness[targets.image[which], anchor, y, x] = overlap.detach().clamp(0)
            wanted = nn.functional.one_hot(targets.label[which], head.num_classes).float()
            parts["class"] = parts["class"] + bce(row[:, 5 : 5 + head.num_classes], wanted, reduction="sum")
            points = row[:, 5 + head.num_classes :].view(len(row), head.num_keypoints, 3)
            at = (2 * points[..., :2] - 0.5 + grid[:, None]) * stride
            corners = targets.corners[which]
            known = (corners[..., 2] > 0).float()
            side = targets.box[which, 2:].prod(-1).sqrt()[:, None, None] * CORNER_UNIT
            apart = nn.functional.smooth_l1_loss(at / side, corners[..., :2] / side, reduction="none").sum(-1)
            parts["corner"] = parts["corner"] + (apart * known).sum() / head.num_keypoints
            seen = (corners[..., 2] > 1).float()
            parts["seen"] = parts["seen"] + bce(points[..., 2], seen, reduction="sum") / head.num_keypoints
        counted = _counted(targets.ignored, objectness, stride)
        each = bce(cells[..., 4], objectness, reduction="none") * counted
        parts["object"] = parts["object"] + LEVELS[level] * each.mean()
    share = {name: 1.0 if name == "object" else 1.0 / max(answered, 1) for name in parts}
    return {name: WEIGHTS[name] * share[name] * part for name, part in parts.items()}


def matches(boxes: Tensor, anchors: Tensor, stride: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which box is learned by which anchor of which cell: numbers of boxes and anchors, rows and columns.

    The cell that holds the centre, and its neighbours on the sides where the centre is nearer to their edge.
    """
    ratio = boxes[:, None, 2:] / anchors[None]
    which, anchor = torch.nonzero(torch.maximum(ratio, 1 / ratio).amax(-1) < RATIO, as_tuple=True)
    centre = boxes[which, :2] / stride
    moves = centre.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [-0.5, 0], [0, -0.5]])
    cell = (centre[:, None] - moves).floor().long()
    new = torch.ones(cell.shape[:2], dtype=torch.bool)
    new[:, 1:] = (cell[:, 1:] != cell[:, :1]).any(-1)
    inside = (cell >= 0).all(-1) & (cell < torch.tensor([w, h])).all(-1)
    number, move = torch.nonzero(new & inside, as_tuple=True)
    x, y = cell[number, move].unbind(-1)
    return which[number], anchor[number], y, x


def _counted(ignored: Tensor, like: Tensor, stride: int) -> Tensor:
    """1 where the objectness of a cell is learned, 0 in ignored boxes; a cell with a code in it always counts."""
    counted = torch.ones_like(like)
    for image, x1, y1, x2, y2 in (ignored / ignored.new_tensor([1, *[stride] * 4])).tolist():
        rows = slice(max(math.floor(y1), 0), math.ceil(max(y2, 0)))
        columns = slice(max(math.floor(x1), 0), math.ceil(max(x2, 0)))
        counted[int(image), :, rows, columns] = 0
    return torch.where(like > 0, torch.ones_like(like), counted)


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of boxes ``(N, 4)`` as cx, cy, w, h: IoU less the centres' distance and the shapes' difference."""
    low_a, high_a = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    low_b, high_b = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    inter = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(0).prod(-1)
    iou = inter / (a[:, 2:].prod(-1) + b[:, 2:].prod(-1) - inter + 1e-7)
    diagonal = ((torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)) ** 2).sum(-1) + 1e-7
    apart = ((a[:, :2] - b[:, :2]) ** 2).sum(-1) / diagonal
    shape = 4 / math.pi**2 * (torch.atan(b[:, 2] / b[:, 3]) - torch.atan(a[:, 2] / (a[:, 3] + 1e-7))) ** 2
    with torch.no_grad():
        weight = shape / (1 - iou + shape + 1e-7)
    return iou - apart - weight * shape
