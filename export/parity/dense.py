"""Do two networks with one dense output say the same? Classes of pixels, or grey levels of a restored image."""

from __future__ import annotations

import numpy as np

from deploykit.export.parity.detections import Matching, What
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.expected import Batch
from deploykit.runtime.parity.tolerance import Tolerance, dense_limit
from deploykit.spec import ModelSpec

__all__ = ["match_dense"]


def match_dense(
    reference: str,
    candidate: str,
    batch: Batch,
    expected: list[Array],
    found: list[Array],
    spec: ModelSpec,
    limits: Tolerance,
) -> list[Matching]:
    """Match a whole batch of dense outputs, each ``(C, H, W)`` or ``(C,)``.

    Of ``classify`` and ``segment``: every pixel's best class, where one channel is class 1 against class 0; a pixel is
    borderline if in the reference the best two are nearer than twice what a value may be off. Of ``restore``: values
    as grey levels, which match if they are at most one apart. Of ``features``: values, which match within their limit.
    """
    what: dict[str, What] = {"restore": "grey levels", "features": "values"}
    parts = [_part(a, b, spec, limits) for a, b in _pairs(expected, found)]
    total, matched, borderline = (sum(int(part[i]) for part in parts) for i in range(3))
    return [
        Matching(
            reference,
            candidate,
            batch.name,
            what.get(spec.task, "classes"),
            expected=total,
            found=total,
            matched=matched,
            borderline=2 * borderline,  # on both sides
            min_iou=1.0,
            max_score=max(float(part[3]) for part in parts),
            max_keypoint=None,
            limits=limits,
        )
    ]


def _pairs(expected: list[Array], found: list[Array]) -> list[tuple[Array, Array]]:
    return [(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in zip(expected, found, strict=True)]


def _part(a: Array, b: Array, spec: ModelSpec, limits: Tolerance) -> tuple[int, int, int, float]:
    if spec.task == "restore":
        return _levels(a, b, spec)
    if spec.task == "features":
        with np.errstate(invalid="ignore"):
            near = np.abs(a.astype(np.float64) - b) <= dense_limit(a, limits)  # not so of NaN
        return near.size, int(near.sum()), 0, 0.0
    return _classes(a, b, limits)


def _classes(a: Array, b: Array, limits: Tolerance) -> tuple[int, int, int, float]:
    """Pixels, those of the same class, those that rounding may have decided; the largest difference of a probability.

    Both are ``(C, pixels)``.
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


def _levels(a: Array, b: Array, spec: ModelSpec) -> tuple[int, int, int, float]:
    """Values, and those that are at most one grey level apart."""
    std = np.array(spec.input.std, np.float64)
    step = 1.0 / spec.input.scale  # grey levels that a difference of 1 in the network's numbers is, before std
    factors = (std if len(std) == len(a) else np.ones(len(a)))[:, None] * step
    with np.errstate(invalid="ignore"):
        near = np.abs(a.astype(np.float64) - b) * factors <= 1.0  # not so of NaN
    return near.size, int(near.sum()), 0, 0.0
