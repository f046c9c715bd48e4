"""YOLOX once more, in numpy and by its publication: backbones, necks, heads and decode, one cell after the other.

``w`` is a state dict; how deep a network is, whether it is depthwise and what it begins with, its keys tell. Nothing
here looks at ``deploykit.models``.
"""

from __future__ import annotations

import numpy as np

from tests.reference.layers import (
    Activation,
    Array,
    Weights,
    conv,
    conv2d,
    focus,
    leaky_relu,
    max_pool,
    relu,
    sigmoid,
    silu,
    upsample,
)

STRIDES = (8, 16, 32)


def convolution(x: Array, w: Weights, at: str, k: int = 1, s: int = 1, *, act: Activation) -> Array:
    """A convolution, or each channel by itself and then 1x1, if the weights are those."""
    if f"{at}.dconv.conv.weight" in w:
        return conv(conv(x, w, f"{at}.dconv", k, s, g=x.shape[1], act=act), w, f"{at}.pconv", act=act)
    return conv(x, w, at, k, s, act=act)


def csp(x: Array, w: Weights, at: str, *, shortcut: bool, act: Activation) -> Array:
    y, i = conv(x, w, f"{at}.conv1", act=act), 0
    while f"{at}.m.{i}.conv1.conv.weight" in w:
        z = convolution(conv(y, w, f"{at}.m.{i}.conv1", act=act), w, f"{at}.m.{i}.conv2", 3, act=act)
        y = y + z if shortcut else z
        i += 1
    return conv(np.concatenate([y, conv(x, w, f"{at}.conv2", act=act)], 1), w, f"{at}.conv3", act=act)


def spp(x: Array, w: Weights, at: str, *, act: Activation) -> Array:
    """By chains of 3x3 pools, as ``ti_lite`` does it: two of them see 5x5, four 9x9, six 13x13."""
    x = conv(x, w, f"{at}.conv1", act=act)
    pooled, seen = [x], x
    for step in range(1, 7):
        seen = max_pool(seen, 3, 1, 1)
        if step in (2, 4, 6):
            pooled.append(seen)
    return conv(np.concatenate(pooled, 1), w, f"{at}.conv2", act=act)


def csp_darknet(x: Array, w: Weights, at: str, *, act: Activation) -> list[Array]:
    if f"{at}.stem.0.conv.weight" in w:
        x = conv(conv(x, w, f"{at}.stem.0", 3, 2, act=act), w, f"{at}.stem.1", 3, act=act)
    else:
        x = focus(x, w, f"{at}.stem", 3, act=act)
    features = []
    for stage in (2, 3, 4, 5):
        x = convolution(x, w, f"{at}.dark{stage}.0", 3, 2, act=act)
        if stage == 5:
            x = spp(x, w, f"{at}.dark5.1", act=act)
        x = csp(x, w, f"{at}.dark{stage}.{2 if stage == 5 else 1}", shortcut=stage < 5, act=act)
        features.append(x)
    return features[1:]


def path_aggregation(x: Array, w: Weights, at: str, *, act: Activation) -> list[Array]:
    c3, c4, c5 = csp_darknet(x, w, f"{at}.backbone", act=act)

    def joined(a: Array, b: Array, name: str) -> Array:
        return csp(np.concatenate([a, b], 1), w, f"{at}.{name}", shortcut=False, act=act)

    top = conv(c5, w, f"{at}.lateral_conv0", act=act)
    middle = conv(joined(upsample(top), c4, "C3_p4"), w, f"{at}.reduce_conv1", act=act)
    p3 = joined(upsample(middle), c3, "C3_p3")
    p4 = joined(convolution(p3, w, f"{at}.bu_conv2", 3, 2, act=act), middle, "C3_n3")
    return [p3, p4, joined(convolution(p4, w, f"{at}.bu_conv1", 3, 2, act=act), top, "C3_n4")]


def in_turn(x: Array, w: Weights, at: str) -> Array:
    """The members of a Sequential of YOLOv3's parts, each as its weights say, with leaky ReLU.

    What halves the size is the second convolution of the stem, and the first of each stage after it.
    """
    halving = 1 if at.endswith("stem") else 0 if ".dark" in at else None
    i = 0
    while True:
        here = f"{at}.{i}"
        if f"{here}.layer1.conv.weight" in w:
            x = x + conv(conv(x, w, f"{here}.layer1", act=leaky_relu), w, f"{here}.layer2", 3, act=leaky_relu)
        elif f"{here}.conv1.conv.weight" in w:
            x = spp(x, w, here, act=leaky_relu)
        elif f"{here}.conv.weight" in w:
            k = w[f"{here}.conv.weight"].shape[-1]
            x = conv(x, w, here, k, 2 if i == halving else 1, act=leaky_relu)
        else:
            return x
        i += 1


def feature_pyramid(x: Array, w: Weights) -> list[Array]:
    at = "backbone.backbone"
    x = in_turn(x, w, f"{at}.stem")
    c3 = in_turn(in_turn(x, w, f"{at}.dark2"), w, f"{at}.dark3")
    c4 = in_turn(c3, w, f"{at}.dark4")
    c5 = in_turn(c4, w, f"{at}.dark5")
    up = upsample(conv(c5, w, "backbone.out1_cbl", act=leaky_relu))
    p4 = in_turn(np.concatenate([up, c4], 1), w, "backbone.out1")
    up = upsample(conv(p4, w, "backbone.out2_cbl", act=leaky_relu))
    return [in_turn(np.concatenate([up, c3], 1), w, "backbone.out2"), p4, c5]


def head_values(x: Array, w: Weights, level: int, *, act: Activation) -> Array:
    """A level's raw values ``(B, columns, H, W)``: box, objectness, classes, keypoints."""
    x = conv(x, w, f"head.stems.{level}", act=act)

    def branch(name: str) -> Array:
        y = convolution(x, w, f"head.{name}_convs.{level}.0", 3, act=act)
        return convolution(y, w, f"head.{name}_convs.{level}.1", 3, act=act)

    def last(y: Array, name: str) -> Array:
        return conv2d(y, w[f"head.{name}_preds.{level}.weight"], w[f"head.{name}_preds.{level}.bias"])

    box = branch("reg")
    parts = [last(box, "reg"), last(box, "obj"), last(branch("cls"), "cls")]
    if f"head.kpts_preds.{level}.weight" in w:
        parts.append(last(branch("kpts"), "kpts"))
    return np.concatenate(parts, 1)


def decode(values: Array, stride: int, num_classes: int) -> Array:
    """``(B, columns, H, W)`` to ``(B, H * W, columns)``: everything after the classes are keypoints x, y, v."""
    b, columns, height, width = values.shape
    rows = []
    for gy in range(height):
        for gx in range(width):
            cell = values[:, :, gy, gx]
            row = np.empty((b, columns))
            row[:, 0], row[:, 1] = (cell[:, 0] + gx) * stride, (cell[:, 1] + gy) * stride
            row[:, 2:4] = np.exp(cell[:, 2:4]) * stride
            row[:, 4 : 5 + num_classes] = sigmoid(cell[:, 4 : 5 + num_classes])
            for i in range(5 + num_classes, columns, 3):
                row[:, i] = (2 * cell[:, i] - 0.5 + gx) * stride
                row[:, i + 1] = (2 * cell[:, i + 1] - 0.5 + gy) * stride
                row[:, i + 2] = sigmoid((2 * cell[:, i + 2] - 0.5) * stride)  # a place of grid 0, taken for a logit
            rows.append(row)
    return np.stack(rows, 1)


def network(images: Array, w: Weights, num_classes: int) -> Array:
    """Images ``(B, 3, H, W)`` to rows."""
    if "backbone.out1_cbl.conv.weight" in w:
        act: Activation = leaky_relu
        features = feature_pyramid(images, w)
    else:
        act = relu if "backbone.backbone.stem.0.conv.weight" in w else silu
        features = path_aggregation(images, w, "backbone", act=act)
    levels = zip(range(3), features, STRIDES, strict=True)
    return np.concatenate([decode(head_values(x, w, i, act=act), s, num_classes) for i, x, s in levels], 1)
