"""Non-maximum suppression on raw rows: the reference for every other implementation.

The definition, all in float32:

1. A row with NaN or infinity in any column is ignored.
2. The layout says what a score is (``RawDetections.score``): ``obj*cls`` is ``min(obj * cls, obj)``, ``cls`` the class
   alone, for heads without objectness, and ``obj`` the objectness alone, for a network of one class whose class score
   was never trained. A row has one label, the class of its highest product (or ``cls``), the lowest at a tie. For
   probabilities, the minimum equals the product, rounding included; it implies that a row whose objectness is not over
   the threshold is no candidate, so its classes need not be read.
3. Candidates have ``score > conf``; the best ``pre_nms_topk`` of them continue, at equal scores the lower row first.
4. In that order each row is kept unless a kept row of the same label has
   ``inter / (area_a + area_b - inter) > iou``, rounded after each operation and in this order, without a fused
   multiply-add and without moving classes apart (an offset of thousands of pixels costs the boxes' low bits).
   Boxes are ``cx - w/2, cy - h/2, cx + w/2, cy + h/2``; area and intersection follow from those corners.
5. At most ``max_det`` rows are kept.

With ``classes``, rows of other labels are no candidates: they neither suppress nor take a place in step 3 or 5. With
``agnostic``, step 4 compares a row with all kept rows and not only with those of its label.

With ``multi_label``, as in the evaluation of detectors, a candidate is a pair of a row and a class whose score is over
``conf``. Step 3 then orders pairs, at equal scores by the lower row and then the lower
class; steps 4 and 5 keep pairs, so a row may be kept with several labels. With one class, both are the same.

A box without area (w or h zero or negative) has no intersection with any box, so it neither suppresses nor is
suppressed: the quotient is 0 or 0/0, and neither is greater than a threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.native.library import native_nms
from deploykit.runtime.postprocess.few_boxes import HALF, MOST, best_first, left_over, overlapping, suppressed
from deploykit.runtime.postprocess.sweep import pairs_that_may_meet
from deploykit.spec import RawDetections, Thresholds

__all__ = ["USUAL", "Choice", "Kept", "candidates", "nms", "numpy_nms", "rows_at", "suppress", "suppress_by_label"]

REACH = 8  # times max_det: the number of candidates that are considered first
PAIRS = 16  # times the number of candidates: so many pairs that may meet are looked at pair by pair
BLOCK = 96  # candidates whose overlaps are computed at once: a few hundred kB, which fit in a core's cache
SORTED = 400  # scores, up to which a stable sort of positions takes the least time
FEW = MOST  # candidates, up to which few_boxes.py takes the least time


@dataclass(frozen=True)
class Choice:
    """What NMS chooses among; the defaults are a detector's own.

    ``multi_label``: candidates are pairs of a row and a class; ``classes``: only those of these labels, None: of all;
    ``agnostic``: objects of different labels suppress each other.
    """

    multi_label: bool = False
    classes: tuple[int, ...] | None = None
    agnostic: bool = False


USUAL = Choice()


class Kept(NamedTuple):
    """The rows that NMS keeps, the best first: row indices, xyxy boxes (network pixels), scores and labels.

    ``candidates`` is the number of rows (with ``multi_label`` of pairs) over the confidence threshold; if it is more
    than ``pre_nms_topk``, the weakest were not considered.
    """

    rows: Array
    boxes: Array
    scores: Array
    labels: Array
    candidates: int


def nms(rows: Array, layout: RawDetections, thresholds: Thresholds, choice: Choice = USUAL) -> Kept:
    """Apply the definition above to the rows of one image, by the native library if available, else in numpy.

    Args:
        rows: ``(N, columns)`` float, in network pixels.
        layout: the layout of the columns.
        thresholds: ``conf``, ``iou``, ``max_det`` and ``pre_nms_topk``; the first two are rounded to float32.
        choice: what is chosen among.
    """
    found = native_nms(
        rows, layout, thresholds, multi_label=choice.multi_label, classes=choice.classes, agnostic=choice.agnostic
    )
    return numpy_nms(rows, layout, thresholds, choice) if found is None else Kept(*found)


def numpy_nms(rows: Array, layout: RawDetections, thresholds: Thresholds, choice: Choice = USUAL) -> Kept:
    """Apply the definition in numpy: the reference, and the fallback without the native library."""
    with np.errstate(all="ignore"):  # values that overflow are part of the definition
        conf = np.array(thresholds.conf, np.float32)
        passed = _passed(rows, layout, conf, choice.multi_label)
        if passed is not None and len(passed) <= FEW and (choice is USUAL or choice == USUAL):
            found = _of_few(rows, passed, layout, thresholds, conf)
            if found is not None:
                return found
        index, scores, labels, count = _candidates(rows, passed, layout, thresholds, choice)
        if not count:
            return Kept(index, np.zeros((0, 4), np.float32), scores, labels, 0)
        boxes = _corners(rows[:, slice(*layout.box)][index].astype(np.float32, copy=False))
        choose = suppress_by_label if choice.multi_label else suppress
        groups = np.zeros_like(labels) if choice.agnostic else labels
        kept = choose(boxes, groups, thresholds.iou, thresholds.max_det)
    return Kept(index.take(kept), boxes.take(kept, 0), scores.take(kept), labels.take(kept), count)


def _of_few(rows: Array, passed: Array, layout: RawDetections, thresholds: Thresholds, conf: Array) -> Kept | None:
    """Apply the definition to the few rows ``passed``; None: one of them may have a value that is not finite."""
    if not len(passed):
        return Kept(passed, np.empty((0, 4), np.float32), np.empty(0, np.float32), passed, 0)
    part = rows_at(rows, passed).astype(np.float32, copy=False)
    found = best_first(part, layout, conf)
    if found is None:
        return None
    order, scores, labels = found
    count = len(order)
    if count > thresholds.pre_nms_topk:
        order = order[: thresholds.pre_nms_topk]
    boxes = _corners(part[:, slice(*layout.box)]).take(order, 0)
    kept = suppressed(boxes, None if labels is None else labels.take(order), np.array(thresholds.iou, np.float32))
    if kept is not None or len(order) > thresholds.max_det:
        kept = (np.arange(len(order)) if kept is None else kept)[: thresholds.max_det]
        order, boxes = order.take(kept), boxes.take(kept, 0)
    labels = np.zeros(len(order), np.intp) if labels is None else labels.take(order)
    return Kept(passed.take(order), boxes, scores.take(order), labels, count)


def rows_at(rows: Array, index: Array) -> Array:
    """Return a copy of the rows at ``index``, rows and values in any order in memory."""
    return rows.take(index, 0) if rows.flags.c_contiguous else rows[index]


def candidates(
    rows: Array, layout: RawDetections, thresholds: Thresholds, choice: Choice = USUAL
) -> tuple[Array, Array, Array, int]:
    """Apply steps 1 to 3: row indices, scores and labels, the best first, and how many there were before the last."""
    with np.errstate(all="ignore"):
        passed = _passed(rows, layout, np.array(thresholds.conf, np.float32), choice.multi_label)
        return _candidates(rows, passed, layout, thresholds, choice)


def _passed(rows: Array, layout: RawDetections, conf: Array, multi_label: bool) -> Array | None:
    """Return the rows that may be candidates; None: all may be.

    No score exceeds its objectness, so the rows whose objectness is not over ``conf`` need not be read. Without one, or
    where all of it is 1, these are the rows of which a class is over ``conf``.
    """
    factor, classes = layout.score_spans
    if factor is not None:
        obj = rows[:, factor[0]].astype(np.float32, copy=False)
        passed: Array = (obj > conf).nonzero()[0]
        if multi_label or len(passed) < len(rows) or not len(rows) or not (obj == 1).all():
            return passed
    elif multi_label:
        return None
    scores = rows[:, slice(*classes)].astype(np.float32, copy=False)
    count = scores.shape[1]
    if count == 1 or scores.strides[0] < scores.strides[1]:
        best = scores[:, 0] if count == 1 else scores.max(axis=1)
        passed = (best > conf).nonzero()[0]
    else:  # comparing every value takes less time than the maximum of every row
        index = (scores > conf).reshape(-1).nonzero()[0] // count
        passed = index[np.diff(index, prepend=-1) > 0]
    return passed


def _candidates(
    rows: Array, passed: Array | None, layout: RawDetections, thresholds: Thresholds, choice: Choice
) -> tuple[Array, Array, Array, int]:
    index, scores, labels = _chosen(rows, passed, layout, thresholds, choice)
    if not len(index):
        return index, scores, labels, 0
    best = _best(scores, thresholds.pre_nms_topk)
    return index.take(best), scores.take(best), labels.take(best), len(index)


def _chosen(
    rows: Array, passed: Array | None, layout: RawDetections, thresholds: Thresholds, choice: Choice
) -> tuple[Array, Array, Array]:
    """Return all candidates before the cut at ``pre_nms_topk``, in the order of the rows: indices, scores, labels."""
    conf = np.array(thresholds.conf, np.float32)
    factor, (start, stop) = layout.score_spans
    if passed is not None and factor is not None and choice.classes is not None and len(choice.classes) == 1:
        column = start + choice.classes[0]
        if column < stop:  # else there is no such class
            of_class, obj = (rows[passed, each].astype(np.float32) for each in (column, factor[0]))
            passed = passed[of_class * obj > conf]  # no other row can have this label
    index, scores, labels = _over(rows, passed, layout, conf, choice.multi_label)
    if not len(index):
        return index, scores, labels
    if choice.classes is not None:
        wanted = _wanted(choice.classes, layout.cls[1] - layout.cls[0])[labels]
        index, scores, labels = index[wanted], scores[wanted], labels[wanted]
    whole = _whole(rows, index, choice.multi_label)
    return (index, scores, labels) if whole is None else (index[whole], scores[whole], labels[whole])


def _over(
    rows: Array, index: Array | None, layout: RawDetections, conf: Array, multi_label: bool
) -> tuple[Array, Array, Array]:
    """Return rows or pairs with a score over ``conf``, in order: indices, scores, labels (rows with NaN may remain)."""
    factor, classes = layout.score_spans
    products, obj = rows[:, slice(*classes)], None if factor is None else rows[:, factor[0]]
    if index is not None:
        if not len(index):
            return index, np.zeros(0, np.float32), index  # a view would hold all rows as long as the result lives
        if len(index) < len(rows):
            products, obj = products[index], None if obj is None else obj[index]
    products = products.astype(np.float32, copy=False)
    if obj is not None:
        obj = obj.astype(np.float32, copy=False)
        if not (obj == 1).all():
            products = products * obj[:, None]
    if multi_label:
        products = products if obj is None else np.minimum(products, obj[:, None])
        pairs = np.flatnonzero(products > conf)
        over, classes_of_pairs = np.divmod(pairs, products.shape[1])
        return over if index is None else index[over], products.reshape(-1)[pairs], classes_of_pairs
    assert index is not None  # all may be candidates with several labels alone
    labels = products.argmax(axis=1)
    scores = products[np.arange(len(products)), labels]
    scores = scores if obj is None else np.minimum(scores, obj)
    over = (scores > conf).nonzero()[0]
    return (index, scores, labels) if len(over) == len(scores) else (index[over], scores[over], labels[over])


@lru_cache(maxsize=16)
def _wanted(classes: tuple[int, ...], count: int) -> Array:
    """Return which of so many labels are wanted: ``(count,)`` bool, which nobody changes."""
    return np.isin(np.arange(count), classes)


def _whole(rows: Array, index: Array, repeated: bool) -> Array | None:
    """Return which of the ascending row indices ``index`` (``repeated``: some may be equal) are of finite values; None:
    all of them."""
    used = index[np.diff(index, prepend=-1) > 0] if repeated else index
    # No sum with NaN or infinity is finite, and that of all rows, where most are used, needs no copy.
    if 2 * len(used) > len(rows) and np.isfinite(rows.sum(dtype=np.float32)):
        return None
    values = rows_at(rows, used).astype(np.float32, copy=False)
    if np.isfinite(values.sum()):
        return None
    whole = np.zeros(len(rows), bool)
    whole[used] = np.isfinite(values).all(axis=1)
    return whole[index]


def _best(scores: Array, count: int) -> Array:
    """Return the positions of the ``count`` highest scores in descending order, at equal scores the lower first.

    Scores are positive, so their bits as a whole number order as they do; with its position, each is a number of its
    own, and such numbers are sorted in a third of the time that a stable sort of positions takes.
    """
    if len(scores) <= SORTED:
        return (-scores).argsort(kind="stable")[:count]
    keys = np.arange(len(scores)) - (scores.view(np.int32).astype(np.int64) << 32)
    if len(keys) > count:
        keys.partition(count)
        keys = keys[:count]
    keys.sort()
    return keys & (2**32 - 1)


def _corners(boxes: Array) -> Array:
    """Return ``(N, 4)`` x1, y1, x2, y2 of ``(N, 4)`` centres, widths and heights."""
    columns = boxes.T.copy()  # numpy is slow in an axis of two
    centre, half = columns[:2], columns[2:] * HALF
    found = np.empty(columns.shape, np.float32)
    np.subtract(centre, half, found[:2])
    np.add(centre, half, found[2:])
    return found.T


def suppress(boxes: Array, labels: Array, iou: float, max_det: int) -> Array:
    """Apply steps 4 and 5, and return the positions of the kept boxes.

    Args:
        boxes: ``(N, 4)`` xyxy float32, the best first.
        labels: ``(N,)``; boxes of different labels do not suppress each other.
        iou: suppress above this overlap.
        max_det: stop when this many are kept.
    """
    return _of_the_best(_suppressed, boxes, labels, np.array(iou, np.float32), max_det)


def suppress_by_label(boxes: Array, labels: Array, iou: float, max_det: int) -> Array:
    """Return the same positions as :func:`suppress`, fast for many boxes of many labels: compared label by label."""
    return _of_the_best(_suppressed_apart, boxes, labels, np.array(iou, np.float32), max_det)


def _of_the_best(
    choose: Callable[[Array, Array, Array, int], Array],
    boxes: Array, labels: Array, limit: Array, max_det: int,
) -> Array:  # fmt: skip
    """Return what ``choose`` keeps; weak boxes are not compared if the strong ones already fill ``max_det``, because
    whether a box is kept depends only on those before it."""
    reach = REACH * max_det
    while True:
        kept = choose(boxes[:reach], labels[:reach], limit, max_det)
        if len(kept) == max_det or reach >= len(boxes):
            return kept
        reach *= 4


def _suppressed(boxes: Array, labels: Array, limit: Array, max_det: int) -> Array:
    boxes = np.ascontiguousarray(boxes)
    if len(boxes) <= FEW:
        kept = suppressed(boxes, labels, limit)
        return np.arange(min(len(boxes), max_det)) if kept is None else kept[:max_det]
    mixed = len(boxes) <= 2 * FEW or bool((labels != labels[0]).any())  # crowds of one label have too many pairs
    pairs = pairs_that_may_meet(boxes, labels, PAIRS * len(boxes)) if mixed else None
    if pairs is None:
        return _suppressed_in_blocks(boxes, labels, limit, max_det)
    first, second = pairs
    over = overlapping(boxes, first, second, limit)
    return left_over(first.take(over), second.take(over), len(boxes))[:max_det]


def _suppressed_in_blocks(boxes: Array, labels: Array, limit: Array, max_det: int) -> Array:
    """Suppress a block of candidates after the other, each compared with all that are left."""
    count = len(boxes)
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    corners = (x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
    mixed = bool((labels != labels[0]).any())
    gone = np.zeros(count, bool)
    memory = np.zeros((4, min(BLOCK, count) * count), np.float32)
    kept: list[Array] = []
    left, size, total = np.arange(count), min(BLOCK, count), 0
    for start in range(0, count, BLOCK):
        if start:
            left = np.flatnonzero(~gone[start:]) + start  # this block's rows first, then all after it
            size = int(np.searchsorted(left, start + BLOCK))
        over = _overlap(tuple(c[left] for c in corners) if start else corners, size, memory) > limit
        over.reshape(-1)[:: len(left) + 1] = False  # a box and itself
        lost = np.zeros(len(left), bool)
        hits = np.flatnonzero(over.any(axis=1))  # most boxes overlap none
        over = over[hits]
        if mixed:
            over &= labels[left[hits], None] == labels[left]
        for i, those in zip(hits.tolist(), over, strict=True):
            if not lost[i]:
                lost |= those  # rows before i are already decided, so marking them again changes nothing
        kept.append(left[:size][~lost[:size]])
        total += len(kept[-1])
        if total >= max_det:
            break
        gone[left[lost]] = True
    return np.concatenate(kept)[:max_det]


def _suppressed_apart(boxes: Array, labels: Array, limit: Array, max_det: int) -> Array:
    """Suppress within each label, then take the best of all labels."""
    order = np.argsort(labels, kind="stable")  # keeps the best first within a label
    borders = np.flatnonzero(np.diff(labels[order])) + 1
    parts = [part[_suppressed(boxes[part], labels[part], limit, max_det)] for part in np.split(order, borders)]
    return np.sort(np.concatenate(parts))[:max_det]


def _overlap(boxes: tuple[Array, ...], size: int, memory: Array) -> Array:
    """Return the IoU of the first ``size`` boxes with all boxes, ``(size, N)``.

    Args:
        boxes: x1, y1, x2, y2, area, each ``(N,)``.
        size: at least 0.
        memory: four rows of at least ``size * N`` values, the last of them zeros; the result is in the first.
    """
    x1, y1, x2, y2, area = boxes
    first, other, third, zeros = (row[: size * len(area)].reshape(size, len(area)) for row in memory)
    inter = _of_pairs(np.minimum, x2, first)
    inter -= _of_pairs(np.maximum, x1, other)
    np.maximum(inter, zeros, out=inter)
    _of_pairs(np.minimum, y2, other)
    other -= _of_pairs(np.maximum, y1, third)
    np.maximum(other, zeros, out=other)
    inter *= other
    union = _of_pairs(np.add, area, other)
    union -= inter
    inter /= union
    return inter


def _of_pairs(function: np.ufunc, values: Array, out: Array) -> Array:
    """Return ``function`` of the first values with all values in ``out``.

    The first are written there before, because a loop over one value and many is two to three times as slow as a loop
    over as many, and so is one over many and 0.
    """
    out[...] = values[: len(out), None]
    function(out, values, out=out)
    return out
