"""FCN as the paper and its Caffe files define it, in plain functions and in another order than the model's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.nn import functional

from deploykit.runtime.arrays import Array


def enlarge(x: Array, factor: int) -> Array:
    """A transposed convolution of stride ``factor`` with bilinear weights of ``2 factor``, by its definition."""
    side = 2 * factor
    line = [1 - abs(i - (factor - 0.5)) / factor for i in range(side)]
    channels, height, width = x.shape
    out = np.zeros((channels, (height - 1) * factor + side, (width - 1) * factor + side))
    for i in range(height):
        for j in range(width):
            cell = x[:, i, j, None, None] * np.outer(line, line)
            out[:, i * factor : i * factor + side, j * factor : j * factor + side] += cell
    return out


def logits(state: Mapping[str, Tensor], images: Tensor, kind: str, scales: Mapping[str, float]) -> Array:
    """``(classes, H, W)`` in float64 of one image ``(1, 3, H, W)``."""
    weights = {key: value.double() for key, value in state.items()}

    def conv(x: Tensor, name: str, pad: int = 0) -> Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=pad)

    x, pools = functional.pad(images.double(), (99, 99, 99, 99)), {}
    for block in range(1, 6):
        layer = 1
        while f"conv{block}_{layer}.weight" in weights:
            x = conv(x, f"conv{block}_{layer}", 1).clamp(min=0)
            layer += 1
        even = functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=-float("inf"))
        x = pools[block] = even.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    deep = conv(conv(x, "fc6").clamp(min=0), "fc7").clamp(min=0)
    height, width = images.shape[2:]
    score = conv(deep, "score_fr")[0].numpy()
    if kind == "32s":
        return enlarge(score, 32)[:, 19 : 19 + height, 19 : 19 + width]

    def joined(score: Array, name: str, block: int, offset: int) -> Array:
        skip = conv(pools[block] * scales.get(name, 1.0), f"score_{name}")[0].numpy()
        rows, columns = score.shape[1:]
        return np.asarray(score + skip[:, offset : offset + rows, offset : offset + columns])

    score = joined(enlarge(score, 2), "pool4", 4, 5)
    if kind == "16s":
        return enlarge(score, 16)[:, 27 : 27 + height, 27 : 27 + width]
    score = joined(enlarge(score, 2), "pool3", 3, 9)
    return enlarge(score, 8)[:, 31 : 31 + height, 31 : 31 + width]
