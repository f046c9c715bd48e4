"""Detections that networks choose themselves are compared as sets: what passes, and what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.export.kinds.end_to_end import EndToEndExport
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.chosen_rows import UNPAIRED, chosen_differences, chosen_layout, chosen_rows, pairs_of
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import EndToEndRows, InputSpec, ModelSpec

LAYOUT, LIMITS = EndToEndRows(), Tolerance()
NAMES = ("a", "b", "image")


def some_rows(seed: int = 0, count: int = 40, classes: int = 4) -> Array:
    """Rows of different boxes and falling scores."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 500, (count, 2))
    scores = np.sort(rng.uniform(0.1, 0.9, count))[::-1]
    return np.column_stack((corner, corner + rng.uniform(5, 100, (count, 2)), scores, rng.integers(0, classes, count)))


def bad(a: Array, b: Array, layout: EndToEndRows = LAYOUT, limits: Tolerance = LIMITS) -> set[str]:
    """The kinds of values that fail."""
    return {d.values for d in chosen_differences(NAMES, [a], [b], layout, limits) if not d.ok}


@given(seed=st.integers(0, 1000), count=st.integers(0, 60))
@settings(max_examples=40)
def test_the_order_of_rows_and_rounding_do_not_matter(seed: int, count: int) -> None:
    rows, rng = some_rows(seed, count), np.random.default_rng(seed)
    noise = rng.uniform(-1, 1, rows.shape) * [1e-3, 1e-3, 1e-3, 1e-3, 9e-6, 0]
    found = (rows + noise)[rng.permutation(count)]
    assert not bad(rows, found)
    pairs = pairs_of(rows, found, LAYOUT, LIMITS)
    assert len(pairs.places[0]) == count
    np.testing.assert_array_equal(rows[pairs.places[0], 5], found[pairs.places[1], 5])


@pytest.mark.parametrize("place", [0, 7, 39])
def test_a_row_that_is_lost_is_found_out(place: int) -> None:
    rows = some_rows()
    shorter, empty = np.delete(rows, place, 0), rows.copy()
    empty[place] = 0
    for found in (shorter, empty):
        assert bad(rows, found) == bad(found, rows) == {UNPAIRED}


@pytest.mark.parametrize("place", [0, 7, 38])
def test_a_row_that_comes_twice_is_found_out(place: int) -> None:
    rows = some_rows()
    found = rows.copy()
    found[39] = rows[place]
    assert bad(rows, found) == bad(found, rows) == {UNPAIRED}


def test_the_end_of_a_full_list_may_be_another_row_of_the_same_score() -> None:
    rows = some_rows()
    found = rows.copy()
    found[39, :4] += 200
    assert not bad(rows, found)
    found[39, 4] += 5e-6
    assert not bad(rows, found)
    found[39, 4] = rows[39, 4] + 5e-5
    assert bad(rows, found) == {UNPAIRED}
    found = np.concatenate((rows, np.zeros((5, 6))))  # the list is not full
    other = found.copy()
    other[39, :4] += 200
    assert bad(found, other) == {UNPAIRED}


def test_only_the_class_and_the_places_that_belong_together_are_paired() -> None:
    rows = some_rows()
    found = rows.copy()
    found[3, 5] += 1
    assert UNPAIRED in bad(rows, found)
    assert UNPAIRED in bad(rows, rows[:, [1, 0, 3, 2, 4, 5]])
    found = rows.copy()
    found[3, 0] += 0.1
    assert bad(rows, found) == {"boxes"}
    found = rows.copy()
    found[3, 4] += 5e-4
    assert bad(rows, found) == {"scores"}


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_equals_nothing(column: int, value: float) -> None:
    rows = some_rows()
    found = rows.copy()
    found[3, column] = value
    assert bad(rows, found)
    assert bad(found, rows)
    assert bad(found, found)


def test_the_lowest_precisions_look_at_rows_that_score_enough() -> None:
    limits = replace(LIMITS, probability=0.02, max_score=0.02, min_score=0.3)
    rows = some_rows()
    weak = int((rows[:, 4] > 0.3).sum())
    found = np.concatenate((rows, np.zeros((5, 6))))
    found[weak, :4] += 50
    assert not bad(rows, found, limits=limits)
    found[weak - 1, :4] += 50
    assert bad(rows, found, limits=limits) == {UNPAIRED}
    assert not bad(rows, found, limits=replace(limits, unmatched=0.05))


def test_rows_that_score_little_do_not_outweigh_the_few_that_matter() -> None:
    """Of a full list of 300 rows five are objects; a candidate that loses them all keeps the other 295."""
    rows = some_rows(count=300)
    rows[:, 4] = np.linspace(0.04, 0.01, 300)
    rows[:5, 4] = 0.9
    found = rows.copy()
    found[:5, 4] = 0.005
    limits = replace(LIMITS, pixels=0.5, probability=0.02, max_score=0.02, min_score=0.05, unmatched=0.02)
    assert bad(rows, found, limits=limits) == bad(found, rows, limits=limits) == {UNPAIRED}
    spec = ModelSpec("detect", InputSpec(size=(640, 640)), LAYOUT)
    (matching,) = EndToEndExport(spec).match(NAMES, [rows], [found], limits)
    assert (matching.expected, matching.found, matching.matched, matching.ok) == (5, 0, 0, False)


@given(seed=st.integers(0, 1000), lost=st.integers(0, 10))
@settings(max_examples=30)
def test_what_rounding_did_to_the_order_is_told(seed: int, lost: int) -> None:
    rows, rng = some_rows(seed, 40), np.random.default_rng(seed)
    rows[30:, 4] = rows[30, 4]  # the end of a full list: any of these may be in it
    found = rows.copy()
    found[40 - lost :, :4] += 1000
    order = np.arange(40)
    order[:2] = order[1::-1] if lost % 2 else order[:2]
    pairs = pairs_of(rows, found[order], LAYOUT, LIMITS)
    assert pairs.exchanged == lost
    assert pairs.moved == (2 if lost % 2 else 0)
    assert len(pairs.places[0]) == 40 - lost
    assert not bad(rows, found[order][rng.permutation(40)])


def test_nothing_is_judged_without_limits() -> None:
    limits = Tolerance(pixels=np.inf, probability=np.inf, max_score=np.inf, min_iou=0.5, judged=False)
    rows = some_rows()
    found = rows + np.random.default_rng(1).normal(size=rows.shape) * [3, 3, 3, 3, 0.01, 0]
    report = {d.values: d for d in chosen_differences(NAMES, [rows], [found], LAYOUT, limits)}
    assert 1 < report["boxes"].max_abs < 20
    assert report["scores"].max_abs < 0.1


def test_columns_of_any_order_are_put_into_one() -> None:
    layout = EndToEndRows(image=0, box=(1, 5), label=5, score=6, angle=9, keypoints=(7, 9), kpt_dims=2)
    rows = np.arange(20.0).reshape(2, 10)
    assert chosen_layout(layout) == EndToEndRows(angle=6, keypoints=(7, 9), kpt_dims=2)
    assert chosen_rows(rows, layout)[0].tolist() == [1, 2, 3, 4, 6, 5, 9, 7, 8]


def test_a_turned_rectangle_is_the_same_after_half_a_turn() -> None:
    layout, rows = EndToEndRows(angle=6), some_rows()
    rows = np.column_stack((rows, np.random.default_rng(2).uniform(-1, 2, 40)))
    rows[:, 2:4] = np.random.default_rng(3).uniform(5, 100, (40, 2))
    found = rows.copy()
    found[:, 6] += np.pi
    assert not bad(rows, found, layout)
    found[4, 6] += 0.01
    assert bad(rows, found, layout) == {"angles"}


def test_rectangles_around_one_centre_are_the_same_if_their_sides_are() -> None:
    layout, limits = EndToEndRows(angle=6), replace(LIMITS, pixels=4.0, side=0.1, probability=0.12)
    rows = np.array([[80, 80, 250, 90, 0.5, 0, 0.1]])
    another = np.array([[90, 85, 60, 60, 0.5, 0, 0.3]])  # of another cell, which the end of a full list may be
    assert not bad(rows, another, layout, limits)
    assert not pairs_of(rows, another, layout, limits).places[0].size
    turned = np.array([[80, 80, 90, 250, 0.5, 0, 0.1 + np.pi / 2]])
    assert pairs_of(rows, turned, layout, limits).places[0].size == 1
