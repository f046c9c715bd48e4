"""The numpy NMS against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.runtime import nms as nms_module
from deploykit.runtime.nms import nms
from deploykit.spec import RawRows, Thresholds
from tests.nms_corpus import Case, Kept, Rows, corpus, reference

CORPUS = corpus()


def _kept(rows: Rows, layout: RawRows, thresholds: Thresholds) -> list[Kept]:
    found = nms(rows, layout, thresholds)
    return [Kept(*k) for k in zip(found.rows.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)]


@pytest.mark.parametrize("case", [c for c in CORPUS if c.kept is not None], ids=lambda c: c.name)
def test_the_definition_gives_what_a_person_worked_out(case: Case) -> None:
    assert tuple(k.row for k in reference(case.rows, case.layout, case.thresholds)) == case.kept


@pytest.mark.parametrize("case", CORPUS, ids=lambda c: c.name)
def test_the_corpus_agrees_in_rows_labels_and_every_bit_of_the_scores(case: Case) -> None:
    assert _kept(case.rows, case.layout, case.thresholds) == reference(case.rows, case.layout, case.thresholds)


def test_the_corpus_has_cases_that_an_offset_for_each_class_would_decide_otherwise() -> None:
    (case,) = [c for c in CORPUS if c.name == "pairs near the threshold in 80 classes"]
    moved = case.rows.copy()
    moved[:, :2] += 4096 * moved[:, 5:].argmax(axis=1, keepdims=True)
    assert reference(moved, case.layout, case.thresholds) != reference(case.rows, case.layout, case.thresholds)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[Rows, RawRows, Thresholds]:
    """Few positions, few sizes and few scores, so that ties, equal boxes and exact thresholds are common."""
    classes = draw(st.integers(1, 3))
    layout = draw(st.sampled_from([RawRows(cls=(5, 5 + classes)), RawRows(obj=None, cls=(4, 4 + classes))]))
    odd = st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, 2.0, 1e-42, 3e38, -3e38, 0.1])
    usual = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    values = st.one_of(*[usual] * 12, odd)
    geometry = st.one_of(*[st.integers(0, 6).map(float)] * 12, odd)
    count = draw(st.integers(0, 24))
    left = draw(hnp.arrays(np.float32, (count, 4), elements=geometry.map(lambda v: float(np.float32(v)))))
    right = draw(
        hnp.arrays(np.float32, (count, layout.columns - 4), elements=values.map(lambda v: float(np.float32(v))))
    )
    thresholds = Thresholds(
        conf=draw(st.sampled_from([0.0, 0.1, 0.25, 0.5])),
        iou=draw(st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0])),
        max_det=draw(st.integers(1, 12)),
        pre_nms_topk=draw(st.integers(1, 30)),
    )
    return np.concatenate((left, right), axis=1), layout, thresholds


@given(problem=_problems(), block=st.sampled_from([1, 2, 3, 64]))
def test_any_rows_give_what_the_definition_says_whatever_the_block_size(
    problem: tuple[Rows, RawRows, Thresholds], block: int
) -> None:
    usual = nms_module.BLOCK
    nms_module.BLOCK = block
    try:
        assert _kept(*problem) == reference(*problem)
    finally:
        nms_module.BLOCK = usual


def test_half_precision_rows_are_read_as_the_numbers_that_they_hold() -> None:
    case = next(c for c in CORPUS if c.name == "a crowd of one class, top-k 1000")
    half = case.rows.astype(np.float16)
    assert _kept(half, case.layout, case.thresholds) == _kept(half.astype(np.float32), case.layout, case.thresholds)
    assert nms(half, case.layout, case.thresholds).boxes.dtype == np.float32


def test_candidates_are_counted_before_top_k() -> None:
    case = next(c for c in CORPUS if c.name == "more candidates than top-k")
    assert nms(case.rows, case.layout, case.thresholds).candidates == 40
