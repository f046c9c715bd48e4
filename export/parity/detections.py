"""Matching of two networks' detections after NMS, and of their best rows if there are too few detections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from deploykit.export.matching import Matching, MatchKind
from deploykit.runtime.arrays import Array
from deploykit.runtime.kinds.detection import RowAdapter
from deploykit.runtime.parity.differences import class_scores
from deploykit.runtime.parity.masked_rows import MaskedRows
from deploykit.runtime.parity.tolerance import Tolerance, dense_limit
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.runtime.postprocess.nms import nms
from deploykit.runtime.postprocess.rotated import corners_of
from deploykit.runtime.postprocess.rotated_nms import overlaps, rotated_rows
from deploykit.spec import ModelSpec, RawDetections, Thresholds

__all__ = ["FEW", "ROWS", "RowMatcher", "mask_overlaps", "row_matcher"]

FEW = 20  # fewer detections than this verify little, so the best rows are compared as well
ROWS = 100  # best rows of each image


Suppression = tuple[Thresholds, ...]
"""The thresholds of NMS: one for all classes, or those of persons and those of keypoint objects."""

Names = tuple[str, str, str]
"""The names of the reference, the candidate and the input."""

Canvas = tuple[int, int] | None
"""The (height, width) of the network's input; None: it is not needed, because there are no masks of prototypes."""


@dataclass(frozen=True)
class RowMatcher:
    """Matches the detections that NMS keeps from the rows of two networks.

    ``layout`` is that of the rows, in pixels; with prototypes, the values are those of
    :class:`deploykit.runtime.parity.masked_rows.MaskedRows`. ``objects`` gives the detections in one image's values,
    and ``suppression`` are its thresholds.
    """

    layout: RawDetections
    objects: Callable[[Array], NetworkDetections]
    suppression: Suppression

    def rows_in(self, values: Array) -> Array:
        """Return the rows in one image's values, without what masks are made of."""
        return values if self.layout.prototypes is None else MaskedRows.unpacked(values, self.layout).rows

    def _canvas(self, values: Array) -> Canvas:
        return None if self.layout.prototypes is None else MaskedRows.unpacked(values, self.layout).canvas

    def match(self, names: Names, expected: list[Array], found: list[Array], limits: Tolerance) -> list[Matching]:
        """Match the detections of a whole batch.

        The best 100 rows of each image are matched as well if the reference has fewer than 20 detections, or if more
        detections are borderline than matched.
        """
        sides = [[self.objects(values) for values in images] for images in (expected, found)]
        rows = [[self.rows_in(values) for values in images] for images in (expected, found)]
        detections = [
            _match_image(
                a,
                b,
                _Rows.of(mine, self.layout),
                _Rows.of(other, self.layout),
                self.suppression,
                limits,
                self._canvas(values),
            )
            for a, b, mine, other, values in zip(*sides, *rows, expected, strict=True)
        ]
        reports = [_merged(detections, names, "detections", limits)]
        if reports[0].expected < FEW or reports[0].borderline > reports[0].matched:
            best = [_best_rows(a, b, self.layout, limits) for a, b in zip(*rows, strict=True)]
            reports.append(_merged(best, names, "best rows", limits))
        return reports

    def match_found(
        self, names: Names, expected: list[Array], found: list[NetworkDetections], limits: Tolerance
    ) -> Matching:
        """Match the detections of a network with NMS inside with those of the NMS definition in a reference's rows.

        The candidate's rows are not known. Each of its detections must be among the reference's rows, and a missing one
        is accepted only if NMS decided by a difference within rounding.
        """
        parts = []
        for values, b in zip(expected, found, strict=True):
            a, known = self.objects(values), _Rows.of(self.rows_in(values), self.layout)
            parts.append(_match_image(a, b, known, known, self.suppression, limits, self._canvas(values)))
        return _merged(parts, names, "detections", limits)


def row_matcher(layout: RawDetections, spec: ModelSpec) -> RowMatcher:
    """Return the matcher of rows of a layout; ``spec`` has the classes, keypoints and thresholds."""
    plain = replace(layout, prototypes=None)
    adapter = RowAdapter(replace(spec, output=plain, task=plain.task_of_rows))
    if layout.prototypes is None:
        return RowMatcher(layout, lambda rows: adapter.objects({layout.name: rows[None]}, 0), (spec.thresholds,))

    def objects(values: Array) -> NetworkDetections:
        masked = MaskedRows.unpacked(values, layout)
        columns = layout.columns, layout.columns + masked.coefficients.shape[1]
        whole = RowAdapter(replace(spec, output=replace(layout, coefficients=columns), task="instances"))
        rows = np.concatenate((masked.rows, masked.coefficients), 1)
        return whole.objects({layout.name: rows[None], str(layout.prototypes): masked.prototypes[None]}, 0)

    return RowMatcher(layout, objects, (spec.thresholds,))


def _thresholds_of(label: int, suppression: Suppression) -> Thresholds:
    """The thresholds of a class."""
    return suppression[min(int(label), len(suppression) - 1)]


@dataclass(frozen=True)
class _Pairs:
    expected: int
    found: int
    borderline: int
    iou: Array
    score: Array
    keypoint: Array | None
    mask: Array | None = None


def _merged(parts: list[_Pairs], names: Names, what: MatchKind, limits: Tolerance) -> Matching:
    points = [p.keypoint for p in parts if p.keypoint is not None]
    masks = [float(p.mask.min(initial=1.0)) for p in parts if p.mask is not None]
    return Matching(
        *names,
        what,
        expected=sum(p.expected for p in parts),
        found=sum(p.found for p in parts),
        matched=sum(len(p.iou) for p in parts),
        borderline=sum(p.borderline for p in parts),
        min_iou=min((float(p.iou.min(initial=1.0)) for p in parts), default=1.0),
        max_score=float(np.max([p.score.max(initial=0.0) for p in parts], initial=0.0)),  # NaN of one image stays
        max_keypoint=float(np.max([p.max(initial=0.0) for p in points])) if points else None,
        limits=limits,
        min_mask=min(masks) if masks else None,
    )


@dataclass(frozen=True)
class _Rows:
    """The candidate rows of one image: boxes as :func:`_boxes_in` gives them, and scores of each class ``(N, C)``."""

    boxes: Array
    scores: Array

    @staticmethod
    def of(rows: Array, layout: RawDetections) -> _Rows:
        return _Rows(_boxes_in(rows, layout), class_scores(rows, layout))

    def contains(self, found: NetworkDetections, i: int, limits: Tolerance) -> bool:
        """Whether a row has the box and the score of detection ``i``, so that only NMS can have removed it."""
        same = np.abs(self.scores[:, found.labels[i]] - found.scores[i]) <= limits.max_score
        return bool((_iou(_boxes_of(found)[i : i + 1], self.boxes[same], limits.same_box) >= limits.min_iou).any())


_Side = tuple[NetworkDetections, NetworkDetections, _Rows, Array]
"""Detections of one network, those of the other, the other's rows, and which of the first have no partner."""


def _match_image(
    a: NetworkDetections,
    b: NetworkDetections,
    rows_a: _Rows,
    rows_b: _Rows,
    suppression: Suppression,
    limits: Tolerance,
    canvas: Canvas = None,
) -> _Pairs:
    """Pair each detection with the one of the same label that overlaps it most, the best score first."""
    overlap = np.where(a.labels[:, None] == b.labels, _iou(_boxes_of(a), _boxes_of(b), limits.same_box), -1.0)
    free = np.ones(len(b.scores), bool)
    pairs: list[tuple[int, int]] = []
    for i in range(len(a.scores)):
        j = int(np.where(free, overlap[i], -1.0).argmax()) if free.any() else -1
        if j >= 0 and overlap[i, j] >= limits.min_iou:
            pairs.append((i, j))
            free[j] = False
    left, right = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    alone = [
        np.array(
            [i for i in np.setdiff1d(np.arange(len(mine.scores)), paired) if other.contains(mine, i, limits)], np.int64
        )
        for mine, paired, other in ((a, left, rows_b), (b, right, rows_a))
    ]
    sides = ((a, b, rows_b, alone[0]), (b, a, rows_a, alone[1]))
    borderline = _count_rounding_explained(sides, suppression, limits)
    distance = None if a.keypoints is None or b.keypoints is None else _distance(a.keypoints[left], b.keypoints[right])
    return _Pairs(
        len(a.scores),
        len(b.scores),
        borderline,
        overlap[left, right],
        np.abs(a.scores[left] - b.scores[right]),
        distance,
        None if canvas is None else mask_overlaps(a, left, b, right, canvas, limits),
    )


def mask_overlaps(
    a: NetworkDetections, left: Array, b: NetworkDetections, right: Array, canvas: tuple[int, int], limits: Tolerance
) -> Array:
    """Return the IoU of each pair's masks, at the cells of the prototypes whose centres are in the box of ``a``.

    Cells whose logits are as near as those of a dense output have to be count as equal: rounding decides on which side
    of 0 they are. It is 0 where the prototypes have other sizes, or a logit is no number.
    """
    found = np.ones(len(left))
    for pair, (i, j) in enumerate(zip(left, right, strict=True)):
        first, second = _logits_of(a, i), _logits_of(b, j)
        if first.shape != second.shape or not (np.isfinite(first).all() and np.isfinite(second).all()):
            found[pair] = 0.0
            continue
        x, y = ((np.arange(first.shape[1 - axis]) + 0.5) * canvas[1 - axis] / first.shape[1 - axis] for axis in (0, 1))
        x1, y1, x2, y2 = a.boxes[i]
        inside = ((y >= y1) & (y <= y2))[:, None] & ((x >= x1) & (x <= x2))
        near = np.abs(first - second) <= dense_limit(first, limits) if limits.judged else np.zeros_like(inside)
        mask, other = inside & (first > 0), inside & (np.where(near, first, second) > 0)
        union = int((mask | other).sum())
        found[pair] = int((mask & other).sum()) / union if union else 1.0
    return found


def _logits_of(found: NetworkDetections, i: int) -> Array:
    """The logits of an object's mask, ``(h, w)`` float64."""
    assert found.coefficients is not None
    assert found.prototypes is not None
    logits: Array = np.tensordot(found.coefficients[i].astype(np.float64), found.prototypes.astype(np.float64), 1)
    return logits


def _count_rounding_explained(sides: tuple[_Side, _Side], suppression: Suppression, limits: Tolerance) -> int:
    """Count the unmatched detections, whose rows both networks have, that rounding explains.

    NMS is a chain of decisions. If two scores are equal but for rounding, either row may suppress the other, and then
    its own neighbours. So unmatched detections that overlap form a group, and a group is explained if one of its
    decisions was within rounding.
    """
    boxes = np.concatenate([_boxes_of(mine)[alone] for mine, *_, alone in sides])
    labels = np.concatenate([mine.labels[alone] for mine, *_, alone in sides])
    scores = np.concatenate([mine.scores[alone] for mine, *_, alone in sides])
    side = np.repeat([0, 1], [len(alone) for *_, alone in sides])
    overlap = _iou(boxes, boxes, limits.same_box)
    iou = np.array([_thresholds_of(label, suppression).iou for label in labels])
    linked = (labels[:, None] == labels) & (overlap >= iou - limits.borderline_iou)
    linked |= overlap >= limits.min_iou  # across labels: one row whose best classes score equal but for rounding
    tied = linked & (side[:, None] != side) & (np.abs(scores[:, None] - scores) <= 2 * limits.probability)
    explained = tied.any(1) | np.array(
        [_borderline(mine, i, other, rows, suppression, limits) for mine, other, rows, alone in sides for i in alone],
        bool,
    )
    while True:  # a detection linked to an explained one is explained
        reached = explained | (linked & explained).any(1)
        if (reached == explained).all():
            return int(explained.sum())
        explained = reached


def _borderline(
    mine: NetworkDetections,
    i: int,
    other: NetworkDetections,
    rows: _Rows,
    suppression: Suppression,
    limits: Tolerance,
) -> bool:
    """Whether rounding may be the reason that detection ``i`` of ``mine`` is missing from ``other``, found in ``rows``.

    Of oriented boxes those that were removed have removed others too, so all candidates are looked at.
    """
    score, near = float(mine.scores[i]), 2 * limits.probability
    thresholds = _thresholds_of(mine.labels[i], suppression)
    together = np.array([_thresholds_of(label, suppression) is thresholds for label in other.labels], bool)
    run = other.scores[together]  # the detections of one run of NMS
    if abs(score - thresholds.conf) <= near:
        return True
    full = len(run) >= thresholds.max_det or other.candidates > thresholds.pre_nms_topk
    if full and score <= float(run.min(initial=1.0)) + near:
        return True  # it may have fallen off the end of the list of candidates or of detections
    rivals = _boxes_of(other)[other.labels == mine.labels[i]]
    if other.rotated is not None:
        rivals = rows.boxes[rows.scores[:, mine.labels[i]] > thresholds.conf - near]
    overlap = _iou(_boxes_of(mine)[i : i + 1], rivals, limits.same_box)
    return bool((np.abs(overlap - thresholds.iou) <= limits.borderline_iou).any())


def _best_rows(a: Array, b: Array, layout: RawDetections, limits: Tolerance) -> _Pairs:
    """Compare the reference's rows with the highest scores with the candidate's rows of the same indices."""
    unsuppressed = Thresholds(conf=0.0, iou=1.0, max_det=ROWS, pre_nms_topk=ROWS)
    rows = nms(a, layout, unsuppressed).rows
    boxes = [_boxes_in(side[rows], layout) for side in (a, b)]
    scores = [class_scores(side[rows], layout).max(1) for side in (a, b)]
    distance = None
    if layout.keypoints:
        columns = layout.keypoints[1] - layout.keypoints[0]
        points = [
            side[rows, slice(*layout.keypoints)].reshape(len(rows), columns // layout.kpt_dims, layout.kpt_dims)
            for side in (a, b)
        ]
        distance = _distance(*points)
    overlap = np.array([_iou(p[None], q[None], limits.same_box)[0, 0] for p, q in zip(*boxes, strict=True)])
    same = overlap >= limits.min_iou
    score = np.abs(scores[0] - scores[1])[same]
    return _Pairs(len(rows), len(rows), 0, overlap[same], score, None if distance is None else distance[same])


def _boxes_in(rows: Array, layout: RawDetections) -> Array:
    """The boxes of rows as two corners ``(N, 4)``; oriented ones as cx, cy, w, h, angle ``(N, 5)``."""
    if layout.angle:
        return rotated_rows(rows, layout)
    box = rows[:, slice(*layout.box)]
    half = box[:, 2:] / 2
    return np.concatenate((box[:, :2] - half, box[:, :2] + half), 1)


def _boxes_of(found: NetworkDetections) -> Array:
    """The boxes of detections, in the form of :func:`_boxes_in`."""
    return found.boxes if found.rotated is None else found.rotated


def _distance(a: Array, b: Array) -> Array:
    distance: Array = np.linalg.norm(a[..., :2] - b[..., :2], axis=-1)
    return distance


def _iou(a: Array, b: Array, same_box: float) -> Array:
    """Return the IoU of every box of ``a`` with every box of ``b``, ``(N, M)``.

    It is 1 where all corners are within ``same_box`` pixels, because the IoU of a tiny box means little. Of oriented
    boxes it is the overlap of their NMS.
    """
    if a.shape[1] == 5:
        a, b = a.astype(np.float64), b.astype(np.float64)
        corners, others = corners_of(a)[:, None], corners_of(b)[None]  # equal boxes may begin at different corners
        far = [np.abs(corners - np.roll(others, turn, 2)).max((2, 3), initial=0.0) for turn in range(4)]
        return np.where(np.min(far, 0) <= same_box, 1.0, overlaps(a, b))
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inter = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    overlap: Array = np.where(union > 0, inter / np.where(union > 0, union, 1), 0.0)
    return np.where(np.abs(a - b).max(-1) <= same_box, 1.0, overlap)
