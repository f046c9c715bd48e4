"""Matching of two dense outputs: classes of pixels, grey levels of a restored image, or plain values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploykit.export.matching import Matching, MatchKind
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.tolerance import Tolerance, dense_limit
from deploykit.spec import InputSpec

__all__ = ["Part", "match_values", "near_levels", "near_values", "same_classes"]


Part = tuple[int, int, int, float]
"""Counts for one image: values, values that match, values that rounding may have decided; and the largest difference of
a probability."""


def match_values(
    names: tuple[str, str, str],
    what: MatchKind,
    expected: list[Array],
    found: list[Array],
    part_of: Callable[[Array, Array, Tolerance], Part],
    limits: Tolerance,
) -> Matching:
    """Match a whole batch of dense outputs, each ``(C, H, W)`` or ``(C,)``.

    ``names`` are those of the reference, the candidate and the input. ``part_of`` compares two outputs of shape
    ``(C, pixels)``.
    """
    pairs = [(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in zip(expected, found, strict=True)]
    parts = [part_of(a, b, limits) for a, b in pairs]
    total, matched, borderline = (sum(int(part[i]) for part in parts) for i in range(3))
    return Matching(
        *names,
        what,
        expected=total,
        found=total,
        matched=matched,
        borderline=2 * borderline,  # on both sides
        min_iou=1.0,
        max_score=max(part[3] for part in parts),
        max_keypoint=None,
        limits=limits,
    )


def near_values(a: Array, b: Array, limits: Tolerance) -> Part:
    """Count the values, and those within the tolerance."""
    with np.errstate(invalid="ignore"):
        near = np.abs(a.astype(np.float64) - b) <= dense_limit(a, limits)  # False for NaN
    return near.size, int(near.sum()), 0, 0.0


def same_classes(a: Array, b: Array, limits: Tolerance) -> Part:
    """Count the pixels, those whose best class is the same, and those that rounding may have decided.

    One channel is class 1 against class 0. A pixel is borderline if the reference's best two logits differ by at most
    twice the tolerance.
    """
    if len(a) == 1:  # two classes: the logit of class 0 is 0
        a, b = (np.concatenate((np.zeros_like(side), side)) for side in (a, b))
    same = a.argmax(0) == b.argmax(0)
    other = ~same
    near = 0
    if other.any():
        best = np.sort(a[:, other].astype(np.float64), 0)
        near = int((best[-1] - best[-2] <= 2 * dense_limit(a, limits)).sum())
    score = np.abs(_softmax(a) - _softmax(b)).max(initial=0.0)
    return same.size, int(same.sum()), near, float(score) if np.isfinite(score) else float("inf")


def _softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        powers: Array = np.exp(wide - wide.max(0))
        powers /= powers.sum(0)
    return powers


def near_levels(a: Array, b: Array, canvas: InputSpec) -> Part:
    """Count the values, and those at most one grey level apart; ``canvas`` gives the scale of a grey level."""
    std = np.array(canvas.std, np.float64)
    step = 1.0 / canvas.scale  # grey levels per unit of the network's values, before std
    factors = (std if len(std) == len(a) else np.ones(len(a)))[:, None] * step
    with np.errstate(invalid="ignore"):
        near = np.abs(a.astype(np.float64) - b) * factors <= 1.0  # False for NaN
    return near.size, int(near.sum()), 0, 0.0
