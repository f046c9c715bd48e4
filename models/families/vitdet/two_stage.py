"""Parts of two-stage detectors: proposals from anchors, then the class, the box and the mask of each.

Mask R-CNN (arXiv 1703.06870) and its cascade (arXiv 1712.00726) as detectron2 (Apache-2.0) computes them: definitions,
keys and numbers are facts taken over, the code is ours. Everything has a fixed number of rows, so that it exports:
what does not exist has a score of -1, and comes last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.models.families.vitdet.pyramid import Norm, NormedConv
from deploykit.models.layers.operators import best_scores, keep_best, roi_align

__all__ = [
    "MISSING",
    "BoxHead",
    "BoxPredictor",
    "MaskHead",
    "Proposals",
    "RoiPooler",
    "RpnHead",
    "anchors_of",
    "clipped",
    "moved",
]

MOST_GROWTH = math.log(1000 / 16)  # a box becomes at most so much wider or higher, as a logarithm
NONE = -1.0  # the score of what does not exist

MISSING = -1e30
"""The logit of a proposal that does not exist: finite, so that an infinite value is a fault wherever it is found."""

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of the anchors of a cell."""


def anchors_of(height: int, width: int, stride: int, side: int, ratios: Sequence[float] = RATIOS) -> Tensor:
    """The anchors of a map, ``(height * width * ratios, 4)`` xyxy pixels, around the corners of its cells."""
    shapes = []
    for ratio in ratios:
        across = math.sqrt(side * side / ratio)
        shapes.append([-across / 2, -across * ratio / 2, across / 2, across * ratio / 2])
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    places = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4)
    return (places + torch.tensor(shapes)).reshape(-1, 4)


def moved(boxes: Tensor, deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes ``(..., 4)`` xyxy moved and stretched by what a head gives for them, ``(..., 4)``."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2
    centre = centre + deltas[..., :2] / deltas.new_tensor(weights[:2]) * size
    half = torch.exp((deltas[..., 2:] / deltas.new_tensor(weights[2:])).clamp(max=MOST_GROWTH)) * size / 2
    return torch.cat((centre - half, centre + half), -1)


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes ``(..., 4)`` xyxy inside of an image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    inside = (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height))
    return torch.stack(inside, -1)


class RpnHead(nn.Module):
    """Two convolutions on each level, and for each anchor a logit and four numbers. Keys are detectron2's."""

    def __init__(self, channels: int, convs: int = 2, anchors: int = len(RATIOS)) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for i in range(convs):
            self.conv.add_module(f"conv{i}", nn.Conv2d(channels, channels, 3, padding=1))
            self.conv.add_module(f"relu{i}", nn.ReLU())
        self.objectness_logits = nn.Conv2d(channels, anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, 4 * anchors, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` to ``(B, H * W * anchors)`` and ``(B, H * W * anchors, 4)``."""
        x = self.conv(x)
        logits = self.objectness_logits(x).permute(0, 2, 3, 1).flatten(1)
        deltas = self.anchor_deltas(x).permute(0, 2, 3, 1)
        return logits, deltas.reshape(deltas.shape[0], -1, 4)


@dataclass(frozen=True)
class Proposals:
    """How proposals are chosen: the best ``before`` of each level, NMS at ``iou`` within it, the best ``after``."""

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    sides: tuple[int, ...] = (32, 64, 128, 256, 512)
    before: int = 1000
    after: int = 1000
    iou: float = 0.7

    def choose(self, head: RpnHead, levels: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, after, 4)`` inside of the image and their logits ``(B, after)``, the best first.

        What is missing has a logit of :data:`MISSING` and an empty box.
        """
        boxes, logits, groups = [], [], []
        for i, (x, stride, side) in enumerate(zip(levels, self.strides, self.sides, strict=True)):
            level_logits, deltas = head(x)
            anchors = anchors_of(x.shape[2], x.shape[3], stride, side).to(x)
            best, index = best_scores(level_logits, min(self.before, anchors.shape[0]))
            chosen = torch.gather(deltas, 1, index[..., None].expand(-1, -1, 4))
            boxes.append(clipped(moved(anchors[index], chosen, (1.0, 1.0, 1.0, 1.0)), height, width))
            logits.append(best)
            groups.append(torch.full_like(index, i))
        every, all_logits, group = torch.cat(boxes, 1), torch.cat(logits, 1), torch.cat(groups, 1)
        exists = ((every[..., 2:] - every[..., :2]).amin(-1) > 0) & (all_logits.abs() < math.inf)
        kept = keep_best(every, group, exists, every.new_tensor([self.iou]), len(levels))
        best, index = best_scores(torch.where(kept, all_logits, MISSING), min(self.after, kept.shape[1]))
        chosen = torch.gather(every, 1, index[..., None].expand(-1, -1, 4))
        return torch.where((best > MISSING)[..., None], chosen, 0.0), best


@dataclass(frozen=True)
class RoiPooler:
    """Looks each box up on the level of its size: ``224`` px belong to stride 16."""

    strides: tuple[int, ...] = (4, 8, 16, 32)
    size: int = 7
    canonical: float = 224.0
    canonical_stride: int = 16

    def level(self, boxes: Tensor) -> Tensor:
        """``(..., 4)`` to ``(...)`` int64: ``floor(log2(sqrt(area) / 224) + 4)`` in levels, as comparisons of areas."""
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        level = torch.zeros_like(area, dtype=torch.int64)
        for stride in self.strides[1:]:
            least = (self.canonical * stride / self.canonical_stride) ** 2
            level = level + (area >= least).long()
        return level

    def __call__(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """``(B, N, 4)`` xyxy to ``(B * N, C, size, size)``."""
        batch, count = boxes.shape[:2]
        images = torch.arange(batch).repeat_interleave(count)
        flat = boxes.reshape(-1, 4)
        used = list(levels)[: len(self.strides)]
        found: Tensor = roi_align(used, flat, images, self.level(flat), list(self.strides), self.size)
        return found


class BoxHead(nn.Sequential):
    """Convolutions and one layer of what lies in a box: ``(N, C, 7, 7)`` to ``(N, features)``; keys of detectron2."""

    def __init__(self, channels: int, convs: int, norm: Norm, features: int, size: int = 7) -> None:
        super().__init__()
        for i in range(convs):
            self.add_module(f"conv{i + 1}", NormedConv(channels, channels, 3, norm, relu=True))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc1", nn.Linear(channels * size * size, features))
        self.add_module("fc_relu1", nn.ReLU())


class BoxPredictor(nn.Module):
    """Features to logits of the classes, nothing last, and four numbers for each class, or once for all."""

    def __init__(self, features: int, num_classes: int, weights: tuple[float, ...], *, agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4 * (1 if agnostic else num_classes))
        self.weights = weights

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``(N, classes + 1)`` and deltas ``(N, classes or 1, 4)``."""
        deltas = self.bbox_pred(features)
        return self.cls_score(features).softmax(-1), deltas.reshape(deltas.shape[0], -1, 4)


class MaskHead(nn.Module):
    """What lies in a box to a mask of each class: ``(N, C, 14, 14)`` to logits ``(N, classes, 28, 28)``."""

    def __init__(self, channels: int, convs: int, norm: Norm, num_classes: int) -> None:
        super().__init__()
        self.convs = convs
        for i in range(convs):
            self.add_module(f"mask_fcn{i + 1}", NormedConv(channels, channels, 3, norm, relu=True))
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.convs):
            x = self.get_submodule(f"mask_fcn{i + 1}")(x)
        out: Tensor = self.predictor(functional.relu(self.deconv(x)))
        return out
