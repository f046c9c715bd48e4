"""Parity of networks with NMS inside: their detections against those of the NMS definition in a reference's rows.

A network with random weights, or an empty image, gives no detections, and then everything would agree. So a file that
stores its thresholds is run a second time, with a confidence of 0 and an IoU of 1. It then gives the best rows whatever
their scores are, and those are compared with the reference's by the tolerance of raw values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploykit.errors import SpecError
from deploykit.export.matching import Matching
from deploykit.export.nms.layouts import detections_layout, rows_in
from deploykit.export.parity.detections import row_matcher
from deploykit.export.parity.one_to_one import as_rows
from deploykit.export.parity.report import ParityReport
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.kinds.detection import DetectionAdapter
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.parity.differences import Difference, class_scores, row_differences
from deploykit.runtime.parity.expected import Batch, ReferenceOutputs
from deploykit.runtime.parity.masked_rows import MaskedRows, mask_difference
from deploykit.runtime.parity.spread import spread_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.runtime.postprocess.nms import nms
from deploykit.runtime.postprocess.rotated import hulls_of
from deploykit.runtime.postprocess.rotated_nms import rotated_rows
from deploykit.runtime.session import Session, input_arrays
from deploykit.spec import ModelSpec, RawDetections, Thresholds

__all__ = ["Opened", "check_detections", "detections_as_rows", "opened_detections"]

Opened = Mapping[str, list[NetworkDetections]]
"""Detections of any score by batch."""

ROWS = 100  # best rows of each image, with open thresholds


def check_detections(
    expected: ReferenceOutputs,
    name: str,
    candidate: Session,
    spec: ModelSpec,
    tolerance: Tolerance | None = None,
    *,
    opened: Opened | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare the detections of ``candidate`` with those in the rows of the references.

    Args:
        expected: raw rows by reference and image, or detections.
        name: the name of the candidate.
        candidate: a network with NMS inside, whose outputs are those of ``spec.output``.
        spec: the spec of the candidate.
        tolerance: None takes that of the reference values.
        opened: what :func:`opened_detections` returns for the same network.
        progress: receives the batch that is being compared.

    Raises:
        BackendError: a network failed, or an output has another shape than the spec says.
    """
    expected = as_rows(expected, spec)
    limits, layout = tolerance or expected.limits, rows_in(expected.layout)
    kept = replace(spec, thresholds=replace(spec.thresholds, iou=1.0)) if expected.chosen else spec
    matcher = row_matcher(layout, kept)
    found_differences: list[Difference] = []
    matchings: list[Matching] = []
    for batch in expected.feeds.batches:
        progress.step(f"{name} on {batch.name}")
        detections = _run(candidate, batch, expected, spec, spec.thresholds)
        best = None if opened is None else opened[batch.name]
        for reference, by_label in expected.rows.items():
            if not all(label in by_label for label in batch.images):
                continue
            values = [by_label[label] for label in batch.images]
            names = (reference, name, batch.name)
            matching = matcher.match_found(names, values, detections, limits)
            matchings.append(_with_proposals(matching) if spec.output.two_stages else matching)
            if spec.output.two_stages:
                found_differences.append(_masks(names, values, best or detections, layout, limits))
            if best is None and layout.prototypes is None:
                continue
            given, most = best or detections, spec.thresholds.max_det
            rows = [matcher.rows_in(each) for each in values]
            parts = [
                _best(r, b, layout, most, limits, chosen=spec.output.two_stages)
                for r, b in zip(rows, given, strict=True)
            ]
            if best is not None:
                matching = _matching(names, parts, layout, limits)
                matchings.append(_with_proposals(matching) if spec.output.two_stages else matching)
                found_differences += _differences(names, parts, layout, limits)
            if layout.prototypes is not None:
                found_differences.append(_prototype_masks(names, values, given, parts, layout, limits))
    notes = expected.feeds.notes
    if opened is None:
        notes = (*notes, "with NMS inside only its detections are compared")
    return ParityReport(dict(expected.computed), tuple(found_differences), tuple(matchings), notes, limits)


def opened_detections(
    expected: ReferenceOutputs, name: str, opened: Session, spec: ModelSpec, progress: Progress = SILENT
) -> Opened:
    """Return the detections of a network with a confidence of 0 and an IoU of 1 in each batch.

    They are no session, so that a large network need not be in memory with both thresholds at once.

    Raises:
        BackendError: the network failed, or an output has another shape than the spec says.
    """
    found, thresholds = {}, replace(spec.thresholds, conf=0.0, iou=1.0)
    for batch in expected.feeds.batches:
        progress.step(f"{name} on {batch.name}, detections of any score")
        found[batch.name] = _run(opened, batch, expected, spec, thresholds)
    return found


def detections_as_rows(session: Session, image: Array, spec: ModelSpec) -> Array:
    """Return the detections of a network with NMS inside in one image, as rows from which NMS gives them again."""
    info = session.inputs[0]
    outputs = session.run(input_arrays(info, np.repeat(image, info.shape[0] or 1, 0)))
    found = _chosen(spec).objects(outputs, 0)
    layout = detections_layout(spec)
    rows = np.zeros((len(found.scores), layout.columns), np.float32)
    if found.rotated is not None and layout.angle:
        rows[:, :4], rows[:, layout.angle[0]] = found.rotated[:, :4], found.rotated[:, 4]
    else:
        rows[:, :2] = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        rows[:, 2:4] = found.boxes[:, 2:] - found.boxes[:, :2]
    if len(rows) and not 0 <= found.labels.min() <= found.labels.max() < layout.cls[1] - layout.cls[0]:
        raise SpecError(f"classes are 0 to {layout.cls[1] - layout.cls[0] - 1}, the network gives {found.labels.max()}")
    rows[np.arange(len(rows)), 4 + found.labels] = found.scores
    if found.keypoints is not None and layout.keypoints:
        rows[:, slice(*layout.keypoints)] = found.keypoints.reshape(len(rows), 3 * found.keypoints.shape[1])
    if found.coefficients is not None and found.prototypes is not None:
        canvas = (image.shape[2], image.shape[3])
        return MaskedRows(rows, found.coefficients, found.prototypes, canvas).packed()
    if found.masks is not None:  # after the columns of the layout
        rows = np.concatenate((rows, found.masks.reshape(len(rows), math.prod(found.masks.shape[1:]))), 1)
    return rows


def _with_proposals(matching: Matching) -> Matching:
    """Return a matching of which one pair may lack its partner, in a precision in which some may.

    Proposals are decided before detections are, and no output shows them: where rounding exchanges one, a detection of
    few is another one.
    """
    limits, total = matching.limits, matching.expected + matching.found
    if not limits.unmatched or not total:
        return matching
    return replace(matching, limits=replace(limits, unmatched=max(limits.unmatched, 2 / total)))


def _run(
    session: Session, batch: Batch, expected: ReferenceOutputs, spec: ModelSpec, thresholds: Thresholds
) -> list[NetworkDetections]:
    """Return the detections in each slot; a session with another fixed batch gets each image in all its slots."""
    adapter = _chosen(replace(spec, thresholds=thresholds))
    info = session.inputs[0]
    images = [expected.feeds.images[label] for label in batch.images]
    fixed = info.shape[0]
    if fixed is None or fixed == len(images):
        outputs = session.run(input_arrays(info, np.concatenate(images)))
        return [adapter.objects(outputs, slot) for slot in range(len(images))]
    runs = (session.run(input_arrays(info, np.repeat(image, fixed, 0))) for image in images)
    return [adapter.objects(outputs, 0) for outputs in runs]


def _chosen(spec: ModelSpec) -> DetectionAdapter[Any]:
    """The adapter of a network that chooses its detections itself."""
    adapter = adapter_of(spec)
    assert isinstance(adapter, DetectionAdapter)  # a spec whose output has NMS inside
    return adapter


@dataclass(frozen=True)
class _Best:
    """The reference's best rows of one image, paired with the candidate's.

    ``expected`` and ``found`` are ``(n, 5 + keypoint values)``: corners, score, keypoints; of oriented boxes
    ``(n, 6)``: cx, cy, w, h, score, angle. ``count`` is how many rows were searched for, ``tail`` how many of them have
    no partner because rounding decides which rows come last. ``places``: the positions of the pairs among the
    reference's rows and among the candidate's.
    """

    expected: Array
    found: Array
    count: int
    tail: int
    places: tuple[Array, Array]


def _best(
    rows: Array, found: NetworkDetections, layout: RawDetections, most: int, limits: Tolerance, *, chosen: bool = False
) -> _Best:
    """Pair the best rows with the candidate's of the same box and score; the candidate gives at most ``most`` rows.

    A partner has the row's best class, or one that scores as much but for rounding. With ``chosen``, rows are what NMS
    in the network has left, so a row may lack its partner and lie near to another: a partner is within the tolerance.
    """
    count = min(ROWS, most)
    top = Thresholds(conf=0.0, iou=1.0, max_det=count, pre_nms_topk=count)
    kept = nms(rows, layout, top)
    boxes = kept.boxes if layout.angle is None else hulls_of(rotated_rows(rows[kept.rows], layout))
    count = len(kept.rows)
    given = _as_rows(found, layout)
    free = np.ones(len(given), bool)
    pairs: list[tuple[int, int]] = []
    # Partners are searched within a pixel and a score of 0.001, or more for a lower precision.
    near, alike = np.full(count, max(1.0, 4 * limits.pixels)), max(1e-3, 2 * limits.max_score)
    if chosen and limits.judged:
        near = np.maximum(1.0, limits.pixels + limits.side * (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0.0))
    last = float(found.scores[-1]) if len(found.scores) == most else -1.0  # a list that is not full has no tail
    tail = 0
    scores = class_scores(rows[kept.rows], layout)
    known = np.clip(found.labels, 0, scores.shape[1] - 1)
    for i in range(count):
        distance = np.abs(found.boxes - boxes[i]).max(1) / near[i]
        distance += np.abs(found.scores - kept.scores[i]) / alike
        tied = (scores[i, known] >= scores[i, kept.labels[i]] - limits.max_score) & (known == found.labels)
        distance[~free | ~tied] = np.inf
        j = int(distance.argmin()) if len(distance) else 0
        if len(distance) and distance[j] < 1.0:
            pairs.append((i, j))
            free[j] = False
        elif kept.scores[i] <= last + limits.max_score:
            tail += 1
    left, right = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    expected = rows[kept.rows[left]].astype(np.float64)
    return _Best(_flat(expected, layout), given[right], count, tail, (kept.rows[left], right))


def _flat(rows: Array, layout: RawDetections) -> Array:
    """Return rows in the form of :func:`_as_rows`, with the score of the best class."""
    box = rows[:, slice(*layout.box)]
    scores = class_scores(rows, layout).max(1, initial=0)
    if layout.angle:
        return np.concatenate((box, scores[:, None], rows[:, slice(*layout.angle)]), 1)
    points = rows[:, slice(*(layout.keypoints or (0, 0)))]
    return np.concatenate((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2, scores[:, None], points), 1)


def _as_rows(found: NetworkDetections, layout: RawDetections) -> Array:
    """Return detections in the form of :class:`_Best`."""
    if found.rotated is not None:
        return np.column_stack((found.rotated[:, :4], found.scores, found.rotated[:, 4])).astype(np.float64)
    points = np.zeros((len(found.scores), 0))
    if found.keypoints is not None:
        width = found.keypoints.shape[1] * layout.kpt_dims
        points = found.keypoints[..., : layout.kpt_dims].reshape(len(found.scores), width)
    return np.concatenate((found.boxes, found.scores[:, None], points), 1).astype(np.float64)


def _masks(
    names: tuple[str, str, str],
    rows: Sequence[Array],
    found: Sequence[NetworkDetections],
    layout: RawDetections,
    limits: Tolerance,
) -> Difference:
    """Compare the masks of pairs with the same box and class.

    The values of a mask are probabilities inside a box and move with it, so the tolerance is that of a matched score.
    Where boxes may move by a share of their side, cells on the border of an object may take any value, and the root
    mean square over a mask is what must be within the tolerance.
    """
    count, largest, used, worst = 0, 0.0, 0.0, (0, 0, 0.0, 0.0)
    errors: list[Array] = []
    for reference, b in zip(rows, found, strict=True):
        assert b.masks is not None
        flat = _flat(reference.astype(np.float64), layout)
        boxes, scores = flat[:, :4], flat[:, 4]
        labels = reference[:, slice(*layout.cls)].argmax(1)
        given = b.masks.reshape(len(b.masks), math.prod(b.masks.shape[1:]))
        for i in range(len(reference)):
            distance = np.abs(b.boxes - boxes[i]).max(1, initial=0.0)
            distance[(b.labels != labels[i]) | (np.abs(b.scores - scores[i]) > 2 * limits.max_score)] = np.inf
            j = int(distance.argmin()) if len(distance) else -1
            side = float((boxes[i, 2:] - boxes[i, :2]).max())
            if j < 0 or not distance[j] <= max(limits.same_box, limits.pixels + limits.side * side):
                continue  # the matching decides whether a partner is missing
            expected = reference[i, layout.columns :]
            error = np.abs(expected - given[j])
            error[~np.isfinite(error)] = np.inf
            cell = int(error.argmax())
            count += error.size
            errors.append(error / limits.max_score)
            judged = float(np.sqrt(np.square(error).mean())) if limits.side else float(error[cell])
            largest, used = max(largest, float(error[cell])), max(used, judged / limits.max_score)
            if judged / limits.max_score == used:
                worst = (i, cell, float(expected[cell]), float(given[j, cell]))
    return Difference(*names, "masks", count, largest, used, worst, spread=spread_of(errors))


def _prototype_masks(
    names: tuple[str, str, str],
    values: Sequence[Array],
    found: Sequence[NetworkDetections],
    parts: Sequence[_Best],
    layout: RawDetections,
    limits: Tolerance,
) -> Difference:
    """Compare the logits of the masks of pairs."""
    sides: tuple[list[tuple[Array, Array]], ...] = ([], [])
    for each, b, part in zip(values, found, parts, strict=True):
        assert b.coefficients is not None
        assert b.prototypes is not None
        masked = MaskedRows.unpacked(each, layout)
        sides[0].append((masked.coefficients[part.places[0]], masked.prototypes))
        sides[1].append((b.coefficients[part.places[1]], b.prototypes))
    return mask_difference(names, sides[0], sides[1], limits)


def _matching(
    names: tuple[str, str, str], parts: Sequence[_Best], layout: RawDetections, limits: Tolerance
) -> Matching:
    count, tail = sum(p.count for p in parts), sum(p.tail for p in parts)
    score = [np.abs(p.expected[:, 4] - p.found[:, 4]).max(initial=0.0) for p in parts]
    points = [np.abs(p.expected[:, 5:] - p.found[:, 5:]).max(initial=0.0) for p in parts]
    return Matching(
        *names,
        "best rows",
        expected=count,
        found=count,
        matched=sum(len(p.expected) for p in parts),
        borderline=2 * tail,
        min_iou=1.0,
        max_score=float(np.max(score, initial=0.0)),
        max_keypoint=float(np.max(points)) if parts and layout.keypoints else None,
        limits=limits,
    )


def _differences(
    names: tuple[str, str, str], parts: Sequence[_Best], layout: RawDetections, limits: Tolerance
) -> Iterator[Difference]:
    """Compare the paired rows by the tolerance of raw values; one score stands for all classes."""
    if not any(len(p.expected) for p in parts):
        return
    points = (5, parts[0].expected.shape[1]) if layout.keypoints else None
    angle = (5, 6) if layout.angle else None
    plain = RawDetections(obj=None, cls=(4, 5), keypoints=points, kpt_dims=layout.kpt_dims, angle=angle)
    expected, found = ([getattr(p, side) for p in parts] for side in ("expected", "found"))
    yield from row_differences(names, expected, found, plain, limits, corners=layout.angle is None)
