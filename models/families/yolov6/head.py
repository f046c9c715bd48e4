"""Heads without anchors of YOLOv6: one row per cell, decoded as a pure function of the features.

Source of the facts: meituan/YOLOv6 ``yolov6/models/effidehead.py`` at 0.1.0, 0.2.1, 0.3.1 and 0.4.0 (GPL-3.0); the code
is ours. Papers: arXiv 2209.02976 and 2301.05586; the distribution over distances is that of arXiv 2006.04388.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv, fill_biases

STRIDES = (8, 16, 32, 64)
PROJECTED = 17  # bins of ``proj``, which every head has, also where no distribution is predicted


class FreeHead(nn.Module, ABC):
    """Feature maps of L levels, ``(B, C_i, H_i, W_i)``, to rows ``(B, N, 5 + classes)`` in network pixels.

    Row: ``cx, cy, w, h, obj, cls...``; N runs over levels, then grid rows, then grid columns. Each level has a 1x1
    stem, a 3x3 convolution for the classes and one for the box, and 1x1 predictions.
    """

    def __init__(self, num_classes: int, channels: Sequence[int], box_channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stride = STRIDES[: len(channels)]
        self.stems = nn.ModuleList(Conv(c, c) for c in channels)
        self.cls_convs = nn.ModuleList(Conv(c, c, 3) for c in channels)
        self.reg_convs = nn.ModuleList(Conv(c, c, 3) for c in channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, box_channels, 1) for c in channels)

    @property
    def num_levels(self) -> int:
        """How many feature maps it takes."""
        return len(self.stride)

    @property
    def columns(self) -> int:
        """Values per row."""
        return 5 + self.num_classes

    def forward(self, *features: Tensor) -> Tensor:
        return torch.cat([self._rows(x, level) for level, x in enumerate(features)], 1)

    def random_weights(self, gain: float) -> None:
        """Rare detections, in boxes of a few cells."""
        fill_biases(self.cls_preds, -4.0)
        fill_biases(self.reg_preds, 4.0)

    def _rows(self, x: Tensor, level: int) -> Tensor:
        """One level's features to its rows, ``(B, H * W, columns)``."""
        x = self.stems[level](x)
        scores = self.cls_preds[level](self.cls_convs[level](x))
        box = self._box(self.reg_convs[level](x), level)
        return torch.cat((box, scores.sigmoid()), 1).flatten(2).transpose(1, 2)

    @abstractmethod
    def _box(self, x: Tensor, level: int) -> Tensor:
        """Features of the box branch to ``cx, cy, w, h, obj``, ``(B, 5, H, W)``."""

    def _corner(self, like: Tensor, level: int, offset: float) -> Tensor:
        """``(grid + offset) * stride`` in (x, y) for cells ``(B, C, H, W)``: ``(2, H, W)``."""
        h, w = like.shape[2:4]
        stride = self.stride[level]
        y = (torch.arange(h, dtype=like.dtype, device=like.device) + offset) * stride
        x = (torch.arange(w, dtype=like.dtype, device=like.device) + offset) * stride
        return torch.cat((x.expand(1, h, w), y[:, None].expand(1, h, w)))


class ObjectnessHead(FreeHead):
    """The head of 0.1, like YOLOX's: ``cxcy = (raw + grid) stride``, ``wh = exp(raw) stride``, sigmoid objectness."""

    def __init__(self, num_classes: int, channels: Sequence[int]) -> None:
        super().__init__(num_classes, channels, 4)
        self.obj_preds = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in channels)

    def random_weights(self, gain: float) -> None:
        """Rare detections: an improbable object in every cell, of any class."""
        fill_biases(self.cls_preds, 2.0)
        fill_biases(self.obj_preds, -4.0)

    def _box(self, x: Tensor, level: int) -> Tensor:
        raw, stride = self.reg_preds[level](x), self.stride[level]
        xy, wh = torch.split(raw, 2, 1)
        objectness = self.obj_preds[level](x).sigmoid()
        return torch.cat((xy * stride + self._corner(raw, level, 0.0), wh.exp() * stride, objectness), 1)


class DistanceHead(FreeHead):
    """The head of 0.2 and later: distances from the cell's centre to the box' left, top, right and bottom side.

    They are in strides; with ``reg_max`` each is the mean of a distribution over 0 .. ``reg_max``. There is no
    objectness: its column is 1, as upstream's, so that what reads YOLO rows reads these.
    """

    def __init__(self, num_classes: int, channels: Sequence[int], reg_max: int = 0) -> None:
        super().__init__(num_classes, channels, 4 * (reg_max + 1))
        self.reg_max = reg_max
        bins = reg_max + 1 if reg_max else PROJECTED
        # Upstream keeps the bins' values twice and computes with the second; the first is there for the state dict.
        self.proj = nn.Parameter(torch.zeros(bins), requires_grad=False)
        self.proj_conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.reset_bins()

    def reset_bins(self) -> None:
        """Give the bins the values that they have: 0, 1, 2, ..."""
        for tensor in (self.proj, self.proj_conv.weight):
            if tensor.is_meta:  # there is nothing to fill, and trying loads torch's whole compiler
                return
            tensor.data.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype, device=tensor.device).view(tensor.shape))

    def random_weights(self, gain: float) -> None:
        """Rare detections; the bins keep the values that they have."""
        self.reset_bins()
        fill_biases(self.cls_preds, -4.0)
        if not self.reg_max:
            fill_biases(self.reg_preds, 4.0)

    def _box(self, x: Tensor, level: int) -> Tensor:
        stride = self.stride[level]
        distances = self._distances(self.reg_preds[level](x))
        before, after = torch.split(distances, 2, 1)
        centre = (after - before) * (0.5 * stride) + self._corner(distances, level, 0.5)
        box = torch.cat((centre, (before + after) * stride), 1)
        return F.pad(box, (0, 0, 0, 0, 0, 1), value=1.0)  # not a stored column of ones

    def _distances(self, raw: Tensor) -> Tensor:
        """``(B, 4 * (reg_max + 1), H, W)`` to ``(B, 4, H, W)``."""
        if not self.reg_max:
            return raw
        h, w = raw.shape[2:4]
        bins = raw.reshape(-1, self.reg_max + 1, h, w)  # every side by itself
        return cast(Tensor, self.proj_conv(bins.softmax(1))).reshape(-1, 4, h, w)

    def fuse(self, path: str) -> DistanceHead:
        """Fold the batch norms; the bins' values become a constant, or go where nothing computes with them."""
        new = DistanceHead.__new__(DistanceHead)
        modules: dict[str, nn.Module] = {
            name: fuse_model(module, f"{path}.{name}") for name, module in self.named_children() if name != "proj_conv"
        }
        if self.reg_max:
            modules["proj_conv"] = _Bins(self.proj_conv.weight)
        new.__dict__ = {**self.__dict__, "_modules": modules, "_parameters": {}}
        return new


class _Bins(nn.Module):
    """The mean of a distribution over fixed values: ``(B, bins, H, W)`` to ``(B, 1, H, W)``."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.values)
