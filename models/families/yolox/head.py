"""The decoupled, anchor-free heads of YOLOX and YOLOX-Pose; decode is a pure function of the features.

Sources of the facts: Megvii-BaseDetection/YOLOX ``yolox/models/yolo_head.py`` (Apache-2.0) and
TexasInstruments/edgeai-yolox ``yolox/models/yolo_kpts_head.py`` (BSD-3-Clause and Apache-2.0); the code is ours.
Papers: arXiv 2107.08430, arXiv 2204.06806.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from deploykit.models.families.yolox.blocks import Activation, conv_of
from deploykit.models.layers.conv import Conv, fill_biases

__all__ = ["STRIDES", "YoloxHead", "YoloxKeypointHead"]

STRIDES = (8, 16, 32)


class YoloxHead(nn.Module):
    """Feature maps of three levels, ``(B, C_i, H_i, W_i)``, to rows ``(B, N, 5 + classes)`` in network pixels.

    Row: ``cx, cy, w, h, obj, cls...``, one per cell; N runs over levels, grid rows, grid columns.
    ``cxcy = (raw + grid) stride``, ``wh = exp(raw) stride``; the others are sigmoids.
    """

    num_keypoints = 0

    def __init__(
        self, num_classes: int, channels: Sequence[int], hidden: int, *, depthwise: bool = False, act: Activation
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stride = STRIDES
        self.stems = nn.ModuleList(Conv(c, hidden, 1, act=act()) for c in channels)
        self.cls_convs = _branches(len(channels), hidden, depthwise, act)
        self.reg_convs = _branches(len(channels), hidden, depthwise, act)
        self.cls_preds = _last(len(channels), hidden, num_classes)
        self.reg_preds = _last(len(channels), hidden, 4)
        self.obj_preds = _last(len(channels), hidden, 1)

    @property
    def columns(self) -> int:
        """Values per row."""
        return 5 + self.num_classes + 3 * self.num_keypoints

    def forward(self, *features: Tensor) -> Tensor:
        return torch.cat([self.decode(self.raw(x, level), level) for level, x in enumerate(features)], 1)

    def raw(self, x: Tensor, level: int) -> Tensor:
        """``(B, C, H, W)`` to ``(B, columns, H, W)``, without any sigmoid."""
        return torch.cat(self._parts(self.stems[level](x), level), 1)

    def decode(self, raw: Tensor, level: int) -> Tensor:
        """``(B, columns, H, W)`` to ``(B, H * W, columns)``."""
        h, w = raw.shape[2:]
        x, y = (torch.arange(n, dtype=raw.dtype, device=raw.device) for n in (w, h))
        cells = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1)
        return self.rows_of(raw.permute(0, 2, 3, 1), cells, self.stride[level]).flatten(1, 2)

    def rows_of(self, values: Tensor, cells: Tensor, stride: int) -> Tensor:
        """Decode raw values ``(..., columns)``; ``cells`` (..., 2) are grid column and row."""
        xy, wh, probabilities = torch.split(values, [2, 2, 1 + self.num_classes], -1)
        return torch.cat(((xy + cells) * stride, wh.exp() * stride, probabilities.sigmoid()), -1)

    def random_weights(self, gain: float) -> None:
        """Rare detections: an improbable object in every cell, of any class."""
        fill_biases(self.obj_preds, -4.0)
        fill_biases(self.cls_preds, 2.0)

    def _parts(self, x: Tensor, level: int) -> tuple[Tensor, ...]:
        classes = self.cls_preds[level](self.cls_convs[level](x))
        box = self.reg_convs[level](x)
        return self.reg_preds[level](box), self.obj_preds[level](box), classes


class YoloxKeypointHead(YoloxHead):
    """Boxes and K keypoints: rows ``(B, N, 5 + classes + 3 K)``, each keypoint ``x, y, v``.

    ``xy = (2 raw - 0.5 + grid) stride``. The original treats the visibility as a third coordinate of a grid place 0,
    ``(2 raw - 0.5) stride``, in training as well, and takes that for a logit: so ``v`` is the sigmoid of it. (Its own
    rows end with the logit. It also decodes from column 6 on whatever the number of classes, which is right for one.)
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        hidden: int,
        num_keypoints: int = 17,
        *,
        depthwise: bool = False,
        act: Activation,
    ) -> None:
        super().__init__(num_classes, channels, hidden, depthwise=depthwise, act=act)
        self.num_keypoints = num_keypoints
        self.kpts_convs = _branches(len(channels), hidden, depthwise, act)
        self.kpts_preds = _last(len(channels), hidden, 3 * num_keypoints)

    def rows_of(self, values: Tensor, cells: Tensor, stride: int) -> Tensor:
        detection, points = torch.split(values, [5 + self.num_classes, 3 * self.num_keypoints], -1)
        points = 2 * points.reshape(*points.shape[:-1], self.num_keypoints, 3) - 0.5
        places = (points[..., :2] + cells[..., None, :]) * stride
        visible = (points[..., 2:] * stride).sigmoid()
        return torch.cat((super().rows_of(detection, cells, stride), torch.cat((places, visible), -1).flatten(-2)), -1)

    @torch.no_grad()
    def random_weights(self, gain: float) -> None:
        """And visibilities that are no surer than those of a trained head: their logit is ``(2 raw - 0.5) stride``."""
        super().random_weights(gain)
        for last, stride in zip(self.kpts_preds, self.stride, strict=True):
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.weight[2::3] /= 2 * stride
            last.bias[2::3] = 0.25

    def _parts(self, x: Tensor, level: int) -> tuple[Tensor, ...]:
        detection = super()._parts(x, level)
        return *detection, cast(Tensor, self.kpts_preds[level](self.kpts_convs[level](x)))


def _branches(levels: int, hidden: int, depthwise: bool, act: Activation) -> nn.ModuleList:
    """Two 3x3 per level."""
    return nn.ModuleList(
        nn.Sequential(*(conv_of(hidden, hidden, 3, depthwise=depthwise, act=act) for _ in range(2)))
        for _ in range(levels)
    )


def _last(levels: int, hidden: int, outputs: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(hidden, outputs, 1) for _ in range(levels))
