"""Non-maximum suppression of oriented boxes: its one meaning.

1. to 3. Candidates are those of :mod:`deploykit.runtime.postprocess.nms`: steps 1 to 3 there, in float32.
4. A candidate is kept unless any candidate of the same label that comes before it, kept or not, overlaps it by more
   than ``iou``, in float64.
5. The first ``max_det`` of them are the result.

``classes`` and ``agnostic`` mean what they mean in :mod:`deploykit.runtime.postprocess.nms`.

The overlap is that of two Gaussians (ProbIoU): a box has its centre as mean and, as covariance, that of the uniform
distribution over it, with the variances ``w^2 / 12`` and ``h^2 / 12`` along its sides. It is
``1 - sqrt(1 - exp(-d))``, d being their Bhattacharyya distance: 1 for equal boxes, and over 0 for boxes that do not
touch. A box without area overlaps nothing.

Step 4 is not greedy, and the overlap is not an IoU, because the oriented boxes that are published were tuned and scored
so by the ultralytics package: a box that is removed still removes others. The package's small constants, which only
guard divisions, are left out: they change an overlap of 0.9 by less than 1e-5.
"""

from __future__ import annotations

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.postprocess.nms import USUAL, Choice, Kept, candidates
from deploykit.runtime.postprocess.rotated import hulls_of
from deploykit.spec import RawDetections, Thresholds

__all__ = ["overlaps", "rotated_nms", "rotated_rows"]

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
    gone = np.zeros(len(boxes), bool)
    groups = np.zeros_like(labels) if choice.agnostic else labels
    for group in np.unique(groups):
        (same,) = np.nonzero(groups == group)
        gone[same] = _removed(boxes[same].astype(np.float64), thresholds.iou)
    kept = np.flatnonzero(~gone)[: thresholds.max_det]
    return Kept(index[kept], hulls_of(boxes[kept]), scores[kept], labels[kept], count)


def rotated_rows(rows: Array, layout: RawDetections) -> Array:
    """Return the oriented boxes of rows, ``(N, 5)`` cx, cy, w, h, angle; float32, or float64 of such rows."""
    assert layout.angle is not None
    wide = rows.astype(np.promote_types(rows.dtype, np.float32), copy=False)
    return np.concatenate((wide[:, slice(*layout.box)], wide[:, slice(*layout.angle)]), 1)


def overlaps(a: Array, b: Array) -> Array:
    """Return the overlap of every box of ``a (N, 5)`` with every box of ``b (M, 5)``, ``(N, M)`` float64.

    With ``S`` for the sum of two covariances and ``D`` for the distance of the centres, the Bhattacharyya distance is
    ``D' S^-1 D / 4 + ln(det S / (4 sqrt(det S_a det S_b))) / 2``. Everything here is a sum of terms that are not
    negative, so that thin boxes lose no digits.
    """
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    with np.errstate(all="ignore"):  # boxes without area
        turn = a[..., 4] - b[..., 4]
        (long_a, short_a), (long_b, short_b) = ((box[..., 2] ** 2 / 12, box[..., 3] ** 2 / 12) for box in (a, b))
        det_a, det_b = long_a * short_a, long_b * short_b
        crossed = (long_a * short_b + short_a * long_b) * np.cos(turn) ** 2
        crossed += (long_a * long_b + short_a * short_b) * np.sin(turn) ** 2
        det = det_a + det_b + crossed
        x, y = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
        apart = np.zeros_like(det)
        for box, long, short in ((a, long_a, short_a), (b, long_b, short_b)):
            cos, sin = np.cos(box[..., 4]), np.sin(box[..., 4])
            apart += short * (x * cos + y * sin) ** 2 + long * (y * cos - x * sin) ** 2
        distance = apart / det / 4 + np.log(det / (4 * np.sqrt(det_a) * np.sqrt(det_b))) / 2
        overlap: Array = 1 - np.sqrt(-np.expm1(-np.maximum(distance, 0)))  # equal boxes: below 0 by rounding
    return np.where((a[..., 2:4] > 0).all(-1) & (b[..., 2:4] > 0).all(-1), overlap, 0.0)


def _removed(boxes: Array, iou: float) -> Array:
    """Return which boxes of one label, the best first, have one before them that overlaps them by more than ``iou``."""
    gone = np.zeros(len(boxes), bool)
    for start in range(0, len(boxes), BLOCK):
        stop = min(start + BLOCK, len(boxes))
        over = overlaps(boxes[start:stop], boxes[:stop]) > iou
        gone[start:stop] = np.tril(over, start - 1).any(1)
    return gone
