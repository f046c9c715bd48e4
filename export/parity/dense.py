"""Do two networks with one dense output say the same? Classes of pixels, or grey levels of a restored image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploykit.export.matching import Matching, MatchKind
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.tolerance import Tolerance, dense_limit
from deploykit.spec import InputSpec

__all__ = ["Part", "match_values", "near_levels", "near_values", "same_classes"]


Part = tuple[int, int, int, float]
"""Of one image: how many values, how many match, how many rounding may have decided, the largest difference of a
probability."""


def match_values(
    names: tuple[str, str, str],
    what: MatchKind,
    expected: list[Array],
    found: list[Array],
    part_of: Callable[[Array, Array, Tolerance], Part],
    limits: Tolerance,
) -> Matching:
    """Match a whole batch of dense outputs, each ``(C, H, W)`` or ``(C,)``.

    ``names``: of the reference, the candidate and the input. ``part_of`` compares two of them, as ``(C, pixels)``.
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
    """Values, and those within their limit."""
    with np.errstate(invalid="ignore"):
        near = np.abs(a.astype(np.float64) - b) <= dense_limit(a, limits)  # not so of NaN
    return near.size, int(near.sum()), 0, 0.0


def same_classes(a: Array, b: Array, limits: Tolerance) -> Part:
    """Pixels, those whose best class is the same, and those that rounding may have decided.

    One channel is class 1 against class 0. A pixel is borderline if in the reference the best two are nearer than
    twice what a value may be off.
    """
    if len(a) == 1:  # as two classes, whose logits are 0 and that
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
    """Values, and those that are at most one grey level apart; ``canvas`` tells what a grey level is."""
    std = np.array(canvas.std, np.float64)
    step = 1.0 / canvas.scale  # grey levels that a difference of 1 in the network's numbers is, before std
    factors = (std if len(std) == len(a) else np.ones(len(a)))[:, None] * step
    with np.errstate(invalid="ignore"):
        near = np.abs(a.astype(np.float64) - b) * factors <= 1.0  # not so of NaN
    return near.size, int(near.sum()), 0, 0.0
