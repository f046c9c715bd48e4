"""NMS against its definition: in numpy, and by the native library."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.runtime.native.library import native_nms
from deploykit.runtime.postprocess import few_boxes
from deploykit.runtime.postprocess import nms as nms_module
from deploykit.runtime.postprocess.few_boxes import left_over
from deploykit.runtime.postprocess.nms import Choice, nms, numpy_nms, suppress
from deploykit.runtime.postprocess.nms import Kept as Result
from deploykit.runtime.postprocess.sweep import pairs_that_may_meet
from deploykit.spec import RawDetections, Thresholds
from tests.nms_corpus import Case, Kept, Rows, corpus, reference

CORPUS = corpus()


Nms = Callable[[Rows, RawDetections, Thresholds], Result]


@pytest.fixture(scope="module", params=["numpy", "native"])
def run(request: pytest.FixtureRequest) -> Nms:
    """Each implementation; the native one only where it can be built."""
    if request.param == "numpy":
        return numpy_nms
    request.getfixturevalue("native")
    return _by_the_library


def _by_the_library(rows: Rows, layout: RawDetections, thresholds: Thresholds) -> Result:
    found = native_nms(rows, layout, thresholds)
    assert found is not None, "the library took nothing"
    return Result(*found)


def _kept(found: Result) -> list[Kept]:
    return [Kept(*k) for k in zip(found.rows.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)]


@pytest.mark.parametrize("case", [c for c in CORPUS if c.kept is not None], ids=lambda c: c.name)
def test_the_definition_gives_what_a_person_worked_out(case: Case) -> None:
    assert tuple(k.row for k in reference(case.rows, case.layout, case.thresholds)) == case.kept


@pytest.mark.parametrize("case", CORPUS, ids=lambda c: c.name)
def test_the_corpus_agrees_in_rows_labels_and_every_bit_of_the_scores(case: Case, run: Nms) -> None:
    found = run(case.rows, case.layout, case.thresholds)
    assert _kept(found) == reference(case.rows, case.layout, case.thresholds)


WITH_OBJ = [
    c for c in CORPUS if c.layout.score == "obj*cls" and not (c.rows[:, slice(*c.layout.cls)] > 1).any()
]  # 1 is the most


@pytest.mark.parametrize("case", WITH_OBJ, ids=lambda c: c.name)
def test_a_column_of_ones_is_as_good_as_no_objectness(case: Case, run: Nms) -> None:
    """As YOLOv6 has it: numpy then multiplies nothing, and every bit stays."""
    rows = case.rows.copy()
    assert case.layout.obj is not None
    rows[:, case.layout.obj[0]] = 1
    found = run(rows, case.layout, case.thresholds)
    assert _kept(found) == reference(rows, case.layout, case.thresholds)
    without = run(rows, replace(case.layout, obj=None), case.thresholds)
    assert _kept(without) == _kept(found)


@pytest.mark.parametrize("case", CORPUS, ids=lambda c: c.name)
def test_both_implementations_give_the_same_bytes(case: Case, native: Path) -> None:
    _assert_same(_by_the_library(case.rows, case.layout, case.thresholds), case.rows, case.layout, case.thresholds)


def _assert_same(found: Result, rows: Rows, layout: RawDetections, thresholds: Thresholds) -> None:
    expected = numpy_nms(rows, layout, thresholds)
    for name in ("rows", "boxes", "scores", "labels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), name
    assert found.candidates == expected.candidates


def test_the_corpus_has_cases_that_an_offset_for_each_class_would_decide_otherwise() -> None:
    (case,) = [c for c in CORPUS if c.name == "pairs near the threshold in 80 classes"]
    moved = case.rows.copy()
    moved[:, :2] += 4096 * moved[:, 5:].argmax(axis=1, keepdims=True)
    assert reference(moved, case.layout, case.thresholds) != reference(case.rows, case.layout, case.thresholds)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, RawDetections, Thresholds]:
    """Few positions, few sizes and few scores, so that ties, equal boxes and exact thresholds are common."""
    classes = draw(st.integers(1, 3))
    products, alone = RawDetections(cls=(5, 5 + classes)), RawDetections(obj=None, cls=(4, 4 + classes))
    layout = draw(st.sampled_from([products, alone, RawDetections(cls_counts=False)]))
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


@given(
    problem=problems(),
    few=st.sampled_from([0, 2, 128]),
    block=st.sampled_from([1, 2, 3, 64]),
    pairs=st.sampled_from([0, 1, 64]),
    one_by_one=st.sampled_from([0, 24]),
    of_several=st.sampled_from([0, 24]),
    most_meetings=st.sampled_from([2, 99]),
    clear=st.sampled_from([few_boxes.CLEAR, 10]),
    many_pairs=st.sampled_from([0, 20, 2000]),
    looped=st.sampled_from([0, 3, 64]),
)
def test_any_rows_give_what_the_definition_says_one_by_one_at_once_in_blocks_of_any_size_and_in_pairs(
    problem: tuple[Rows, RawDetections, Thresholds], few: int, block: int, pairs: int, **limits: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms_module, "FEW", few)
        patch.setattr(nms_module, "BLOCK", block)
        patch.setattr(nms_module, "PAIRS", pairs)
        for name, value in limits.items():
            patch.setattr(few_boxes, name.upper(), value)
        assert _kept(numpy_nms(*problem)) == reference(*problem)


@given(
    seed=st.integers(0, 2**32), count=st.integers(1, 400), classes=st.integers(1, 40), side=st.sampled_from([60, 600])
)
def test_crowds_keep_the_same_boxes_at_once_in_blocks_and_in_pairs(
    seed: int, count: int, classes: int, side: int
) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.random((count, 2), np.float32) * np.float32(side)
    boxes = np.concatenate((corner, corner + rng.random((count, 2), np.float32) * np.float32(40)), axis=1)
    labels = rng.integers(0, classes, count)
    found = []
    # Few boxes, and pairs, times as many boxes: all at once, in blocks, in pairs, and the usual.
    for few, pairs in ((128, 0), (0, -1), (0, 400), (128, 16)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nms_module, "FEW", few)
            patch.setattr(nms_module, "PAIRS", pairs)
            found.append(suppress(boxes, labels, 0.3, 100).tolist())
    assert all(each == found[0] for each in found)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda pair: pair[0] < pair[1])),
    looped=st.sampled_from([0, 2, 64]),
    rounds=st.integers(0, 8),
)
def test_what_is_left_of_pairs_in_any_order_is_what_is_left_box_by_box(
    pairs: list[tuple[int, int]], looped: int, rounds: int
) -> None:
    kept: list[int] = []
    for box in range(31):
        if not any((other, box) in pairs for other in kept):
            kept.append(box)
    first, second = np.array(pairs, np.intp).reshape(-1, 2).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_boxes, "LOOPED", looped)
        patch.setattr(few_boxes, "ROUNDS", rounds)
        assert left_over(first, second, 31).tolist() == kept


@given(problem=problems(), half=st.booleans())
def test_any_rows_give_the_same_bytes_by_the_library(
    native: Path, problem: tuple[Rows, RawDetections, Thresholds], half: bool
) -> None:
    rows, layout, thresholds = problem
    if half:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float16)
    found = _by_the_library(rows, layout, thresholds)
    _assert_same(found, rows, layout, thresholds)
    assert _kept(found) == reference(rows, layout, thresholds)


@given(seed=st.integers(0, 2**32), count=st.integers(0, 400), classes=st.integers(1, 40), topk=st.integers(1, 300))
def test_crowds_give_the_same_bytes_by_the_library(
    native: Path, seed: int, count: int, classes: int, topk: int
) -> None:
    rng = np.random.default_rng(seed)
    layout = RawDetections(cls=(5, 5 + classes))
    rows = rng.random((count, layout.columns), np.float32)
    rows[:, :4] *= (60, 60, 30, 30)
    rows[:, 5:] = np.round(rows[:, 5:], 2)
    thresholds = Thresholds(conf=0.1, iou=0.3, max_det=int(rng.integers(1, 100)), pre_nms_topk=topk)
    _assert_same(_by_the_library(rows, layout, thresholds), rows, layout, thresholds)


def test_half_precision_rows_are_read_as_the_numbers_that_they_hold(run: Nms) -> None:
    case = next(c for c in CORPUS if c.name == "a crowd of one class, top-k 1000")
    half = case.rows.astype(np.float16)
    wide = run(half.astype(np.float32), case.layout, case.thresholds)
    assert _kept(run(half, case.layout, case.thresholds)) == _kept(wide)
    assert run(half, case.layout, case.thresholds).boxes.dtype == np.float32


def test_every_half_is_widened_as_numpy_does(native: Path) -> None:
    """All 65,536 as the score of a row of their own: those over the threshold come back with their value."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    rows = np.zeros((65536, 5), np.float16)
    rows[:, 4] = halves
    found = _by_the_library(
        rows, RawDetections(obj=None, cls=(4, 5)), Thresholds(conf=0, max_det=65536, pre_nms_topk=65536)
    )
    expected = np.flatnonzero(np.isfinite(halves) & (halves > 0))
    assert found.candidates == len(expected)
    order = np.argsort(found.rows)
    np.testing.assert_array_equal(found.rows[order], expected)
    np.testing.assert_array_equal(found.scores[order], halves[expected].astype(np.float32))


@given(problem=problems(), far=st.sampled_from([0.0, 3e38, 1e39, 1e300]))
def test_double_precision_rows_are_rounded_first(problem: tuple[Rows, RawDetections, Thresholds], far: float) -> None:
    """What is infinite in float32 is so, and its row is ignored."""
    rows, layout, thresholds = problem
    wide = rows.astype(np.float64) * (1 + 1e-12)
    wide[::3, :1] += far
    with np.errstate(over="ignore"):
        expected = reference(wide.astype(np.float32), layout, thresholds)
    assert _kept(nms(wide, layout, thresholds)) == expected


def test_candidates_are_counted_before_top_k(run: Nms) -> None:
    case = next(c for c in CORPUS if c.name == "more candidates than top-k")
    assert run(case.rows, case.layout, case.thresholds).candidates == 40


def test_nms_is_one_or_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in CORPUS if c.name == "a crowd of one class, top-k 1000")
    _assert_same(nms(case.rows, case.layout, case.thresholds), case.rows, case.layout, case.thresholds)
    monkeypatch.setattr(nms_module, "native_nms", lambda *_, **__: None)
    _assert_same(nms(case.rows, case.layout, case.thresholds), case.rows, case.layout, case.thresholds)


@pytest.mark.parametrize("layout", [RawDetections(cls=(5, 6)), RawDetections(obj=None, cls=(4, 5))])
@pytest.mark.parametrize("value", [0.1, 1.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_kept_does_not_hold_the_networks_output(
    run: Nms, layout: RawDetections, value: float, multi_label: bool
) -> None:
    rows = np.full((50, 6), value, np.float32)
    output = weakref.ref(rows)
    kept = (
        numpy_nms(rows, layout, Thresholds(), Choice(multi_label)) if multi_label else run(rows, layout, Thresholds())
    )
    assert len(kept.rows) == (1 if value == 1 else 0)
    del rows
    assert output() is None


@given(
    seed=st.integers(0, 2**32), count=st.integers(1, 60), classes=st.integers(1, 5),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e4, 1e9, 1e38]),
)  # fmt: skip
def test_pairs_that_may_meet_are_all_that_do(seed: int, count: int, classes: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    left = rng.choice([-1, 0, 0.1, 0.25, 0.7], count) * scale
    boxes = np.zeros((count, 4), np.float32)
    boxes[:, 0], boxes[:, 2] = left, left + rng.choice([-0.1, 0, 0.1, 0.15, 0.5], count) * scale
    labels = rng.integers(0, classes, count)
    found = pairs_that_may_meet(boxes, labels, count * count)
    if found is None:
        assert scale >= 1e9
        return
    pairs = list(zip(*(each.tolist() for each in found), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(i < j and labels[i] == labels[j] for i, j in pairs)
    low, high = boxes[:, 0], boxes[:, 2]
    meet = np.minimum(high[:, None], high) > np.maximum(low[:, None], low)
    meet &= labels[:, None] == labels
    assert set(pairs) >= set(zip(*(each.tolist() for each in np.triu(meet, 1).nonzero()), strict=True))
    assert pairs_that_may_meet(boxes, labels, len(pairs) - 1) is None
