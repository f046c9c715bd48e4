"""How far an output may be from what is expected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["Tolerance", "dense_limit"]


@dataclass(frozen=True)
class Tolerance:
    """Limits; the defaults are those of fp32: pixels may differ by ``pixels + relative * |x| + side * s``, where s is
    the longer side of the row's box, probabilities by ``probability``, in rows of which either network's score is over
    ``min_score``.

    Matched detections: corners are the same within ``same_box`` pixels whatever the IoU, keypoints within
    ``max_keypoint`` pixels, scores within ``max_score``; a pair whose IoU is within ``borderline_iou`` of the
    threshold of NMS may fall on either side of it. A matched pair has at least an IoU of ``min_iou``.
    ``unmatched`` is the share of all detections that may be without a partner, because NMS is a chain of decisions.

    Values of a dense output (logits, an image) may differ by ``dense`` times the largest of them, or times 1 where
    that is less. Then ``unmatched`` is the share of pixels that may be of another class, or more than a grey level off.

    ``judged``: whether they are limits at all. int8 has none by value (its accuracy decides), so there everything is
    measured and told, and nothing fails.
    """

    pixels: float = 1e-3
    relative: float = 1e-5
    probability: float = 1e-5
    side: float = 0.0
    min_score: float = 0.0
    same_box: float = 0.02
    max_keypoint: float = 0.05
    max_score: float = 1e-4
    borderline_iou: float = 1e-3
    min_iou: float = 0.99
    unmatched: float = 0.0
    judged: bool = True
    dense: float = 1e-5


def dense_limit(expected: Array, limits: Tolerance) -> float:
    """How far a value of a dense output may be off: ``expected`` is all of it."""
    finite = np.abs(expected[np.isfinite(expected)])
    return limits.dense * max(1.0, float(finite.max(initial=0.0)))
