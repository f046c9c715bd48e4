"""What a network with NMS inside found: a detection lost is excused by a decision that was a tie, and by nothing else.

Each excuse has a limit, and is tried on both sides of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deploykit.export.matching import Matching
from deploykit.export.parity.detections import RowMatcher
from deploykit.runtime.arrays import Array
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.detections import NetworkDetections
from deploykit.spec import InputSpec, ModelSpec, RawDetections, Thresholds

SPEC = ModelSpec(
    task="detect",
    input=InputSpec(size=(640, 640)),
    output=RawDetections(cls=(5, 7)),
    classes=("cat", "dog"),
    thresholds=Thresholds(conf=0.25, iou=0.45),
)
LIMITS = Tolerance()
TIE = 2 * LIMITS.probability  # two scores nearer than this may be in either order


def row(x: float, y: float, score: float, *, label: int = 0, side: float = 100) -> list[float]:
    """One candidate: a square box, its score as objectness, sure of its class."""
    return [x, y, side, side, score, float(label == 0), float(label == 1)]


APART = [row(100 + 150 * i, 100 + 150 * j, 0.9 - 0.02 * i - 0.01 * j) for i in range(3) for j in range(2)]
"""Six objects that no decision of NMS is near to; the weakest scores 0.85."""


def spec_of(**thresholds: Any) -> ModelSpec:
    return replace(SPEC, thresholds=replace(SPEC.thresholds, **thresholds))


def objects_in(rows: Array, spec: ModelSpec) -> NetworkDetections:
    found: NetworkDetections = adapter_of(spec).objects({"output": rows[None]}, 0)
    return found


def matcher(spec: ModelSpec) -> RowMatcher:
    assert isinstance(spec.output, RawDetections)
    return RowMatcher(spec.output, lambda rows: objects_in(rows, spec), (spec.thresholds,))


def found_of(rows: list[list[float]], spec: ModelSpec = SPEC, *, lost: tuple[int, ...] = ()) -> NetworkDetections:
    """What NMS finds in rows, but for the detections ``lost``, counted from the best."""
    found = objects_in(np.array(rows, np.float32), spec)
    kept = np.setdiff1d(np.arange(len(found.scores)), lost)
    return replace(found, boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])


def matched(rows: list[list[float]], found: NetworkDetections, spec: ModelSpec = SPEC) -> Matching:
    """What a network found, against what is found in the rows of a reference."""
    return matcher(spec).match_found(("a", "b", "one image"), [np.array(rows, np.float32)], [found], LIMITS)


def counts(matching: Matching) -> tuple[int, int, int, int]:
    return matching.expected, matching.found, matching.matched, matching.borderline


def test_what_the_definition_finds_matches_whole() -> None:
    result = matched(APART, found_of(APART))
    assert result.ok
    assert counts(result) == (6, 6, 6, 0)
    assert (result.reference, result.candidate, result.input, result.what) == ("a", "b", "one image", "detections")


@pytest.mark.parametrize("lost", range(6))
def test_a_detection_lost_far_from_every_tie_fails(lost: int) -> None:
    result = matched(APART, found_of(APART, lost=(lost,)))
    assert not result.ok
    assert counts(result) == (6, 5, 5, 0)


def test_a_network_that_finds_nothing_fails() -> None:
    result = matched(APART, found_of(APART, lost=tuple(range(6))))
    assert not result.ok
    assert counts(result) == (6, 0, 0, 0)


def test_a_detection_that_nms_should_have_suppressed_fails() -> None:
    rows = [*APART, row(110, 100, 0.8)]
    loose = found_of(rows, spec_of(iou=0.99))
    result = matched(rows, loose)
    assert not result.ok
    assert counts(result) == (6, 7, 6, 0)


def test_every_image_of_a_batch_counts() -> None:
    rows = np.array(APART, np.float32)
    found = [found_of(APART), found_of(APART, lost=(2,))]
    result = matcher(SPEC).match_found(("a", "b", "two"), [rows, rows], found, LIMITS)
    assert not result.ok
    assert counts(result) == (12, 11, 11, 0)


@pytest.mark.parametrize(
    ("over", "excused"), [(0.5 * TIE, True), (0.95 * TIE, True), (1.05 * TIE, False), (2 * TIE, False)]
)
def test_a_score_near_the_confidence_threshold_is_excused(over: float, excused: bool) -> None:
    weak = row(550, 550, 0.25 + over)
    lost = matched([*APART, weak], found_of([*APART, weak], lost=(6,)))
    # The other way round the reference has it just below.
    below = row(550, 550, 0.25 - 1e-7)
    extra = matched([*APART, below], found_of([*APART, weak]))
    for result, sides in ((lost, (7, 6)), (extra, (6, 7))):
        assert counts(result) == (*sides, 6, int(excused))
        assert result.ok is excused


def test_no_excuse_holds_for_a_detection_that_the_reference_has_not() -> None:
    """Near the confidence threshold, but of a place, a class or a score that no row has."""
    weak = row(550, 550, 0.25 + TIE / 2)
    for other in (row(550, 530, 0.25 + TIE / 2), row(550, 550, 0.25 + TIE / 2, label=1)):
        result = matched([*APART, weak], found_of([*APART, other]))
        assert not result.ok
        assert counts(result) == (7, 7, 6, 1)  # its own is excused
    for score, excused in ((0.9, True), (1.1, False)):  # as shares of what a score may be off
        below = row(550, 550, 0.25 + TIE / 2 - score * LIMITS.max_score)
        result = matched([*APART, below], found_of([*APART, weak]))
        assert counts(result) == (6, 7, 6, int(excused))
        assert result.ok is excused


def test_the_weakest_of_a_full_list_is_excused() -> None:
    """Two rows at its end, of which the reference keeps the one and the network the other."""
    full = spec_of(max_det=6)
    for over, excused in ((0.95 * TIE, True), (1.05 * TIE, False)):
        rows = [*APART[:5], row(550, 100, 0.5 + over), row(550, 400, 0.5)]
        found = found_of(rows, spec_of(max_det=7), lost=(5,))
        result = matched(rows, found, full)
        assert counts(result)[:3] == (6, 6, 5)
        assert result.ok is excused


def test_a_list_that_is_not_full_excuses_nothing() -> None:
    rows = [*APART, row(550, 550, 0.5)]
    assert not matched(rows, found_of(rows, lost=(6,)), spec_of(max_det=7)).ok
    assert matched(rows, found_of(rows, lost=(6,)), spec_of(max_det=6)).ok  # the reference keeps no more either


def test_a_full_list_does_not_excuse_what_had_its_place_in_it() -> None:
    """A network that loses the best object and fills the list with the next one has not lost it to rounding."""
    rows = [*APART, row(550, 550, 0.5)]
    result = matched(rows, found_of(rows, lost=(0,)), spec_of(max_det=6))
    assert not result.ok
    assert counts(result)[:3] == (6, 6, 5)


@pytest.mark.parametrize(
    ("candidates", "score", "excused"),
    [
        (1000, 0.8, False),  # all of them were looked at
        (1001, 0.8, True),
        (1001, 0.85 + 0.95 * TIE, True),
        (1001, 0.85 + 1.05 * TIE, False),  # better than one that was looked at
        (1001, 0.95, False),
    ],
)
def test_the_end_of_the_list_that_nms_looks_at_is_excused(candidates: int, score: float, excused: bool) -> None:
    rows = [*APART, row(550, 550, score)]
    place = sum(other[4] > score for other in APART)
    found = replace(found_of(rows, lost=(place,)), candidates=candidates)
    result = matched(rows, found)
    assert counts(result) == (7, 6, 6, int(excused))
    assert result.ok is excused


def overlapping(iou: float, *, label: int = 0) -> list[list[float]]:
    """Two boxes of this IoU, the second one the weaker: moved by d, it is (100 - d) / (100 + d)."""
    return [row(300, 500, 0.8), row(300 + 100 * (1 - iou) / (1 + iou), 500, 0.7, label=label)]


@pytest.mark.parametrize(("share", "excused"), [(0.5, True), (0.95, True), (1.05, False), (2.0, False)])
def test_an_overlap_near_the_threshold_of_nms_is_excused(share: float, excused: bool) -> None:
    near = share * LIMITS.borderline_iou
    rows = [*APART, *overlapping(0.45 - near)]  # kept by the definition, suppressed by the network
    result = matched(rows, found_of(rows, lost=(7,)))
    assert counts(result) == (8, 7, 7, int(excused))
    assert result.ok is excused
    rows = [*APART, *overlapping(0.45 + near)]  # the other way round
    result = matched(rows, found_of(rows, spec_of(iou=0.6)))
    assert counts(result) == (7, 8, 7, int(excused))
    assert result.ok is excused


def test_an_overlap_with_another_class_excuses_nothing() -> None:
    rows = [*APART, *overlapping(0.45 - 0.5 * LIMITS.borderline_iou, label=1)]
    result = matched(rows, found_of(rows, lost=(7,)))
    assert not result.ok
    assert counts(result) == (8, 7, 7, 0)


def chain(over: float) -> list[list[float]]:
    """A and B overlap, and so do B and C; A is the best by so much. With A first C stays, with B first it goes."""
    return [row(300, 500, 0.8 + over), row(320, 500, 0.8), row(345, 500, 0.6)]


def other_way(rows: list[list[float]]) -> NetworkDetections:
    """What is found where B comes before A; its score stays the reference's."""
    a, b, c = rows[-3:]
    swapped = found_of([*rows[:-3], [*a[:4], b[4] - 0.1, *a[5:]], b, c])
    assert len(swapped.scores) == len(rows) - 2
    return swapped


@pytest.mark.parametrize(("share", "excused"), [(0.5, True), (0.95, True), (1.05, False), (2.0, False)])
def test_a_tie_excuses_what_hangs_on_it_and_nothing_else(share: float, excused: bool) -> None:
    rows = [*APART, *chain(share * TIE)]
    result = matched(rows, other_way(rows))
    assert counts(result) == (8, 7, 6, 3 if excused else 0)
    assert result.ok is excused
    # A detection that is lost beside the chain is no part of it.
    rows = [*APART, row(550, 100, 0.7), *chain(share * TIE)]
    found = other_way(rows)
    place = int(np.flatnonzero(np.abs(found.scores - 0.7) < 1e-6)[0])
    kept = np.setdiff1d(np.arange(len(found.scores)), place)
    fewer = replace(found, boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])
    result = matched(rows, fewer)
    assert counts(result) == (9, 7, 6, 3 if excused else 0)
    assert not result.ok


def test_equal_scores_that_do_not_overlap_excuse_nothing() -> None:
    rows = [*APART, row(300, 500, 0.8), row(400, 500, 0.8)]
    result = matched(rows, found_of(rows, lost=(6, 7)))
    assert not result.ok
    assert counts(result) == (8, 6, 6, 0)


@pytest.mark.parametrize(("share", "excused"), [(0.5, True), (0.95, True), (1.05, False), (2.0, False)])
def test_a_row_whose_best_classes_are_equal_may_have_either(share: float, excused: bool) -> None:
    undecided = [300, 500, 100, 100, 1.0, 0.8, 0.8 - share * TIE]
    other = [300, 500, 100, 100, 1.0, 0.0, 0.8 - share * TIE]
    result = matched([*APART, undecided], found_of([*APART, other]))
    assert counts(result) == (7, 7, 6, 2 if excused else 0)
    assert result.ok is excused
