"""NMS of few candidates in numpy, by as few calls as there can be: up to some tens, calls cost more than values.

What is computed, and how it is rounded, is defined in :mod:`deploykit.runtime.postprocess.nms`.
"""

from __future__ import annotations

import math

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.spec import RawDetections

__all__ = ["best_first", "overlapping", "suppressed"]

PAIRED = 128  # boxes, up to which the positions of all pairs are kept
FEW_PAIRS = 64  # which take less time than finding those of one label
MOST_PAIRS = 1300  # of boxes of a label, up to which pairs take less time than the square of all boxes
LATER, EARLIER = np.tril_indices(PAIRED, -1)  # those of N boxes are the first N (N - 1) / 2


def best_first(part: Array, layout: RawDetections, conf: np.float32) -> tuple[Array, Array, Array, int] | None:
    """Apply steps 1 to 3 to rows whose objectness is over ``conf``, but for the cut at ``pre_nms_topk``.

    Args:
        part: ``(N, columns)`` float32.
        layout: the layout of the columns, with objectness as a factor.
        conf: the threshold.

    Returns:
        Positions in ``part``, the best first, scores and labels of all of ``part``, and how many of the positions are
        candidates. None: a value may be NaN or infinite.
    """
    factor, (start, stop) = layout.score_spans
    assert factor is not None
    if not math.isfinite(part.sum(dtype=np.float32)):  # no sum with NaN or infinity is
        return None
    obj = part[:, factor[0]]
    if stop - start == 1:
        labels, products = np.zeros(len(part), np.intp), part[:, start] * obj
    else:
        every = part[:, start:stop] * obj[:, None]
        labels = every.argmax(axis=1)
        products = every[np.arange(len(part)), labels]
    scores = np.minimum(products, obj)
    return (-scores).argsort(kind="stable"), scores, labels, int(np.count_nonzero(scores > conf))


def suppressed(corners: Array, labels: Array | None, limit: np.float32) -> Array:
    """Apply step 4, and return the positions of the boxes that are left.

    Args:
        corners: ``(4, N)`` x1, y1, x2, y2 in float32, the best first.
        labels: ``(N,)``; None: all boxes have one label.
        limit: suppress above this overlap.
    """
    count = corners.shape[1]
    total = count * (count - 1) // 2
    if count > PAIRED or (labels is None and total > MOST_PAIRS):
        return _suppressed_in_a_square(corners, labels, limit)
    earlier, later = EARLIER[:total], LATER[:total]
    if labels is not None and total > FEW_PAIRS:
        same = (labels.take(earlier) == labels.take(later)).nonzero()[0]
        if len(same) > MOST_PAIRS:
            return _suppressed_in_a_square(corners, labels, limit)
        earlier, later, labels = earlier.take(same), later.take(same), None
    over = overlapping(corners, earlier, later, limit) if len(earlier) else earlier
    if not len(over):
        return np.arange(count)
    lost, names = bytearray(count), [0] * count if labels is None else labels.tolist()
    for i, j in zip(earlier.take(over).tolist(), later.take(over).tolist(), strict=True):
        if not lost[i] and names[i] == names[j]:  # lost[i] is decided: the pairs are in the order of their later boxes
            lost[j] = 1
    left: Array = (np.frombuffer(lost, np.uint8) == 0).nonzero()[0]
    return left


def overlapping(corners: Array, first: Array, second: Array, limit: np.float32) -> Array:
    """Return which pairs of boxes overlap by more than ``limit``: positions in ``first`` and ``second (P,)``, which are
    positions in ``corners (4, N)``."""
    a, b = corners.take(first, 1), corners.take(second, 1)
    extent = np.minimum(a[2:], b[2:])
    extent -= np.maximum(a[:2], b[:2])
    np.maximum(extent, 0, out=extent)
    inter = extent[0] * extent[1]
    sides = corners[2:] - corners[:2]
    area = sides[0] * sides[1]
    union = area.take(first)
    union += area.take(second)
    union -= inter
    inter /= union
    over: Array = (inter > limit).nonzero()[0]
    return over


def _suppressed_in_a_square(corners: Array, labels: Array | None, limit: np.float32) -> Array:
    """Suppress by the overlaps of all boxes with all boxes."""
    count = corners.shape[1]
    low, high = corners[:2], corners[2:]
    sides = high - low
    area = sides[0] * sides[1]
    extent = np.minimum(high[:, :, None], high[:, None])
    extent -= np.maximum(low[:, :, None], low[:, None])
    np.maximum(extent, 0, out=extent)
    inter = extent[0] * extent[1]
    union = area[:, None] + area
    union -= inter
    inter /= union
    over = inter > limit
    over.reshape(-1)[:: count + 1] = False  # a box and itself
    hits = over.any(axis=1).nonzero()[0]  # most boxes overlap none
    if not len(hits):
        return np.arange(count)
    over = over[hits]
    if labels is not None:
        over &= labels[hits, None] == labels
    lost = np.zeros(count, bool)
    for i, those in zip(hits.tolist(), over, strict=True):
        if not lost[i]:
            lost |= those  # of those before i, only what is decided already
    return (~lost).nonzero()[0]
