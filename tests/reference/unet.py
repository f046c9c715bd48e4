"""U-Nets once more, in numpy and by their publications, one cell after the other.

``w`` is a state dict under our keys. Nothing here looks at ``deploykit.models``.
"""

from __future__ import annotations

import numpy as np

from tests.reference.layers import Array, Weights, batch_norm, conv2d, max_pool, relu

EPS = 1e-5


def transposed(x: Array, weight: Array, bias: Array, *, stride: int = 2, padding: int = 0, extra: int = 0) -> Array:
    """Every pixel lays its kernel onto the result, ``stride`` apart; ``padding`` is cut off, ``extra`` kept behind."""
    b, _, h, w = x.shape
    k = weight.shape[2]
    out = np.zeros((b, weight.shape[1], stride * (h - 1) + k + extra, stride * (w - 1) + k + extra))
    for i in range(k):
        for j in range(k):
            laid = np.einsum("bchw,co->bohw", x, weight[:, :, i, j])
            out[:, :, i : i + stride * h : stride, j : j + stride * w : stride][:, :, :h, :w] += laid
    out = out[:, :, padding : out.shape[2] - padding, padding : out.shape[3] - padding]
    return out + bias[None, :, None, None]


def corners_aligned(x: Array) -> Array:
    """Twice the size, bilinearly, with the outer pixels' centres at the same place before and after."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = np.take(x, low, axis) * (1 - part) + np.take(x, np.minimum(low + 1, n - 1), axis) * part
    return x


def pair(x: Array, w: Weights, at: str) -> Array:
    """Two convolutions, padded and with batch norms or neither; two of each kernel's halves are padding."""
    norms = f"{at}.double_conv.4.weight" in w
    for i in (0, 3) if norms else (0, 2):
        weight = w[f"{at}.double_conv.{i}.weight"]
        bias = w.get(f"{at}.double_conv.{i}.bias")
        x = conv2d(x, weight, bias, 1, weight.shape[2] // 2 if norms else 0)
        x = relu(batch_norm(x, w, f"{at}.double_conv.{i + 1}", EPS) if norms else x)
    return x


def unet(x: Array, w: Weights) -> Array:
    """The usual one. What is enlarged lies before nothing, and zeros lie below and right of it."""
    sides, i = [pair(x, w, "inc")], 1
    while f"down{i}.maxpool_conv.1.double_conv.0.weight" in w:
        sides.append(pair(max_pool(sides[-1], 2, 2), w, f"down{i}.maxpool_conv.1"))
        i += 1
    y = sides.pop()
    for i in range(1, len(sides) + 1):
        side = sides.pop()
        weight = w.get(f"up{i}.up.weight")
        y = corners_aligned(y) if weight is None else transposed(y, weight, w[f"up{i}.up.bias"])
        whole = np.zeros((*y.shape[:2], *side.shape[2:]))
        whole[:, :, : y.shape[2], : y.shape[3]] = y
        y = pair(np.concatenate([side, whole], 1), w, f"up{i}.conv")
    return conv2d(y, w["outc.conv.weight"], w["outc.conv.bias"])


def unet_2015(x: Array, w: Weights) -> Array:
    """One tile of the paper's: what comes out is the middle of what goes in."""
    sides, i = [pair(x, w, "inc")], 1
    while f"down{i}.maxpool_conv.1.double_conv.0.weight" in w:
        sides.append(pair(max_pool(sides[-1], 2, 2), w, f"down{i}.maxpool_conv.1"))
        i += 1
    y = sides.pop()
    for i in range(1, len(sides) + 1):
        y, side = transposed(y, w[f"up{i}.up.weight"], w[f"up{i}.up.bias"]), sides.pop()
        rows, columns = ((side.shape[axis] - y.shape[axis]) // 2 for axis in (2, 3))
        middle = side[:, :, rows : rows + y.shape[2], columns : columns + y.shape[3]]
        y = pair(np.concatenate([middle, y], 1), w, f"up{i}.conv")
    return conv2d(y, w["outc.conv.weight"], w["outc.conv.bias"])


def unet_pooled(x: Array, w: Weights) -> Array:
    """The one that is joined behind the halving; what was enlarged comes first."""
    sides, i = [x], 1
    while f"down{i}.conv.double_conv.0.weight" in w:
        sides.append(max_pool(pair(sides[-1], w, f"down{i}.conv"), 3, 2, 1))
        i += 1
    y = sides.pop()
    for i in range(1, len(sides) + 1):
        if i > 1:
            y = np.concatenate([y, sides.pop()], 1)
        y = transposed(pair(y, w, f"up{i}.conv"), w[f"up{i}.up.weight"], w[f"up{i}.up.bias"], padding=1, extra=1)
    return y
