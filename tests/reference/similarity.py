"""SSIM pixel by pixel in plain numpy, as its authors write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def slow_ssim(a: Array, b: Array, largest: float = 255.0) -> float:
    """Of two images ``(H, W)`` or ``(H, W, C)``: the mean over all whole windows of 11 x 11, and over channels."""
    if a.ndim == 3:
        return float(np.mean([slow_ssim(a[..., c], b[..., c], largest) for c in range(a.shape[2])]))
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * largest) ** 2, (0.03 * largest) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = (side[y : y + 11, x : x + 11].astype(np.float64) for side in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))
