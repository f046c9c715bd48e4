"""Rows of detections that two networks have chosen themselves, compared as sets.

Rows of almost equal scores change places, and at the end of a full list one takes the place of another. So each row is
paired with the nearest one of the same class, and pairs are compared value by value. A row without a partner was chosen
by one network alone. Rounding may decide that at the end of a full list: in the other network its score is then at most
that of the last row. So the error of its score is what it has more than that, or than 0 where the other list is not
full: it has empty rows, or fewer than the first.

Rows that a tolerance does not look at, because they score too little, have no part in a verdict: they are most of a
full list, and would outweigh the few that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.differences import Difference, row_differences
from deploykit.runtime.parity.masked_rows import MASKS, MaskedRows, mask_difference
from deploykit.runtime.parity.spread import errors_of, spread_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import EndToEndRows, RawDetections

__all__ = ["UNPAIRED", "Pairs", "chosen_differences", "chosen_layout", "chosen_rows", "pairs_of"]

UNPAIRED = "unpaired rows"
SCORE, LABEL = 4, 5
MOST_PIXELS, MOST_SCORE = 32.0, 0.3
"""Rows that are further apart than this are not the same, however wide the tolerance is."""


def chosen_layout(layout: EndToEndRows) -> EndToEndRows:
    """Return the layout in which rows are compared: box, score, class, angle, keypoints; masks are apart."""
    start = 6 if layout.angle is None else 7
    points = None if layout.keypoints is None else (start, start + layout.keypoints[1] - layout.keypoints[0])
    return EndToEndRows(
        name=layout.name,
        keypoints=points,
        kpt_dims=layout.kpt_dims,
        prototypes=layout.prototypes,
        angle=None if layout.angle is None else 6,
    )


def chosen_rows(rows: Array, layout: EndToEndRows) -> Array:
    """Return the rows ``(n, columns)`` of one image in the columns of :func:`chosen_layout`."""
    alone = [layout.score, layout.label] if layout.angle is None else [layout.score, layout.label, layout.angle]
    return rows[:, [*range(*layout.box), *alone, *range(*(layout.keypoints or (0, 0)))]]


@dataclass(frozen=True)
class Pairs:
    """Which rows of two networks are the same detections of one image.

    ``places``: the positions of the pairs on both sides, the best score first; ``judged``: whether one of the two
    scores more than the tolerance looks at. ``alone``: the positions of the rows without a partner that do, and
    ``beyond``: how much more each scores than the last row of the other side.

    ``moved``: how many pairs have another rank among the pairs. ``exchanged``: how many rows at the end of a full list
    are others than in the other one, because their scores are equal but for rounding.
    """

    places: tuple[Array, Array]
    judged: Array
    alone: tuple[Array, Array]
    beyond: tuple[Array, Array]
    moved: int = 0
    exchanged: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """How many rows of each side are judged."""
        paired = int(self.judged.sum())
        return paired + len(self.alone[0]), paired + len(self.alone[1])


def pairs_of(a: Array, b: Array, layout: EndToEndRows, limits: Tolerance) -> Pairs:
    """Pair the rows of one image, in the columns of :func:`chosen_layout`; the nearest ones come first.

    Rows that score no more than the tolerance looks at may be alone.
    """
    sides = a.astype(np.float64), b.astype(np.float64)
    scores = sides[0][:, SCORE], sides[1][:, SCORE]
    distance = _distance(*sides, layout, limits)
    left, right = np.nonzero(distance < 1.0)
    free = [~(each <= 0) for each in scores]  # NaN is not empty
    pairs: list[tuple[int, int]] = []
    for place in np.argsort(distance[left, right], kind="stable"):
        i, j = int(left[place]), int(right[place])
        if free[0][i] and free[1][j]:
            free[0][i] = free[1][j] = False
            pairs.append((i, j))
    pairs.sort(key=lambda pair: (-scores[0][pair[0]], pair))
    places = np.array(pairs, np.int64).reshape(-1, 2).T
    counted = [~(score <= limits.min_score) for score in scores]
    alone = [np.flatnonzero(one & each) for one, each in zip(free, counted, strict=True)]
    full = [len(one) >= len(other) and not (one <= 0).any() for one, other in (scores, scores[::-1])]
    last = [float(score.min(initial=1.0)) if every else 0.0 for score, every in zip(scores, full, strict=True)]
    tied = [
        int((free[side] & (scores[side] - last[1 - side] <= limits.probability)).sum()) if full[1 - side] else 0
        for side in (0, 1)
    ]
    return Pairs(
        (places[0], places[1]),
        counted[0][places[0]] | counted[1][places[1]],
        (alone[0], alone[1]),
        (scores[0][alone[0]] - last[1], scores[1][alone[1]] - last[0]),
        moved=int((np.argsort(np.argsort(places[0])) != np.argsort(np.argsort(places[1]))).sum()),
        exchanged=max(tied),
    )


def _distance(a: Array, b: Array, layout: EndToEndRows, limits: Tolerance) -> Array:
    """Return how far rows are apart, ``(n, m)``: from 1 on they are not the same.

    That is a pixel and a score of 0.001, or what the tolerance allows where that is more. Oriented boxes are compared
    by their centres, the longer sides and the shorter ones, because one rectangle has several widths and angles.
    """
    oriented = layout.angle is not None
    one, other = (np.hstack((r[:, :2], np.sort(r[:, 2:4], 1))) if oriented else r[:, :4] for r in (a, b))
    with np.errstate(invalid="ignore"):  # what is no number is near to nothing
        sides = np.abs(a[:, 2:4] if oriented else a[:, 2:4] - a[:, :2]).max(1, initial=0.0)[:, None]
        near = np.clip(limits.pixels + limits.side * sides, 1.0, MOST_PIXELS)
        alike = float(np.clip(limits.probability, 1e-3, MOST_SCORE))
        boxes = np.abs(one[:, None] - other[None]).max(2, initial=0.0) / near
        found = np.maximum(boxes, np.abs(a[:, None, SCORE] - b[None, :, SCORE]) / alike) + 0 * a[:, None, LABEL]
    same = (a[:, None, LABEL] == b[None, :, LABEL]) & np.isfinite(found)
    return np.where(same, found, np.inf)


def chosen_differences(
    names: tuple[str, str, str], expected: list[Array], found: list[Array], layout: EndToEndRows, limits: Tolerance
) -> list[Difference]:
    """Return how far the detections of a batch are off: the values of pairs, their masks, and rows without a partner.

    Args:
        names: the names of the reference, the candidate and the input.
        expected, found: the values of each slot: rows in the columns of ``layout``, or with prototypes
            :class:`deploykit.runtime.parity.masked_rows.MaskedRows`.
        layout: one of :func:`chosen_layout`.
        limits: the tolerance.
    """
    sides = expected, found
    masked: list[list[MaskedRows]] = []
    if layout.prototypes is not None:
        masked = [[MaskedRows.unpacked(each, layout) for each in side] for side in sides]
        sides = [each.rows for each in masked[0]], [each.rows for each in masked[1]]
    parts = [pairs_of(a, b, layout, limits) for a, b in zip(*sides, strict=True)]
    values = [
        [np.delete(rows[part.places[k]], LABEL, 1) for rows, part in zip(sides[k], parts, strict=True)] for k in (0, 1)
    ]
    report = row_differences(names, values[0], values[1], _without_class(layout), limits, corners=layout.angle is None)
    if masked:
        masks = [
            [(m.coefficients[p.places[k][:MASKS]], m.prototypes) for m, p in zip(masked[k], parts, strict=True)]
            for k in (0, 1)
        ]
        report.append(mask_difference(names, masks[0], masks[1], limits))
    return [*report, _unpaired(names, parts, limits)]


def _without_class(layout: EndToEndRows) -> RawDetections:
    """The layout of rows of pairs, whose classes are the same, as rows of one class."""
    points = layout.keypoints
    return RawDetections(
        obj=None,
        cls=(SCORE, SCORE + 1),
        keypoints=None if points is None else (points[0] - 1, points[1] - 1),
        kpt_dims=layout.kpt_dims,
        angle=None if layout.angle is None else (layout.angle - 1, layout.angle),
    )


def _unpaired(names: tuple[str, str, str], parts: Sequence[Pairs], limits: Tolerance) -> Difference:
    """The difference of the rows without a partner, but for the share of all rows that needs none."""
    rows = [(*row, k) for p in parts for k in (0, 1) for row in zip(p.beyond[k], p.alone[k], strict=True)]
    rows.sort(key=lambda row: np.inf if np.isnan(row[0]) else row[0])
    total = sum(sum(part.counts) for part in parts)
    kept = rows[: len(rows) - min(len(rows), int(limits.unmatched * total))]
    if not kept:
        return Difference(*names, UNPAIRED, total, 0.0, 0.0, (0, SCORE, 0.0, 0.0))
    beyond = np.maximum([row[0] for row in kept], 0.0)
    error, used = errors_of(beyond, np.zeros(len(beyond)), limits.probability)
    score, place, side = kept[-1]
    values = (float(score), 0.0) if side == 0 else (0.0, float(score))
    nothing = np.zeros(total - len(kept))
    return Difference(
        *names, UNPAIRED, total, float(error[-1]), float(used[-1]), (int(place), SCORE, *values),
        spread=spread_of([used, nothing]),
    )  # fmt: skip
