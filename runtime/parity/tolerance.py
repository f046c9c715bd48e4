"""The tolerance of outputs against reference values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["Tolerance", "dense_limit"]


@dataclass(frozen=True)
class Tolerance:
    """Limits of differences; the defaults are those of fp32.

    Pixels may differ by ``pixels + relative * |x| + side * s``, where s is the longer side of the row's box, and
    probabilities by ``probability``, in rows where the score of either network is over ``min_score``.

    Matched detections have corners within ``same_box`` pixels whatever the IoU, keypoints within ``max_keypoint``
    pixels and scores within ``max_score``. A pair whose IoU is within ``borderline_iou`` of the threshold of NMS may
    fall on either side of it. A matched pair has at least an IoU of ``min_iou``.
    ``unmatched`` is the share of all detections that may have no partner, because NMS is a chain of decisions.

    Values of a dense output (logits, an image), and the logits of masks of prototypes, may differ by ``dense`` times
    the largest of them, or by ``dense`` if the largest is less than 1. ``unmatched`` is then the share of pixels that
    may have another class or differ by more than one grey level.

    ``judged``: whether the limits are enforced. int8 has no limits per value, because its accuracy decides: differences
    are measured and reported, and nothing fails.
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
    """Return the allowed difference of a value of a dense output; ``expected`` is the whole output."""
    finite = np.abs(expected[np.isfinite(expected)])
    return limits.dense * max(1.0, float(finite.max(initial=0.0)))
