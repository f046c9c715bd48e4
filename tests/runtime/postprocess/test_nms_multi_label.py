"""NMS with several labels a row, as detectors are evaluated, against its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.postprocess import nms as nms_module
from deploykit.runtime.postprocess.nms import USUAL, Choice, nms, numpy_nms
from deploykit.runtime.postprocess.nms import Kept as Result
from deploykit.spec import RawDetections, Thresholds
from tests.nms_corpus import Case, Kept, Rows, corpus, reference
from tests.runtime.postprocess.test_nms import problems

Problem = tuple[Rows, RawDetections, Thresholds]
MANY = Choice(multi_label=True)
THREE = RawDetections(cls=(5, 8))


def _kept(found: Result) -> list[Kept]:
    return [Kept(*k) for k in zip(found.rows.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)]


def _rows(*rows: tuple[float, ...]) -> Rows:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("case", corpus(), ids=lambda c: c.name)
def test_the_corpus_agrees_in_rows_labels_and_every_bit_of_the_scores(case: Case) -> None:
    found = numpy_nms(case.rows, case.layout, case.thresholds, MANY)
    assert _kept(found) == reference(case.rows, case.layout, case.thresholds, multi_label=True)


@given(problem=problems(), reach=st.integers(1, 8), block=st.sampled_from([1, 3, 64]))
def test_any_rows_give_what_the_definition_says_however_many_are_looked_at_first(
    problem: Problem, reach: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms_module, "REACH", reach)
        patch.setattr(nms_module, "FEW", 0)
        patch.setattr(nms_module, "BLOCK", block)
        found = nms(*problem, MANY)
    assert _kept(found) == reference(*problem, multi_label=True)


@settings(max_examples=50)
@given(problem=problems())
def test_with_one_class_it_is_the_same_as_with_the_best_label(problem: Problem) -> None:
    rows, layout, thresholds = problem
    start = layout.cls[0]
    one = replace(layout, cls=(start, start + 1))
    several, single = (numpy_nms(rows, one, thresholds, choice) for choice in (MANY, USUAL))
    for name in ("rows", "boxes", "scores", "labels"):
        assert getattr(several, name).tobytes() == getattr(single, name).tobytes(), name
    assert several.candidates == single.candidates


@given(seed=st.integers(0, 2**32), count=st.integers(1, 200), classes=st.integers(2, 12))
def test_the_order_of_the_rows_decides_nothing_but_ties(seed: int, count: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    layout = RawDetections(obj=None, cls=(4, 4 + classes))
    scores = rng.permutation(np.linspace(0.001, 1, count * classes)).astype(np.float32)  # no two alike
    boxes = rng.random((count, 4), np.float32) * np.float32((60, 60, 30, 30))
    rows = np.concatenate((boxes, scores.reshape(count, classes)), axis=1)
    order = rng.permutation(count)
    thresholds = Thresholds(conf=0.1, iou=0.3, max_det=40)
    found = numpy_nms(rows, layout, thresholds, MANY)
    moved = numpy_nms(rows[order], layout, thresholds, MANY)
    assert _kept(found) == [Kept(int(order[k.row]), k.label, k.score) for k in _kept(moved)]


def test_a_row_stays_with_each_label_that_is_over_the_threshold() -> None:
    rows = _rows((5, 5, 10, 10, 1, 0.9, 0.2, 0.6), (5, 5, 10, 10, 1, 0.1, 0.5, 0.7))
    found = numpy_nms(rows, THREE, Thresholds(conf=0.25), MANY)
    assert [(k.row, k.label) for k in _kept(found)] == [(0, 0), (1, 2), (1, 1)]  # (0, 2) is suppressed by (1, 2)
    assert found.candidates == 4
    assert found.boxes.tolist() == [[0, 0, 10, 10]] * 3


def test_ties_go_to_the_lower_row_and_then_to_the_lower_class() -> None:
    apart = [(30 * i, 0, 10, 10, 1, 0.5, 0.5, 0.5) for i in range(3)]
    found = numpy_nms(_rows(*apart), THREE, Thresholds(), MANY)
    assert [(k.row, k.label) for k in _kept(found)] == [(row, label) for row in range(3) for label in range(3)]


def test_top_k_counts_pairs_and_cuts_ties_at_its_border_in_the_same_order() -> None:
    rows = _rows(*[(30 * i, 0, 10, 10, 1, 0.5, 0.9, 0.5) for i in range(3)])
    found = numpy_nms(rows, THREE, Thresholds(pre_nms_topk=5), MANY)
    assert [(k.row, k.label) for k in _kept(found)] == [(0, 1), (1, 1), (2, 1), (0, 0), (0, 2)]
    assert found.candidates == 9


def test_a_row_with_nan_has_no_label_at_all() -> None:
    rows = _rows((5, 5, 10, 10, 1, 0.9, float("nan"), 0.6), (90, 5, 10, 10, 1, 0.9, 0.3, 0))
    found = numpy_nms(rows, THREE, Thresholds(), MANY)
    assert [(k.row, k.label) for k in _kept(found)] == [(1, 0), (1, 1)]


def test_the_weak_are_looked_at_where_the_strong_do_not_fill_the_image() -> None:
    crowd = [(50, 50, 20, 20, 1, 0.9, 0, 0)] * 500  # one object, hundreds of times
    alone = [(50 + 30 * i, 200, 20, 20, 1, 0, 0.3, 0) for i in range(8)]
    found = numpy_nms(_rows(*crowd, *alone), THREE, Thresholds(max_det=9), MANY)
    assert found.rows.tolist() == [0, *range(500, 508)]
