"""Non-maximum suppression on raw rows: the reference that every other implementation is held to.

The one meaning, all in float32:

1. A row with NaN or infinity in any column does not exist.
2. ``score = obj * cls`` (``cls`` alone without objectness); a row has one label, its best class, the lowest at a tie.
3. Candidates have ``score > conf``; the best ``pre_nms_topk`` of them go on, at equal scores the lower row first.
4. In that order each row is kept unless a kept row of the same label has
   ``inter / (area_a + area_b - inter) > iou``, rounded after each operation and in this order, without a fused
   multiply-add and without moving classes apart (an offset of thousands of pixels costs the boxes' low bits).
   Boxes are ``cx - w/2, cy - h/2, cx + w/2, cy + h/2``; area and intersection follow from those corners.
5. At most ``max_det`` rows are kept.

A box without area (w or h zero or negative) has no intersection with anything, so it neither suppresses nor is
suppressed: the quotient is 0, or 0/0, and neither is greater than a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploykit.runtime.native import native_nms
from deploykit.runtime.session import Array
from deploykit.spec import RawRows, Thresholds

__all__ = ["Kept", "nms", "numpy_nms", "suppress"]

BLOCK = 64  # candidates whose overlaps are computed at once: a few hundred kB, which a core's cache holds


@dataclass(frozen=True)
class Kept:
    """What NMS kept, the best first: row numbers, xyxy boxes (network pixels), scores and labels.

    ``candidates`` counts the rows over the confidence threshold; more than ``pre_nms_topk`` means that the weakest
    were never looked at.
    """

    rows: Array
    boxes: Array
    scores: Array
    labels: Array
    candidates: int


def nms(rows: Array, layout: RawRows, thresholds: Thresholds) -> Kept:
    """Apply the definition above to the rows of one image, by the native library where it is there, else in numpy.

    Args:
        rows: ``(N, columns)`` float, in network pixels.
        layout: which columns hold what.
        thresholds: ``conf``, ``iou``, ``max_det`` and ``pre_nms_topk``; the first two are rounded to float32.
    """
    found = native_nms(rows, layout, thresholds)
    return numpy_nms(rows, layout, thresholds) if found is None else Kept(*found)


def numpy_nms(rows: Array, layout: RawRows, thresholds: Thresholds) -> Kept:
    """The same in numpy alone: the reference, and what runs where there is no native library."""
    with np.errstate(all="ignore"):  # values that overflow are part of the definition
        index, scores, labels = _candidates(rows, layout, np.float32(thresholds.conf))
        whole = np.isfinite(rows[index]).all(axis=1)
        index, scores, labels = index[whole], scores[whole], labels[whole]
        best = _best(scores, thresholds.pre_nms_topk)
        boxes = _corners(rows[index[best], slice(*layout.box)].astype(np.float32, copy=False))
        kept = suppress(boxes, labels[best], thresholds.iou, thresholds.max_det)
    chosen = best[kept]
    return Kept(index[chosen], boxes[kept], scores[chosen], labels[chosen], len(index))


def _candidates(rows: Array, layout: RawRows, conf: np.float32) -> tuple[Array, Array, Array]:
    """Rows with a score over ``conf``, in row order: their numbers, scores and labels (rows with NaN may be left)."""
    products = rows[:, slice(*layout.cls)].astype(np.float32, copy=False)
    index = None
    if layout.obj is not None:
        obj = rows[:, layout.obj[0]].astype(np.float32, copy=False)
        ones = bool((obj == 1).all())  # a head without objectness may still have the column: nothing to multiply
        # Where every class value is at most 1 and no objectness is negative, rounding keeps obj * cls <= obj, so
        # rows with obj <= conf cannot be candidates and their classes need not be multiplied.
        if not ones and products.shape[1] > 1 and obj.min(initial=0) >= 0 and products.max(initial=0) <= 1:
            index = np.flatnonzero(obj > conf)
            products, obj = products[index], obj[index]
        products = products if ones else products * obj[:, None]
    scores = products[:, 0] if products.shape[1] == 1 else products.max(axis=1)
    over = np.flatnonzero(scores > conf)
    labels = products[over].argmax(axis=1)
    return over if index is None else index[over], scores[over], labels


def _best(scores: Array, count: int) -> Array:
    """Positions of the ``count`` highest scores, the highest first, at equal scores the lower position first."""
    positions = np.arange(len(scores))
    if len(scores) > count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        positions = np.flatnonzero(scores >= least)
    return positions[np.argsort(-scores[positions], kind="stable")][:count]


def _corners(boxes: Array) -> Array:
    half = boxes[:, 2:] / 2
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def suppress(boxes: Array, labels: Array, iou: float, max_det: int) -> Array:
    """Steps 4 and 5: positions of the boxes that stay.

    Args:
        boxes: ``(N, 4)`` xyxy float32, the best first.
        labels: ``(N,)``; boxes of different labels do not suppress each other.
        iou: suppress above this overlap.
        max_det: stop when so many are kept.
    """
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    corners = (x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
    mixed = len(labels) > 0 and bool((labels != labels[0]).any())
    limit = np.float32(iou)
    gone = np.zeros(len(boxes), bool)
    kept: list[int] = []
    for start in range(0, len(boxes), BLOCK):
        left = np.flatnonzero(~gone[start:]) + start  # this block's rows first, then all after it
        size = int(np.searchsorted(left, start + BLOCK))
        over = _overlap(tuple(c[left[:size], None] for c in corners), tuple(c[left] for c in corners)) > limit
        if mixed:
            over &= labels[left[:size], None] == labels[left]
        lost = np.zeros(len(left), bool)
        for i in range(size):
            if not lost[i]:
                kept.append(int(left[i]))
                lost |= over[i]  # rows before i are decided already, so marking them again changes nothing
        if len(kept) >= max_det:
            break
        gone[left[lost]] = True
    return np.asarray(kept[:max_det], np.int64)


def _overlap(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """IoU of every box of ``a`` with every box of ``b``; each is (x1, y1, x2, y2, area), shaped to broadcast."""
    width = np.minimum(a[2], b[2])
    width -= np.maximum(a[0], b[0])
    inter = np.minimum(a[3], b[3])
    inter -= np.maximum(a[1], b[1])
    np.maximum(width, 0, out=width)
    np.maximum(inter, 0, out=inter)
    inter *= width
    union = a[4] + b[4]
    union -= inter
    inter /= union
    return inter
