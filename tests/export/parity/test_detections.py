"""Detections of two networks, matched: what rounding explains passes, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.export.matching import Matching
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.detections import FEW, ROWS
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import InputSpec, KeypointSpec, ModelSpec, RawDetections, Thresholds
from tests.output_error import output_error

LIMIT = Tolerance()
SPEC = ModelSpec(
    task="keypoints",
    input=InputSpec(size=(640, 640)),
    output=RawDetections(cls=(5, 7), keypoints=(7, 10)),
    classes=("cat", "dog"),
    keypoints=KeypointSpec(("nose",)),
    thresholds=Thresholds(conf=0.25, iou=0.45),
)


def row(x: float, y: float, score: float, *, side: float = 100, label: int = 0, nose: float = 0.0) -> list[float]:
    """One candidate: a square box, its score as objectness, sure of its class."""
    return [x, y, side, side, score, float(label == 0), float(label == 1), x + nose, y, 1.0]


def matched(expected: list[list[float]], found: list[list[float]], spec: ModelSpec = SPEC) -> list[Matching]:
    sides = [np.array(rows, np.float32).reshape(-1, 10) for rows in (expected, found)]
    return export_adapter_of(spec).match(("a", "b", "one image"), sides[:1], sides[1:], LIMIT)


def detections(expected: list[list[float]], found: list[list[float]], spec: ModelSpec = SPEC) -> Matching:
    result = matched(expected, found, spec)[0]
    assert result.what == "detections"
    return result


APART = [row(100 + 150 * i, 100 + 150 * j, 0.9 - 0.01 * i) for i in range(3) for j in range(2)]


def test_equal_rows_match_in_every_detection() -> None:
    result = detections(APART, APART)
    assert result.ok
    assert (result.expected, result.found, result.matched, result.borderline) == (6, 6, 6, 0)
    assert (result.min_iou, result.max_score, result.max_keypoint) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_detection_that_is_missing_or_too_many_fails(swapped: bool) -> None:
    sides = (APART, [row(0, 0, 0.0), *APART[1:]])
    result = detections(*reversed(sides) if swapped else sides)
    assert not result.ok
    assert (result.matched, result.borderline) == (5, 0)
    assert f"5 of {5 if swapped else 6} expected and {6 if swapped else 5} found match" in str(result)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("another class", row(100, 100, 0.9, label=1)),
        ("a pixel away", row(101, 100, 0.9)),
        ("another score", row(100, 100, 0.9 + 2e-4)),
        ("another keypoint", row(100, 100, 0.9, nose=0.06)),
    ],
)
def test_a_detection_that_changed_fails(name: str, changed: list[float]) -> None:
    assert not detections(APART, [changed, *APART[1:]]).ok, name


def test_rounding_of_a_place_a_score_and_a_keypoint_passes() -> None:
    result = detections(APART, [row(100.001, 100, 0.9 + 5e-6, nose=0.01), *APART[1:]])
    assert result.ok
    assert result.max_score == pytest.approx(5e-6, rel=0.1)
    assert result.max_keypoint == pytest.approx(0.011, rel=0.01)


def test_where_the_class_does_not_count_detections_are_those_of_the_objectness() -> None:
    layout = RawDetections(keypoints=(6, 9), cls_counts=False)
    spec = replace(SPEC, output=layout, classes=("cat",))
    rows = np.array([[x, y, w, h, score, 0.01, *rest[1:]] for x, y, w, h, score, _, *rest in APART], np.float32)
    changed = rows.copy()
    changed[0, 4] += 2e-4
    untrained = rows.copy()
    untrained[:, 5] = 0.99
    names = ("a", "b", "one image")
    same, other, fine = (
        export_adapter_of(spec).match(names, [rows], [b], LIMIT)[0] for b in (rows, changed, untrained)
    )
    assert (same.what, same.matched, same.ok) == ("detections", 6, True)
    assert (other.ok, fine.ok) == (False, True)
    product = replace(spec, output=replace(layout, cls_counts=True))
    assert export_adapter_of(product).match(names, [rows], [rows], LIMIT)[0].matched == 0
    assert output_error(spec, {"output": rows}, {"output": untrained}) == 0.0
    assert output_error(spec, {"output": rows}, {"output": changed}) > 0.0


@pytest.mark.parametrize("side", [0.0, 0.01, 0.5])
def test_the_overlap_of_tiny_boxes_is_not_held_against_them(side: float) -> None:
    assert detections([*APART, row(550, 100, 0.9, side=side)], [*APART, row(550.005, 100, 0.9, side=side)]).ok
    assert not detections([*APART, row(550, 100, 0.9, side=side)], [*APART, row(550.5, 100, 0.9, side=side)]).ok


@pytest.mark.parametrize("swapped", [False, True])
def test_a_score_at_the_threshold_may_fall_on_either_side(swapped: bool) -> None:
    sides = [[*APART, row(500, 500, 0.25 + sign * 4e-6)] for sign in (1, -1)]
    result = detections(*reversed(sides) if swapped else sides)
    assert result.ok
    assert {result.expected, result.found} == {6, 7}
    assert (result.matched, result.borderline) == (6, 1)


def test_a_score_well_over_the_threshold_may_not() -> None:
    assert not detections([*APART, row(500, 500, 0.2505)], [*APART, row(500, 500, 0.2495)]).ok


def overlapping(iou: float) -> list[list[float]]:
    """Two boxes of 100 px whose IoU is this: moved by d, it is (100 - d) / (100 + d)."""
    return [row(300, 500, 0.8), row(300 + 100 * (1 - iou) / (1 + iou), 500, 0.7)]


@pytest.mark.parametrize(("difference", "passes"), [(4e-4, True), (2e-2, False)])
def test_an_overlap_at_the_nms_threshold_may_fall_on_either_side(difference: float, passes: bool) -> None:
    sides = [[*APART, *overlapping(0.45 + sign * difference)] for sign in (-1, 1)]
    result = detections(*sides)
    assert (result.expected, result.found) == (8, 7)
    assert result.ok is passes


def test_of_two_equal_scores_either_may_suppress_the_other() -> None:
    def pair(order: float) -> list[list[float]]:
        return [row(300, 500, 0.8 + order), row(320, 500, 0.8 - order)]

    result = detections([*APART, *pair(4e-6)], [*APART, *pair(-4e-6)])
    assert result.ok
    assert (result.matched, result.borderline) == (6, 2)
    assert not detections([*APART, *pair(1e-3)], [*APART, *pair(-1e-3)]).ok


def test_of_two_equal_classes_a_row_may_get_either() -> None:
    def undecided(order: float) -> list[float]:
        return [300, 500, 100, 100, 0.9, 0.8 + order, 0.8 - order, 300, 500, 1.0]

    assert detections([*APART, undecided(4e-6)], [*APART, undecided(-4e-6)]).ok
    assert not detections([*APART, undecided(1e-3)], [*APART, undecided(-1e-3)]).ok


def test_a_full_list_ends_where_rounding_decides() -> None:
    three = replace(SPEC, thresholds=replace(SPEC.thresholds, max_det=3))
    last = [row(550, 100, 0.5 + sign * 4e-6) for sign in (1, -1)]
    other = [row(550, 500, 0.5 - sign * 4e-6) for sign in (1, -1)]
    result = detections([*APART[:2], last[0], other[0]], [*APART[:2], last[1], other[1]], three)
    assert (result.expected, result.found, result.matched) == (3, 3, 2)
    assert result.ok


def test_many_detections_are_enough_and_few_are_not() -> None:
    def grid(count: int) -> list[list[float]]:
        return [row(20 + 40 * (i % 16), 20 + 40 * (i // 16), 0.9, side=30) for i in range(count)]

    assert [m.what for m in matched(grid(FEW), grid(FEW))] == ["detections"]
    assert [m.what for m in matched(grid(FEW - 1), grid(FEW - 1))] == ["detections", "best rows"]


def test_without_a_detection_the_best_rows_are_told_from_others() -> None:
    quiet = [row(20 + i, 300, 0.2 - 1e-4 * i) for i in range(ROWS + 50)]
    none, best = matched(quiet, quiet)
    assert (none.expected, none.found, none.ok) == (0, 0, True)
    assert (best.expected, best.matched, best.ok) == (ROWS, ROWS, True)
    shuffled = [quiet[1], quiet[0], *quiet[2:]]
    assert not matched(quiet, shuffled)[1].ok
    beyond = [*quiet[:ROWS], *reversed(quiet[ROWS:])]
    assert matched(quiet, beyond)[1].ok  # only the best rows are looked at here


def test_a_nan_in_a_best_row_is_no_match() -> None:
    quiet = [row(20 + 40 * i, 300, 0.2) for i in range(10)]
    for column in (0, 4, 7):
        broken = np.array(quiet, np.float32)
        broken[3, column] = np.nan
        assert not matched(quiet, broken.tolist())[1].ok, column


def test_a_nan_in_one_image_of_several_is_no_match() -> None:
    quiet = np.array([row(20 + 40 * i, 300, 0.2) for i in range(10)], np.float32)
    for column in (4, 7):
        broken = quiet.copy()
        broken[3, column] = np.nan
        for found in ([quiet, broken], [broken, quiet]):
            best = export_adapter_of(SPEC).match(("a", "b", "two images"), [quiet, quiet], found, LIMIT)[1]
            assert not best.ok, column


places = st.integers(0, 20).map(lambda i: 30.0 * i)
candidates = st.lists(
    st.builds(row, places, places, st.floats(0.1875, 1.0, width=32), label=st.integers(0, 1)), max_size=12
)


def jittered(rows: list[list[float]], seed: int) -> list[list[float]]:
    """Each row moved as rounding might move it, or by a little more, or gone."""
    random = np.random.default_rng(seed)
    scale = np.array([0.05, 0.05, 0.05, 0.05, 1e-5, 0, 0, 0.05, 0.05, 0])
    moved: Array = np.array(rows).reshape(-1, 10) + random.normal(size=(len(rows), 10)) * scale
    moved[random.random(len(rows)) < 0.1, 4] = 0
    return [[float(value) for value in values] for values in moved]


@given(candidates, st.integers(0, 99))
def test_neither_side_is_favoured(rows: list[list[float]], seed: int) -> None:
    other = jittered(rows, seed)
    there, back = detections(rows, other), detections(other, rows)
    assert (there.expected, there.found) == (back.found, back.expected)
    assert (there.matched, there.borderline, there.ok) == (back.matched, back.borderline, back.ok)
    assert there.matched <= min(there.expected, there.found)
    assert there.borderline <= there.expected + there.found - 2 * there.matched


@given(candidates)
def test_a_network_matches_itself(rows: list[list[float]]) -> None:
    assert all(m.ok and m.borderline == 0 for m in matched(rows, rows))
