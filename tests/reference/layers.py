"""The layers of YOLOv5 and YOLOv7 once more, in numpy and by their definitions: what the torch ones are held against.

Everything is float64, NCHW. ``w`` is a state dict, ``at`` the dotted path of the layer in it. Facts: the blocks'
definitions as the original projects publish them; nothing here looks at ``deploykit.models``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = Mapping[str, Array]
Activation = Callable[[Array], Array]

EPS = 1e-3  # of every batch norm of the family


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def hardswish(x: Array) -> Array:
    gate: Array = np.clip(x + 3, 0, 6) / 6
    return x * gate


def linear(x: Array) -> Array:
    return x


def leaky_relu(x: Array, slope: float = 0.1) -> Array:
    return np.where(x > 0, x, slope * x)


def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """Cross-correlation, ``(B, C, H, W)`` with ``(O, C / groups, k, k)``: one product for each place in the kernel."""
    b, c, h, w = x.shape
    outputs, _, k, _ = weight.shape
    padded = np.zeros((b, c, h + 2 * padding, w + 2 * padding))
    padded[:, :, padding : padding + h, padding : padding + w] = x
    rows, columns = (h + 2 * padding - k) // stride + 1, (w + 2 * padding - k) // stride + 1
    out = np.zeros((b, groups, outputs // groups, rows * columns))
    for i in range(k):
        for j in range(k):
            seen = padded[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            kernel = weight[:, :, i, j].reshape(groups, outputs // groups, c // groups)
            out += kernel @ seen.reshape(b, groups, c // groups, rows * columns)
    out = out.reshape(b, outputs, rows, columns)
    return out if bias is None else out + bias[:, None, None]


def batch_norm(x: Array, w: Weights, at: str, eps: float = EPS) -> Array:
    mean, variance = w[f"{at}.running_mean"][:, None, None], w[f"{at}.running_var"][:, None, None]
    return (x - mean) / np.sqrt(variance + eps) * w[f"{at}.weight"][:, None, None] + w[f"{at}.bias"][:, None, None]


def max_pool(x: Array, k: int, stride: int, padding: int = 0, *, ceil: bool = False) -> Array:
    """The largest of each window; with ``ceil`` a last window may hang over the edge if it begins on the image."""
    b, c, h, w = x.shape
    sides = []
    for side in (h, w):
        steps = (side + 2 * padding - k) / stride
        count = int(np.ceil(steps) if ceil else np.floor(steps)) + 1
        sides.append(count - 1 if ceil and (count - 1) * stride >= side + padding else count)
    out = np.full((b, c, *sides), -np.inf)
    for row in range(sides[0]):
        for column in range(sides[1]):
            top, left = row * stride - padding, column * stride - padding
            window = x[:, :, max(top, 0) : top + k, max(left, 0) : left + k]
            out[:, :, row, column] = window.max((2, 3))
    return out


def upsample(x: Array, factor: int = 2) -> Array:
    """Nearest neighbour."""
    return x.repeat(factor, 2).repeat(factor, 3)


def reorg(x: Array) -> Array:
    """Space to depth by 2; the first quarter of the channels are the even rows and columns, the second the odd rows."""
    return np.concatenate([x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)


def conv_bn(x: Array, w: Weights, conv: str, bn: str, k: int, s: int = 1, p: int | None = None, g: int = 1) -> Array:
    padding = k // 2 if p is None else p
    return batch_norm(conv2d(x, w[f"{conv}.weight"], None, s, padding, g), w, bn)


def conv(
    x: Array,
    w: Weights,
    at: str,
    k: int = 1,
    s: int = 1,
    p: int | None = None,
    g: int = 1,
    act: Activation = silu,
) -> Array:
    """Convolution, batch norm, activation."""
    return act(conv_bn(x, w, f"{at}.conv", f"{at}.bn", k, s, p, g))


def dw_conv(x: Array, w: Weights, at: str, k: int = 1, s: int = 1, act: Activation = silu) -> Array:
    """In as many groups as inputs and outputs have a common divisor."""
    outputs = len(w[f"{at}.conv.weight"])
    return conv(x, w, at, k, s, None, math.gcd(x.shape[1], outputs), act)


def rep_conv(
    x: Array, w: Weights, at: str, k: int = 3, s: int = 1, p: int | None = None, g: int = 1, act: Activation = silu
) -> Array:
    """3x3 beside 1x1, and the input itself where there is a batch norm for it; summed before the activation."""
    y = conv_bn(x, w, f"{at}.rbr_dense.0", f"{at}.rbr_dense.1", k, s, p, g)
    y = y + conv_bn(x, w, f"{at}.rbr_1x1.0", f"{at}.rbr_1x1.1", 1, s, 0, g)
    if f"{at}.rbr_identity.weight" in w:
        y = y + batch_norm(x, w, f"{at}.rbr_identity")
    return act(y)


def down_c(x: Array, w: Weights, at: str, n: int = 1, k: int = 2) -> Array:
    worked = conv(conv(x, w, f"{at}.cv1"), w, f"{at}.cv2", 3, k)
    return np.concatenate([worked, conv(max_pool(x, k, k), w, f"{at}.cv3")], 1)


def sppcspc(x: Array, w: Weights, at: str) -> Array:
    main = conv(conv(conv(x, w, f"{at}.cv1"), w, f"{at}.cv3", 3), w, f"{at}.cv4")
    pyramid = np.concatenate([main, *(max_pool(main, k, 1, k // 2) for k in (5, 9, 13))], 1)
    pooled = conv(conv(pyramid, w, f"{at}.cv5"), w, f"{at}.cv6", 3)
    return conv(np.concatenate([pooled, conv(x, w, f"{at}.cv2")], 1), w, f"{at}.cv7")


def sppfcspc(x: Array, w: Weights, at: str, k: int = 5) -> Array:
    pyramid = [conv(conv(conv(x, w, f"{at}.cv1"), w, f"{at}.cv3", 3), w, f"{at}.cv4")]
    for _ in range(3):
        pyramid.append(max_pool(pyramid[-1], k, 1, k // 2))
    pooled = conv(conv(np.concatenate(pyramid, 1), w, f"{at}.cv5"), w, f"{at}.cv6", 3)
    return conv(np.concatenate([pooled, conv(x, w, f"{at}.cv2")], 1), w, f"{at}.cv7")


def spf(x: Array, k: int) -> Array:
    for _ in range((k - 1) // 2):
        x = max_pool(x, 3, 1, 1)
    return x


def spp(x: Array, w: Weights, at: str, k: Sequence[int] = (5, 9, 13), act: Activation = silu) -> Array:
    x = conv(x, w, f"{at}.cv1", act=act)
    return conv(np.concatenate([x, *(max_pool(x, n, 1, n // 2) for n in k)], 1), w, f"{at}.cv2", act=act)


def focus(
    x: Array, w: Weights, at: str, k: int = 1, s: int = 1, act: Activation = silu, *, columns_first: bool = False
) -> Array:
    """Every second pixel of every second row, four times; even rows and columns first, then odd rows (or columns)."""
    parities = [(0, 0), (0, 1), (1, 0), (1, 1)] if columns_first else [(0, 0), (1, 0), (0, 1), (1, 1)]
    blocks = np.concatenate([x[:, :, row::2, column::2] for row, column in parities], 1)
    return conv(blocks, w, f"{at}.conv", k, s, act=act)


def conv_focus(x: Array, w: Weights, at: str, k: int = 1, s: int = 1, act: Activation = silu) -> Array:
    return conv(conv(x, w, f"{at}.conv_slice", 3, 2, act=act), w, f"{at}.conv", k, s, act=act)


def bottleneck(x: Array, w: Weights, at: str, *, shortcut: bool = True, act: Activation = silu) -> Array:
    y = conv(conv(x, w, f"{at}.cv1", act=act), w, f"{at}.cv2", 3, act=act)
    return x + y if shortcut and x.shape[1] == y.shape[1] else y


def bottlenecks(x: Array, w: Weights, at: str, *, shortcut: bool, act: Activation) -> Array:
    """As many as there are weights for."""
    count = len({key[len(at) + 1 :].partition(".")[0] for key in w if key.startswith(f"{at}.")})
    for i in range(count):
        x = bottleneck(x, w, f"{at}.{i}", shortcut=shortcut, act=act)
    return x


def c3(x: Array, w: Weights, at: str, shortcut: bool = True, act: Activation = silu) -> Array:
    worked = bottlenecks(conv(x, w, f"{at}.cv1", act=act), w, f"{at}.m", shortcut=shortcut, act=act)
    bypass = conv(x, w, f"{at}.cv2", act=act)
    return conv(np.concatenate([worked, bypass], 1), w, f"{at}.cv3", act=act)


def bottleneck_csp(x: Array, w: Weights, at: str, shortcut: bool = True, act: Activation = silu) -> Array:
    """The batch norm and the leaky activation are those of both halves together."""
    worked = bottlenecks(conv(x, w, f"{at}.cv1", act=act), w, f"{at}.m", shortcut=shortcut, act=act)
    halves = [conv2d(worked, w[f"{at}.cv3.weight"]), conv2d(x, w[f"{at}.cv2.weight"])]
    return conv(leaky_relu(batch_norm(np.concatenate(halves, 1), w, f"{at}.bn")), w, f"{at}.cv4", act=act)


def ghost_conv(x: Array, w: Weights, at: str, k: int = 1, s: int = 1, g: int = 1, act: Activation = silu) -> Array:
    y = conv(x, w, f"{at}.cv1", k, s, g=g, act=act)
    return np.concatenate([y, conv(y, w, f"{at}.cv2", 5, g=y.shape[1], act=act)], 1)


def ghost_bottleneck(x: Array, w: Weights, at: str, k: int = 3, s: int = 1) -> Array:
    y = ghost_conv(x, w, f"{at}.conv.0")
    if s == 2:
        y = conv(y, w, f"{at}.conv.1", k, s, g=y.shape[1], act=linear)
        x = conv(x, w, f"{at}.shortcut.0", k, s, g=x.shape[1], act=linear)
        x = conv(x, w, f"{at}.shortcut.1", act=linear)
    return ghost_conv(y, w, f"{at}.conv.2", act=linear) + x


def c3_ghost(x: Array, w: Weights, at: str, shortcut: bool = True) -> Array:
    worked, i = conv(x, w, f"{at}.cv1"), 0
    while f"{at}.m.{i}.conv.0.cv1.conv.weight" in w:
        worked = ghost_bottleneck(worked, w, f"{at}.m.{i}")
        i += 1
    return conv(np.concatenate([worked, conv(x, w, f"{at}.cv2")], 1), w, f"{at}.cv3")


def sppf(x: Array, w: Weights, at: str, k: int = 5) -> Array:
    pyramid = [conv(x, w, f"{at}.cv1")]
    for _ in range(3):
        pyramid.append(max_pool(pyramid[-1], k, 1, k // 2))
    return conv(np.concatenate(pyramid, 1), w, f"{at}.cv2")


def stem_block(x: Array, w: Weights, at: str, k: int = 3, s: int = 2, p: int | None = None, g: int = 1) -> Array:
    x = conv(x, w, f"{at}.stem_1", k, s, p, g)
    worked = conv(conv(x, w, f"{at}.stem_2a"), w, f"{at}.stem_2b", 3, 2)
    return conv(np.concatenate([worked, max_pool(x, 2, 2, ceil=True)], 1), w, f"{at}.stem_3")


def conv_bn_relu_maxpool(x: Array, w: Weights, at: str) -> Array:
    return max_pool(relu(conv_bn(x, w, f"{at}.conv.0", f"{at}.conv.1", 3, 2)), 3, 2, 1)


def shuffle_block(x: Array, w: Weights, at: str, stride: int, act: Activation = silu) -> Array:
    """Two branches whose channels are then dealt out in turn: first of one, first of the other, second of one, ..."""
    half = len(w[f"{at}.branch2.0.weight"])
    if stride == 1:
        left, right = x[:, :half], x[:, half:]
    else:
        left = conv_bn(x, w, f"{at}.branch1.0", f"{at}.branch1.1", 3, stride, g=x.shape[1])
        left = act(conv_bn(left, w, f"{at}.branch1.2", f"{at}.branch1.3", 1))
        right = x
    right = act(conv_bn(right, w, f"{at}.branch2.0", f"{at}.branch2.1", 1))
    right = conv_bn(right, w, f"{at}.branch2.3", f"{at}.branch2.4", 3, stride, g=half)
    right = act(conv_bn(right, w, f"{at}.branch2.5", f"{at}.branch2.6", 1))
    out = np.empty((x.shape[0], 2 * half, *right.shape[2:]))
    out[:, 0::2], out[:, 1::2] = left, right
    return out


def dw_conv_block(x: Array, w: Weights, at: str, k: int, s: int, act: Activation = relu) -> Array:
    x = act(conv_bn(x, w, f"{at}.conv1", f"{at}.bn1", k, s, g=x.shape[1]))
    return act(conv_bn(x, w, f"{at}.conv2", f"{at}.bn2", 1))
