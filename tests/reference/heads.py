"""Decode of the YOLOv7 family's heads in numpy, one cell after the other, by the published equations.

A level's raw values ``(B, anchors * columns, H, W)`` are split into anchors first; a row is
``cx, cy, w, h, obj, cls..., (x, y, v)...`` in network pixels; rows run over levels, anchors, grid rows, grid columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference.layers import Array, Weights, conv, conv2d, sigmoid

Anchors = Sequence[Sequence[float]]


def decode(raw: Array, anchors: Sequence[float], stride: float, num_classes: int) -> Array:
    """``(B, A * columns, H, W)`` to ``(B, A * H * W, columns)``: everything after the classes are keypoints x, y, v."""
    b, channels, height, width = raw.shape
    count = len(anchors) // 2
    columns = channels // count
    rows = []
    for a in range(count):
        values = raw[:, a * columns : (a + 1) * columns]
        for gy in range(height):
            for gx in range(width):
                cell = values[:, :, gy, gx]
                p = sigmoid(cell)
                row = np.empty((b, columns))
                row[:, 0] = (2 * p[:, 0] - 0.5 + gx) * stride
                row[:, 1] = (2 * p[:, 1] - 0.5 + gy) * stride
                row[:, 2] = (2 * p[:, 2]) ** 2 * anchors[2 * a]
                row[:, 3] = (2 * p[:, 3]) ** 2 * anchors[2 * a + 1]
                row[:, 4 : 5 + num_classes] = p[:, 4 : 5 + num_classes]
                for i in range(5 + num_classes, columns, 3):  # no sigmoid on the place of a keypoint
                    row[:, i] = (2 * cell[:, i] - 0.5 + gx) * stride
                    row[:, i + 1] = (2 * cell[:, i + 1] - 0.5 + gy) * stride
                    row[:, i + 2] = p[:, i + 2]
                rows.append(row)
    return np.stack(rows, 1)


def decode_pose_objects(raw: Array, anchors: Sequence[float], stride: float, num_classes: int) -> Array:
    """The same for KaPao's rows ``cx, cy, w, h, obj, cls..., (x, y)...``, whose coordinates are in anchors."""
    count = len(anchors) // 2
    rows = decode(raw, anchors, stride, raw.shape[1] // count - 5)  # all that is not the box as probabilities
    height, width = raw.shape[2:]
    cells = [(a, gx, gy) for a in range(count) for gy in range(height) for gx in range(width)]
    for row, (a, gx, gy) in enumerate(cells):
        for i in range(5 + num_classes, rows.shape[2], 2):
            for axis, grid in enumerate((gx, gy)):
                p = rows[:, row, i + axis]
                rows[:, row, i + axis] = (4 * p - 2) * anchors[2 * a + axis] + grid * stride
    return rows


def detection_raw(x: Array, w: Weights, at: str, level: int) -> Array:
    """The detection channels of a level, with implicit knowledge where there is any."""
    if f"{at}.ia.{level}.implicit" in w:
        x = x + w[f"{at}.ia.{level}.implicit"]
    y = conv2d(x, w[f"{at}.m.{level}.weight"], w[f"{at}.m.{level}.bias"])
    return y * w[f"{at}.im.{level}.implicit"] if f"{at}.im.{level}.implicit" in w else y


def keypoint_raw(x: Array, w: Weights, at: str, level: int) -> Array:
    """The keypoint channels of a level, from the plain features: one convolution, or six depthwise ones and more."""
    at = f"{at}.m_kpt.{level}"
    if f"{at}.weight" in w:
        return conv2d(x, w[f"{at}.weight"], w[f"{at}.bias"])
    for i in range(11):
        depthwise = i % 2 == 0
        x = conv(x, w, f"{at}.{i}", 3, g=x.shape[1]) if depthwise else conv(x, w, f"{at}.{i}")
    return conv2d(x, w[f"{at}.11.weight"], w[f"{at}.11.bias"])


def head(
    features: Sequence[Array],
    w: Weights,
    at: str,
    anchors: Anchors,
    strides: Sequence[float],
    num_classes: int,
    *,
    keypoints: bool = False,
) -> Array:
    """All levels of a head. Features beyond the levels of the anchors are auxiliary ones, which only training sees."""
    rows = []
    for level, (x, level_anchors, stride) in enumerate(zip(features, anchors, strides, strict=False)):
        raw = detection_raw(x, w, at, level)
        if keypoints:  # side by side before the split into anchors, which therefore cuts across both
            raw = np.concatenate([raw, keypoint_raw(x, w, at, level)], 1)
        rows.append(decode(raw, level_anchors, stride, num_classes))
    return np.concatenate(rows, 1)
