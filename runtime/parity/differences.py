"""Differences between raw outputs and reference values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploykit.errors import ParityError
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.spread import NO_SPREAD, errors_of, spread_of
from deploykit.runtime.parity.tolerance import Tolerance, dense_limit
from deploykit.spec import RawDetections

__all__ = ["Difference", "class_scores", "row_differences", "tensor_difference"]


@dataclass(frozen=True)
class Difference:
    """The difference of one kind of value between candidate and reference on one input.

    ``limit_ratio`` is the largest ratio of an error to its limit; over 1 is a failure. ``worst`` is that element: (row,
    column, expected, found), or (channel, pixel, ...) of a dense output, or (object, cell, ...) of masks. ``spread``
    has the ratios at :data:`deploykit.runtime.parity.spread.QUANTILES`, which distinguish an error of every value from
    the rounding of a few.
    """

    reference: str
    candidate: str
    input: str
    values: str
    count: int
    max_abs: float
    limit_ratio: float
    worst: tuple[int, int, float, float]
    dense: bool = False
    spread: tuple[float, ...] = NO_SPREAD

    @property
    def ok(self) -> bool:
        """Whether every element is within its limit."""
        return self.limit_ratio <= 1.0

    def __str__(self) -> str:
        row, column, expected, found = self.worst
        where = f"channel {row}, pixel {column}" if self.dense else f"row {row}, column {column}"
        where = f"object {row}, cell {column}" if self.values == "masks" else where
        return (
            f"{self.values} of {self.candidate} differ from {self.reference} on {self.input} by up to "
            f"{self.max_abs:.3g} ({self.limit_ratio:.3g} of the limit): {where} is {found:.6g}, expected {expected:.6g}"
        )


Unit = Literal["pixels", "probability", "angle"]


def _value_columns(layout: RawDetections) -> dict[str, tuple[list[int], Unit]]:
    """Return kind of value -> (its columns, what they are)."""
    scores = [*range(*layout.cls)] if layout.obj is None else [*range(*layout.obj), *range(*layout.cls)]
    columns: dict[str, tuple[list[int], Unit]] = {
        "boxes": ([*range(*layout.box)], "pixels"), "scores": (scores, "probability")
    }  # fmt: skip
    if layout.keypoints:
        start, stop = layout.keypoints
        points = range(start, stop)
        columns["keypoints"] = ([c for c in points if (c - start) % layout.kpt_dims < 2], "pixels")
        if layout.kpt_dims > 2:
            columns["visibility"] = ([c for c in points if (c - start) % layout.kpt_dims >= 2], "probability")
    if layout.angle:
        columns["angles"] = ([*range(*layout.angle)], "angle")
    return columns


def class_scores(rows: Array, layout: RawDetections) -> Array:
    """Return what each class of rows ``(N, columns)`` scores, ``(N, classes)``, without the bound by the objectness."""
    factor, classes = layout.score_spans
    scores: Array = rows[:, slice(*classes)]
    return scores if factor is None else scores * rows[:, factor[0], None]


def row_differences(
    names: tuple[str, str, str],
    rows: list[Array],
    found: list[Array],
    layout: RawDetections,
    limits: Tolerance,
    *,
    corners: bool = False,
) -> list[Difference]:
    """Return one :class:`Difference` per kind of value, between two lists of rows, one entry per slot.

    ``names``: the names of the reference, the candidate and the input. ``corners``: boxes are two corners instead of
    centre, width and height. Oriented boxes are compared as rectangles, which are the same after half a turn, and
    after a quarter with their sides exchanged. Their angles may differ by pi times what probabilities may: a head
    computes them as pi times one.

    Raises:
        ParityError: the two have different numbers of rows.
    """
    reference, name, label = names
    a, b = np.concatenate(rows).astype(np.float64), np.concatenate(found).astype(np.float64)
    if a.shape != b.shape:
        raise ParityError(f"{name} gives {b.shape} values on {label}, {reference} gives {a.shape}")
    numbers = _scoring(a, b, layout, limits.min_score)
    a, b = a[numbers], b[numbers]
    box = a[:, slice(*layout.box)]
    sides = np.abs(box[:, 2:] - box[:, :2] if corners else box[:, 2:]).max(1, initial=0.0)[:, None]
    if layout.angle:
        b = _as_the_other(b, a, layout, limits.pixels + limits.relative * np.abs(box) + limits.side * sides)
    report = []
    for values, (columns, unit) in _value_columns(layout).items():
        expected, got = a[:, columns], b[:, columns]
        limit: Array | float = limits.probability
        if unit == "pixels":
            limit = limits.pixels + limits.relative * np.abs(expected) + limits.side * sides
        elif unit == "angle":
            limit = np.pi * limits.probability
        error, used = errors_of(expected, got, limit)
        if not error.size:  # no row scores enough; the best rows are still matched
            report.append(Difference(reference, name, label, values, 0, 0.0, 0.0, (0, columns[0], 0.0, 0.0)))
            continue
        row, column = np.unravel_index(int(used.argmax()), used.shape)
        worst = (int(numbers[row]), columns[int(column)], float(expected[row, column]), float(got[row, column]))
        largest = float(error.max()), float(used.max())
        report.append(Difference(reference, name, label, values, error.size, *largest, worst, spread=spread_of([used])))
    return report


def _as_the_other(rows: Array, others: Array, layout: RawDetections, limit: Array) -> Array:
    """Return the same rows with each rectangle in the numbers that are nearest to its other's.

    It is the same after half a turn. After a quarter with its sides exchanged it is too, and that is done where the
    sides then agree within ``limit``, the allowed difference of each box value.
    """
    assert layout.angle is not None
    sides, angle = slice(layout.box[0] + 2, layout.box[1]), layout.angle[0]
    found = rows.copy()
    with np.errstate(invalid="ignore"):  # infinity
        turn = np.remainder(rows[:, angle] - others[:, angle] + np.pi / 2, np.pi) - np.pi / 2
        quarter = turn - np.copysign(np.pi / 2, turn)
        fits = (np.abs(rows[:, sides][:, ::-1] - others[:, sides]) <= limit[:, 2:]).all(1)
        exchanged = fits & (np.abs(quarter) < np.abs(turn))
    found[exchanged, sides] = rows[exchanged, sides][:, ::-1]
    found[:, angle] = others[:, angle] + np.where(exchanged, quarter, turn)
    return found


def tensor_difference(
    names: tuple[str, str, str], values: str, expected: list[Array], found: list[Array], limits: Tolerance
) -> Difference:
    """Return the difference of one output; slots are compared in turn, so that at most one is copied.

    ``values`` is the name of the output. The first axis of each entry holds its channels.

    Raises:
        ParityError: the two have different shapes.
    """
    reference, name, label = names
    count, most, share, worst = 0, 0.0, 0.0, (0, 0, 0.0, 0.0)
    spreads = []
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            raise ParityError(f"{name} gives {b.shape} values on {label}, {reference} gives {a.shape}")
        wide, got = a.astype(np.float64).reshape(len(a), -1), b.astype(np.float64).reshape(len(b), -1)
        error, used = errors_of(wide, got, dense_limit(wide, limits))
        channel, pixel = np.unravel_index(int(used.argmax()), used.shape)
        if used[channel, pixel] > share or not count:
            worst = (int(channel), int(pixel), float(wide[channel, pixel]), float(got[channel, pixel]))
        count, most, share = count + error.size, max(most, float(error.max())), max(share, float(used.max()))
        spreads.append(spread_of([used]))
    spread = tuple(map(max, zip(*spreads, strict=True)))
    return Difference(reference, name, label, values, count, most, share, worst, dense=True, spread=spread)


def _scoring(a: Array, b: Array, layout: RawDetections, least: float) -> Array:
    """Return the indices of rows that score over ``least`` on either side or have no finite score."""
    if least <= 0.0:
        return np.arange(len(a))
    scores = [class_scores(side, layout).max(1) for side in (a, b)]
    return np.flatnonzero(~((scores[0] <= least) & (scores[1] <= least)))
