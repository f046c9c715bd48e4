"""NMS of few candidates in numpy, by as few calls as there can be: up to some tens, calls cost more than values.

What is computed, and how it is rounded, is defined in :mod:`deploykit.runtime.postprocess.nms`. Numbers beside arrays
are arrays without axes here, because numpy converts any other number at each call, which takes as long as the call.
"""

from __future__ import annotations

import math

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.spec import RawDetections

__all__ = ["best_first", "left_over", "overlapping", "suppressed"]

MOST = 128  # boxes, up to which the positions of all pairs are kept
ONE_BY_ONE, OF_SEVERAL = 14, 28  # boxes of one label and of several, up to which Python takes less time than numpy
MOST_MEETINGS = 24  # after which numpy would have been faster
MANY_PAIRS = 2000  # from which those that share a part of their widths are found first
CLEAR, FAR = 1e-5, 1e30  # roundings in float32 never change an overlap by so much, while areas are not so far from 1
LOOPED = 64  # overlaps, up to which a loop over them takes less time than a round over arrays
ROUNDS = 8  # most crowds are settled by then; boxes in a chain need half as many rounds as boxes
MOST_DOTTED = 8192  # values, up to which BLAS starts no threads for a dot product
ZERO, HALF = np.array(0, np.float32), np.array(0.5, np.float32)
LATER, EARLIER = np.tril_indices(MOST, -1)  # those of N boxes are the first N (N - 1) / 2


def best_first(part: Array, layout: RawDetections, conf: Array) -> tuple[Array, Array, Array | None] | None:
    """Apply steps 1 to 3 to rows that may be candidates, but for the cut at ``pre_nms_topk``.

    Args:
        part: ``(N, columns)`` float32.
        layout: the layout of the columns.
        conf: the threshold, ``()`` float32.

    Returns:
        The positions of the candidates in ``part``, the best first, and scores and labels (None: all are 0) of all of
        ``part``. None: a value may be NaN or infinite.
    """
    factor, (start, stop) = layout.score_spans
    values = part.ravel("K")
    # No sum with NaN or infinity is finite, nor is one of squares.
    if not math.isfinite(values.dot(values) if len(values) <= MOST_DOTTED else np.add.reduce(values)):
        return None
    obj, labels = None if factor is None else part[:, factor[0]], None
    if stop - start == 1:
        scores = part[:, start] if obj is None else part[:, start] * obj
    else:
        every = part[:, start:stop] if obj is None else part[:, start:stop] * obj[:, None]
        labels = every.argmax(1)
        scores = every[np.arange(len(part)), labels]
    if obj is not None:
        np.minimum(scores, obj, out=scores)
    order = (-scores).argsort(-1, "stable")
    return order[: np.count_nonzero(scores > conf)], scores, labels


def suppressed(boxes: Array, labels: Array | None, limit: Array) -> Array | None:
    """Apply step 4, and return the positions of the boxes that are left; None: all are.

    Args:
        boxes: ``(N, 4)`` xyxy float32, the best first; N is at most :data:`MOST`.
        labels: ``(N,)``; None: all boxes have one label.
        limit: suppress above this overlap, ``()`` float32.
    """
    count = len(boxes)
    few = count <= (ONE_BY_ONE if labels is None else OF_SEVERAL)
    left = _left_one_by_one(boxes, labels, limit) if few else None
    if left is not None:
        return None if len(left) == count else np.array(left, np.intp)
    total = count * (count - 1) // 2
    first, second = EARLIER[:total], LATER[:total]
    if labels is not None:
        first, second = _alike(first, second, labels)
    if len(first) > MANY_PAIRS:
        x1, x2 = np.ascontiguousarray(boxes[:, ::2].T)
        meet = x1.take(first) < x2.take(second)
        meet &= x1.take(second) < x2.take(first)
        near = meet.nonzero()[0]
        first, second = first.take(near), second.take(near)
    over = overlapping(boxes, first, second, limit)
    return left_over(first.take(over), second.take(over), count) if len(over) else None


def _left_one_by_one(boxes: Array, labels: Array | None, limit: Array) -> list[int] | None:
    """Return the positions of the boxes that are left; None: many of them meet, or roundings might decide."""
    x1, y1, x2, y2 = boxes.T.tolist()
    left: list[int] = []
    alike: dict[int, list[int]] = {0: left} if labels is None else {}
    names = [0] * len(boxes) if labels is None else labels.tolist()
    iou, meetings = float(limit), 0
    for j, (start, top, stop, bottom, name) in enumerate(zip(x1, y1, x2, y2, names, strict=True)):
        same = alike.setdefault(name, [])
        for i in same:
            if not (x1[i] < stop and start < x2[i] and y1[i] < bottom and top < y2[i]):
                continue
            meetings += 1
            width, height = min(x2[i], stop) - max(x1[i], start), min(y2[i], bottom) - max(y1[i], top)
            inter = width * height
            union = (x2[i] - x1[i]) * (y2[i] - y1[i]) + (stop - start) * (bottom - top) - inter
            beyond = inter - iou * union
            if meetings > MOST_MEETINGS or not (
                width > 0 and inter > 1 / FAR and union < FAR and abs(beyond) > CLEAR * union
            ):
                return None
            if beyond > 0:
                break
        else:
            same.append(j)
            if same is not left:
                left.append(j)
    return left


def _alike(first: Array, second: Array, labels: Array) -> tuple[Array, Array]:
    """Return the pairs of one label."""
    same = (labels.take(first) == labels.take(second)).nonzero()[0]
    return first.take(same), second.take(same)


def overlapping(boxes: Array, first: Array, second: Array, limit: Array) -> Array:
    """Return which pairs of boxes overlap by more than ``limit``: positions in ``first`` and ``second (P,)``, which are
    positions in ``boxes (N, 4)`` xyxy float32."""
    one, other = boxes.take(first, 0), boxes.take(second, 0)  # four values at once: faster than by columns
    low, high = np.maximum(one, other), np.minimum(one, other, out=one)
    extent = _sides(low, high)
    np.maximum(extent, ZERO, out=extent)
    inter = extent[::2] * extent[1::2]
    sides = _sides(boxes, boxes)
    area = sides[::2] * sides[1::2]
    union = area.take(first)
    union += area.take(second)
    union -= inter
    inter /= union
    over: Array = (inter > limit).nonzero()[0]
    return over


def _sides(low: Array, high: Array) -> Array:
    """Return ``(2 N,)`` x2 - x1 and y2 - y1 in turn, of ends ``high (N, 4)`` and starts ``low (N, 4)`` xyxy float32.

    Complex numbers are two that one call subtracts, each by itself.
    """
    return (high.view(np.complex64)[:, 1] - low.view(np.complex64)[:, 0]).view(np.float32)


def left_over(first: Array, second: Array, count: int) -> Array:
    """Return the positions of the boxes that are left, of ``count``: each that is left removes those after it that it
    overlaps.

    Args:
        first: ``(P,)`` positions of boxes; they overlap by more than the limit.
        second: ``(P,)`` those of the other boxes of the pairs, each greater.
    """
    lost = np.zeros(count, bool)
    for _ in range(ROUNDS):
        if len(first) <= LOOPED:
            break
        free = np.ones(count, bool)
        free[second] = False  # nothing that may be left is before the others
        lost[second[free[first]]] = True
        undecided = ~(free | lost)
        still = undecided[first] & undecided[second]
        first, second = first[still], second[still]
    for i, j in sorted(zip(first.tolist(), second.tolist(), strict=True)):  # before i is its own turn, it is decided
        if not lost[i]:
            lost[j] = True
    left: Array = (~lost).nonzero()[0]
    return left
