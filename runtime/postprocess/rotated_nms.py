"""Non-maximum suppression of oriented boxes: its one meaning.

1. to 3. Candidates are those of :mod:`deploykit.runtime.postprocess.nms`: steps 1 to 3 there, in float32.
4. A candidate is kept unless any candidate of the same label that comes before it, kept or not, overlaps it by more
   than ``iou``.
5. The first ``max_det`` of them are the result.

``classes`` and ``agnostic`` mean what they mean in :mod:`deploykit.runtime.postprocess.nms`.

The overlap is that of two Gaussians (ProbIoU): a box has its centre as mean and, as covariance, that of the uniform
distribution over it, with the variances ``w^2 / 12`` and ``h^2 / 12`` along its sides. It is
``1 - sqrt(1 - exp(-d))``, d being their Bhattacharyya distance: 1 for equal boxes, and over 0 for boxes that do not
touch. A box without area overlaps nothing.

An overlap is over ``iou`` where ``d < -log(1 - (1 - iou)^2)``, which needs no root of a small difference, so this is
what is compared here and in the native library, in float64. A graph compares the overlap itself, in float32. Two of
them may decide a pair differently whose overlap is within their rounding of ``iou``, because libraries round sines and
logarithms differently: 1e-15 in float64, some 1e-5 in float32 (of sides up to 1e4 pixels and a hundred times longer
than wide). They agree on all pairs of ``tests/rotated_corpus.py``.

Step 4 is not greedy, and the overlap is not an IoU, because the oriented boxes that are published were tuned and scored
so by the ultralytics package: a box that is removed still removes others. The package's small constants, which only
guard divisions, are left out: they change an overlap of 0.9 by less than 1e-5.
"""

from __future__ import annotations

import math

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.native.library import native_suppressed
from deploykit.runtime.postprocess.nms import REACH, USUAL, Choice, Kept, candidates
from deploykit.runtime.postprocess.rotated import hulls_of
from deploykit.spec import RawDetections, Thresholds

__all__ = [
    "distances",
    "limit_of",
    "numpy_removed",
    "overlaps",
    "removed",
    "rotated_nms",
    "rotated_rows",
    "shapes_of",
]

BLOCK = 64  # boxes that are compared at once with all before them


def rotated_nms(rows: Array, layout: RawDetections, thresholds: Thresholds, choice: Choice = USUAL) -> Kept:
    """Apply the definition above to the rows of one image; the boxes of the result are the upright ones around them.

    Args:
        rows: ``(N, columns)`` float, in network pixels.
        layout: the layout of the columns, with one of angles.
        thresholds: ``conf``, ``iou``, ``max_det`` and ``pre_nms_topk``.
        choice: what is chosen among.
    """
    index, scores, labels, count = candidates(rows, layout, thresholds, choice)
    boxes = rotated_rows(rows[index], layout)
    groups = np.zeros_like(labels) if choice.agnostic else labels
    reach = REACH * thresholds.max_det
    while True:  # weak boxes are not compared if the strong ones fill the list: a box depends only on those before it
        gone = removed(boxes[:reach], groups[:reach], thresholds.iou)
        if reach >= len(boxes) or np.count_nonzero(~gone) >= thresholds.max_det:
            break
        reach *= 4
    kept = np.flatnonzero(~gone)[: thresholds.max_det]
    return Kept(index[kept], hulls_of(boxes[kept]), scores[kept], labels[kept], count)


def rotated_rows(rows: Array, layout: RawDetections) -> Array:
    """Return the oriented boxes of rows, ``(N, 5)`` cx, cy, w, h, angle; float32, or float64 of such rows."""
    assert layout.angle is not None
    wide = rows.astype(np.promote_types(rows.dtype, np.float32), copy=False)
    return np.concatenate((wide[:, slice(*layout.box)], wide[:, slice(*layout.angle)]), 1)


def overlaps(a: Array, b: Array) -> Array:
    """Return the overlap of every box of ``a (N, 5)`` with every box of ``b (M, 5)``, ``(N, M)`` float64."""
    with np.errstate(all="ignore"):  # boxes without area
        overlap: Array = 1 - np.sqrt(-np.expm1(-distances(shapes_of(a), shapes_of(b))))
    return np.where(np.isnan(overlap), 0.0, overlap)


def limit_of(iou: float) -> float:
    """Return the distance below which boxes overlap by more than ``iou``: 0 for 1, infinity for 0."""
    return -math.log(iou * (2 - iou)) if iou > 0 else math.inf  # 1 - (1 - iou)^2


def shapes_of(boxes: Array) -> Array:
    """Return what the distance takes of boxes ``(N, 5)``: ``(7, N)`` float64.

    ``x, y, long, short, root, cos, sin``: the centre, the variances along w and h, the root of their product, and the
    angle's cosine and sine. The variances of a box without area are NaN, so that it has no distance from anything.
    """
    x, y, w, h, angle = boxes.astype(np.float64).T
    flat = ~((w > 0) & (h > 0))
    with np.errstate(all="ignore"):
        long, short, root = (np.where(flat, np.nan, side / 12) for side in (w * w, h * h, w * h))
    return np.stack((x, y, long, short, root, np.cos(angle), np.sin(angle)))


def distances(a: Array, b: Array) -> Array:
    """Return the distance of every one of N shapes (:func:`shapes_of`) from every one of M, ``(N, M)``.

    With ``S`` for the sum of two covariances and ``D`` for the distance of the centres, the Bhattacharyya distance is
    ``D' S^-1 D / 4 + ln(det S / (4 sqrt(det S_a det S_b))) / 2``. Everything here is a sum of terms that are not
    negative, so that thin boxes lose no digits. NaN: one of the two has no area.
    """
    ax, ay, long_a, short_a, root_a, cos_a, sin_a = a[:, :, None]
    bx, by, long_b, short_b, root_b, cos_b, sin_b = b[:, None, :]
    with np.errstate(all="ignore"):
        cos, sin = cos_a * cos_b + sin_a * sin_b, sin_a * cos_b - cos_a * sin_b  # of the turn between the two
        det = long_a * short_a + long_b * short_b
        det = det + (long_a * short_b + short_a * long_b) * (cos * cos)
        det = det + (long_a * long_b + short_a * short_b) * (sin * sin)
        x, y = ax - bx, ay - by
        along, across = x * cos_a + y * sin_a, y * cos_a - x * sin_a
        apart = short_a * (along * along) + long_a * (across * across)
        along, across = x * cos_b + y * sin_b, y * cos_b - x * sin_b
        apart = apart + (short_b * (along * along) + long_b * (across * across))
        found: Array = apart / det / 4 + np.log(det / (4 * root_a * root_b)) / 2
        found = np.maximum(found, 0)  # equal boxes: below 0 by rounding
    return found


def removed(boxes: Array, labels: Array, iou: float) -> Array:
    """Apply step 4 by the native library if available, else in numpy.

    Args:
        boxes: ``(N, 5)``, the best first.
        labels: ``(N,)``; boxes of different labels do not remove each other.
        iou: remove above this overlap.

    Returns:
        ``(N,)`` bool: which boxes have one before them that removes them.
    """
    shapes, limit = shapes_of(boxes), limit_of(iou)
    found = native_suppressed(shapes, labels, limit)
    return numpy_removed(shapes, labels, limit) if found is None else found


def numpy_removed(shapes: Array, labels: Array, limit: float) -> Array:
    """Apply step 4 in numpy: the reference, and the fallback without the native library."""
    gone = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (same,) = np.nonzero(labels == label)
        own = shapes[:, same]
        for start in range(0, len(same), BLOCK):
            stop = min(start + BLOCK, len(same))
            over = distances(own[:, start:stop], own[:, :stop]) < limit
            gone[same[start:stop]] = np.tril(over, start - 1).any(1)
    return gone
