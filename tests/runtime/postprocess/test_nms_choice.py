"""NMS among some classes, and across all of them: the definition, numpy and the native library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.runtime.postprocess import nms as nms_module
from deploykit.runtime.postprocess.nms import USUAL, Choice, Kept, nms, numpy_nms
from deploykit.spec import RawDetections, Thresholds
from tests.nms_corpus import Case, Rows, corpus, reference
from tests.runtime.postprocess.test_nms import problems

CHOICES = (
    *(Choice(classes=(0,)), Choice(classes=(2, 1)), Choice(agnostic=True), Choice(classes=(1, 79), agnostic=True)),
    *(Choice(classes=(79,)), Choice(classes=())),
    *(Choice(multi_label=True), Choice(True, (0, 3)), Choice(True, agnostic=True), Choice(True, (1, 2), True)),
)
TWO = RawDetections(cls=(5, 7))
Problem = tuple[Rows, RawDetections, Thresholds]


def _facts(found: Kept) -> list[tuple[int, int, float]]:
    return list(zip(found.rows.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True))


def _expected(problem: Problem, choice: Choice) -> list[tuple[int, int, float]]:
    words = {"multi_label": choice.multi_label, "classes": choice.classes, "agnostic": choice.agnostic}
    return [tuple(kept) for kept in reference(*problem, **words)]


def _in_numpy(problem: Problem, choice: Choice) -> Kept:
    return numpy_nms(*problem, choice)


def _assert_same(problem: Problem, choice: Choice) -> None:
    """The library runs, and every byte is that of numpy."""
    calls = []
    usual = nms_module.native_nms

    def counted(*words: Any, **choice: Any) -> object:
        calls.append(usual(*words, **choice))
        return calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms_module, "native_nms", counted)
        found = nms(*problem, choice)
    assert calls
    assert calls[0] is not None
    expected = _in_numpy(problem, choice)
    for name in ("rows", "boxes", "scores", "labels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), name
    assert found.candidates == expected.candidates


@pytest.mark.parametrize("case", corpus(), ids=lambda c: c.name)
def test_the_corpus_agrees_with_the_definition(case: Case) -> None:
    problem = (case.rows, case.layout, case.thresholds)
    for choice in CHOICES:
        assert _facts(_in_numpy(problem, choice)) == _expected(problem, choice), choice


@pytest.mark.parametrize("case", corpus(), ids=lambda c: c.name)
def test_the_library_gives_the_same_bytes(case: Case, native: Path) -> None:
    for choice in CHOICES:
        _assert_same((case.rows, case.layout, case.thresholds), choice)


@given(problem=problems(), choice=st.sampled_from((USUAL, *CHOICES)), half=st.booleans(), by_columns=st.booleans())
def test_any_rows_give_the_same_bytes_and_what_the_definition_says(
    native: Path, problem: Problem, choice: Choice, half: bool, by_columns: bool
) -> None:
    rows, layout, thresholds = problem
    if half:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float16)
    rows = np.asfortranarray(rows) if by_columns else rows
    _assert_same((rows, layout, thresholds), choice)
    assert _facts(_in_numpy((rows, layout, thresholds), choice)) == _expected((rows, layout, thresholds), choice)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 400),
    classes=st.integers(1, 40),
    topk=st.integers(1, 300),
    by_columns=st.booleans(),
    choice=st.sampled_from((USUAL, *CHOICES)),
)
def test_crowds_give_the_same_bytes(
    native: Path, seed: int, count: int, classes: int, topk: int, by_columns: bool, choice: Choice
) -> None:
    """Far more candidates than are looked at, so that keys are thrown away before all are known."""
    rng = np.random.default_rng(seed)
    layout = RawDetections(cls=(5, 5 + classes))
    rows = rng.random((count, layout.columns), np.float32)
    rows[:, :4] *= (60, 60, 30, 30)
    rows[:, 4:] = np.round(rows[:, 4:], 2)
    thresholds = Thresholds(conf=0.1, iou=0.3, max_det=int(rng.integers(1, 100)), pre_nms_topk=topk)
    _assert_same((np.asfortranarray(rows) if by_columns else rows, layout, thresholds), choice)


def _row(x: float, *classes: float) -> list[float]:
    return [x, 10, 10, 10, 1, *classes]


def test_other_classes_take_no_places() -> None:
    crowd = [_row(20 * i, 0.9, 0.1) for i in range(8)]
    rows = np.float32([*crowd, _row(500, 0.1, 0.6), _row(600, 0.1, 0.5), _row(601, 0.1, 0.4)])
    few = Thresholds(conf=0.2, max_det=2, pre_nms_topk=3)
    assert numpy_nms(rows, TWO, few).labels.tolist() == [0, 0]
    found = numpy_nms(rows, TWO, few, Choice(classes=(1,)))
    assert (found.rows.tolist(), found.labels.tolist(), found.candidates) == ([8, 9], [1, 1], 3)


def test_the_wanted_are_those_of_all_classes_without_the_others() -> None:
    """A row keeps its best class: it does not become an object of a wanted class that is second to another."""
    rows = np.float32([_row(0, 0.9, 0.8), _row(1, 0.1, 0.7), _row(100, 0.3, 0.6)])
    everything = numpy_nms(rows, TWO, Thresholds())
    found = numpy_nms(rows, TWO, Thresholds(), Choice(classes=(1,)))
    assert found.rows.tolist() == everything.rows[everything.labels == 1].tolist() == [1, 2]


def test_objects_of_different_classes_suppress_each_other_only_if_asked() -> None:
    rows = np.float32([_row(0, 0.9, 0.1), _row(1, 0.1, 0.8), _row(100, 0.1, 0.7)])
    assert numpy_nms(rows, TWO, Thresholds()).rows.tolist() == [0, 1, 2]
    assert numpy_nms(rows, TWO, Thresholds(), Choice(agnostic=True)).rows.tolist() == [0, 2]
    alone = numpy_nms(rows, TWO, Thresholds(), Choice(classes=(1,), agnostic=True))
    assert alone.rows.tolist() == [1, 2]  # what is not wanted suppresses nothing
