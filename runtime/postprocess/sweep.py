"""Pairs of boxes that may meet: found by where boxes begin and end from left to right, which takes far less than a look
at all pairs where many small boxes lie apart."""

from __future__ import annotations

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["pairs_that_may_meet"]

FAR, SLACK = 1e9, 1e-6  # pixels: float64 tells places that are so far apart to a tenth of the slack


def pairs_that_may_meet(boxes: Array, labels: Array, most: int) -> tuple[Array, Array] | None:
    """Return all pairs of one label whose boxes share a part of their widths, and perhaps some more.

    Args:
        boxes: ``(N, 4)`` xyxy float32, at least one.
        labels: ``(N,)`` from 0 on.
        most: how many pairs there may be.

    Returns:
        ``(P,)`` positions, the lower one of each pair first. None: there are more, or places are too far apart.
    """
    left, right = boxes[:, 0].astype(np.float64), boxes[:, 2].astype(np.float64)
    least = float(left.min())
    span = float(np.maximum(left, right).max()) - least  # the left side of a box of negative width is beyond its right
    if not span * (int(labels.max()) + 1) < FAR:  # NaN and infinity too
        return None
    moved = labels * (span + 1) - least  # labels lie side by side
    left += moved
    right += moved
    order, places = left.argsort(), np.arange(len(boxes))
    counts = np.searchsorted(left[order], right[order] + SLACK) - places - 1
    np.maximum(counts, 0, out=counts)  # a box of negative width
    total = int(counts.sum())
    if total > most:
        return None
    first = np.repeat(places, counts)
    second = np.arange(total) + np.repeat(places + 1 - (np.cumsum(counts) - counts), counts)
    first, second = order[first], order[second]
    return np.minimum(first, second), np.maximum(first, second)
