"""Raw outputs against what is expected: how far off, which share of the limit, and where."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploykit.errors import ParityError
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.differences import Difference, class_scores, row_differences, tensor_difference
from deploykit.runtime.parity.spread import NO_SPREAD, QUANTILES, errors_of, spread_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import RawDetections

LAYOUT = RawDetections(cls=(5, 7), keypoints=(7, 10))
LIMITS = Tolerance()
ROWS = np.random.default_rng(0).random((20, 10)) * 100


def compared(expected: Array, found: Array, limits: Tolerance = LIMITS) -> dict[str, Difference]:
    return {d.values: d for d in row_differences(("a", "b", "noise"), [expected], [found], LAYOUT, limits)}


def changed(row: int, column: int, value: float) -> Array:
    rows = ROWS.copy()
    rows[row, column] = value
    return rows


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", ["expected", "found", "both"])
def test_what_is_no_number_is_infinitely_far_from_everything(value: float, sides: str) -> None:
    broken = changed(3, 1, value)
    expected = ROWS if sides == "found" else broken
    found = ROWS if sides == "expected" else broken
    error, used = errors_of(expected, found, 1e-3)
    assert error[3, 1] == used[3, 1] == math.inf
    assert np.isfinite(np.delete(error, 31)).all()
    told = compared(expected, found)
    boxes = told.pop("boxes")
    assert (boxes.max_abs, boxes.limit_ratio, boxes.ok) == (math.inf, math.inf, False)
    assert boxes.worst[:2] == (3, 1)
    assert all(d.ok and d.max_abs == 0.0 for d in told.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_in_a_dense_output_is_infinitely_far_too(value: float) -> None:
    expected = np.zeros((2, 4, 4))
    found = expected.copy()
    found[1, 2, 3] = value
    for pair in ((expected, found), (found, expected), (found, found)):
        told = tensor_difference(("a", "b", "noise"), "logits", [pair[0]], [pair[1]], LIMITS)
        assert (told.max_abs, told.limit_ratio, told.ok) == (math.inf, math.inf, False)
        assert told.worst[:2] == (1, 11)


def test_a_row_without_a_finite_score_is_compared_whatever_scores_count() -> None:
    few = Tolerance(min_score=0.5)
    quiet = ROWS * np.where(np.arange(10) == 4, 0.0, 1.0)
    assert all(d.count == 0 and d.ok for d in compared(quiet, quiet + 1.0 * (np.arange(10) < 4), few).values())
    broken = quiet.copy()
    broken[5, 4] = math.nan
    assert not compared(quiet, broken, few)["scores"].ok
    assert not compared(broken, quiet, few)["scores"].ok


def test_the_score_of_a_row_is_what_its_layout_says() -> None:
    rows = np.array([[0, 0, 1, 1, 0.5, 0.25], [0, 0, 1, 1, 0.125, 1]])
    assert class_scores(rows, RawDetections()).tolist() == [[0.125], [0.125]]
    assert class_scores(rows, RawDetections(cls_counts=False)).tolist() == [[0.5], [0.125]]
    assert class_scores(rows, RawDetections(obj=None, cls=(4, 6))).tolist() == [[0.5, 0.25], [0.125, 1]]


@pytest.mark.parametrize(("layout", "counted"), [(RawDetections(), 0), (RawDetections(cls_counts=False), 1)])
def test_rows_count_by_their_score_whatever_it_is(layout: RawDetections, counted: int) -> None:
    """The class is 0.1, so that objectness times class is under the limit and the objectness alone is over it."""
    rows = np.array([[10, 10, 5, 5, 0.9, 0.1]])
    boxes, scores = row_differences(("a", "b", "noise"), [rows], [rows], layout, Tolerance(min_score=0.5))
    assert (boxes.count, scores.count) == (4 * counted, 2 * counted)


@pytest.mark.parametrize(
    ("values", "column", "limit"),
    [
        ("boxes", 2, 1e-3 + 1e-5 * ROWS[7, 2]),
        ("keypoints", 8, 1e-3 + 1e-5 * ROWS[7, 8]),
        ("scores", 4, 1e-5),
        ("scores", 6, 1e-5),
        ("visibility", 9, 1e-5),
    ],
)
def test_each_kind_of_value_has_its_limit_and_names_its_worst(values: str, column: int, limit: float) -> None:
    for share in (0.9, 1.1, -1.1):
        found = changed(7, column, ROWS[7, column] + share * limit)
        told = compared(ROWS, found)
        assert told[values].limit_ratio == pytest.approx(abs(share), rel=1e-6)
        assert told[values].max_abs == pytest.approx(abs(share) * limit, rel=1e-6)
        assert told[values].worst == (7, column, ROWS[7, column], found[7, column])
        assert told[values].ok is (abs(share) < 1)
        assert all(d.max_abs == 0.0 for name, d in told.items() if name != values)


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ParityError, match=r"b gives \(19, 10\) values on noise, a gives \(20, 10\)"):
        compared(ROWS, ROWS[:-1])


def test_the_spread_is_that_of_all_parts_together() -> None:
    assert QUANTILES == (0.5, 0.9, 0.99)  # as docs/parity.md says
    shares = np.arange(101.0)
    assert spread_of([shares[::2], shares[1::2]]) == (50.0, 90.0, 99.0)
    assert spread_of([]) == spread_of([np.zeros(0)]) == NO_SPREAD


@pytest.mark.parametrize(
    ("angle", "largest", "ok"),
    [
        (0.5 + np.pi, 0.0, True),
        (0.5 - 3 * np.pi + 2e-5, 2e-5, True),  # of the limit, pi * 1e-5
        (0.5 + np.pi - 4e-5, 4e-5, False),
        (0.5 + np.pi / 2 - 0.1, np.pi / 2 - 0.1, False),
        (0.5 + np.pi / 2 + 0.1, np.pi / 2 - 0.1, False),
        (math.inf, math.inf, False),
        (math.nan, math.inf, False),
    ],
)
def test_angles_are_equal_after_half_a_turn(angle: float, largest: float, ok: bool) -> None:
    layout = RawDetections(obj=None, cls=(4, 5), angle=(5, 6))
    expected = np.array([[50.0, 50, 20, 10, 0.9, 0.5]])
    found = expected.copy()
    found[0, 5] = angle
    told = {d.values: d for d in row_differences(("a", "b", "noise"), [expected], [found], layout, LIMITS)}
    assert list(told) == ["boxes", "scores", "angles"]
    assert told["boxes"].ok
    assert told["angles"].max_abs == pytest.approx(largest, abs=1e-12)
    assert (told["angles"].ok, told["angles"].worst[:2]) == (ok, (0, 5))


SQUARE, LONG = (50.0, 50.0, 20.0, 20.0005), (50.0, 50.0, 20.0, 10.0)


@pytest.mark.parametrize(
    ("box", "other", "turn", "wrong"),
    [
        (LONG, (50.0, 50.0, 10.0, 20.0), np.pi / 2, set()),
        (LONG, (50.0, 50.0, 10.0, 20.0), -3 * np.pi / 2 + 2e-5, set()),
        (LONG, (50.0, 50.0, 10.0, 20.0), np.pi / 2 + 1e-3, {"angles"}),
        (LONG, (50.0, 50.0, 10.0, 20.0), 0.0, {"boxes"}),
        (LONG, LONG, np.pi / 2, {"angles"}),
        (LONG, (50.0, 50.0, 10.1, 20.0), np.pi / 2, {"boxes", "angles"}),
        (SQUARE, SQUARE, np.pi / 2, set()),
        (SQUARE, SQUARE, np.pi / 4, {"angles"}),
    ],
)
def test_equal_rectangles_are_equal(
    box: tuple[float, ...], other: tuple[float, ...], turn: float, wrong: set[str]
) -> None:
    layout = RawDetections(obj=None, cls=(4, 5), angle=(5, 6))
    a, b = np.array([[*box, 0.9, 0.5]]), np.array([[*other, 0.9, 0.5 + turn]])
    told = row_differences(("a", "b", "noise"), [a], [b], layout, LIMITS)
    assert {d.values for d in told if not d.ok} == wrong
