"""The NMS of oriented boxes in the native library: the corpus, and numpy's decisions on any boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.runtime.native.library import SWITCH, native_suppressed
from deploykit.runtime.postprocess.nms import Choice
from deploykit.runtime.postprocess.rotated_nms import distances, limit_of, numpy_removed, rotated_nms, shapes_of
from deploykit.spec import Thresholds
from tests.nms_corpus import Case
from tests.rotated_corpus import TWO, corpus, reference

CONF = Thresholds()
CHOICES = (Choice(), Choice(agnostic=True), Choice(classes=(1,)))
FRESH = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("case", corpus(), ids=lambda c: c.name)
def test_the_corpus_agrees(native: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr("deploykit.runtime.postprocess.rotated_nms.numpy_removed", lambda *_: pytest.fail("numpy"))
    found = rotated_nms(case.rows, case.layout, case.thresholds)
    assert found.rows.tolist() == [k.row for k in reference(case.rows, case.layout, case.thresholds)]


@FRESH
@given(st.integers(0, 2**32), st.integers(0, 200), st.floats(0, 1))
def test_it_decides_as_numpy_does(native: Path, seed: int, count: int, iou: float) -> None:
    """Boxes of all sizes, the same ones again, and some without area; no pair is at the limit to the last digits."""
    random = np.random.default_rng(seed)
    parts = random.uniform(0, 200, (count, 2)), 10 ** random.uniform(-2, 3, (count, 2)), random.uniform(-9, 9, count)
    boxes = np.column_stack(parts).astype(np.float32)
    if count:
        boxes[random.integers(0, count, count // 4)] = boxes[0]
        boxes[random.integers(0, count, count // 9), 2] = 0
    shapes, labels, limit = shapes_of(boxes), random.integers(0, 3, count), limit_of(iou)
    apart = distances(shapes, shapes)
    sure = not (np.abs(apart[np.isfinite(apart)] - limit) <= 1e-12 * max(limit, 1e-3)).any()
    found = native_suppressed(shapes, labels, limit)
    assert found is not None
    assert found.dtype == bool
    if sure or limit in (0, np.inf):
        np.testing.assert_array_equal(found, numpy_removed(shapes, labels, limit))


def test_a_pair_at_the_limit_is_decided_by_the_distance_that_numpy_has(native: Path) -> None:
    """Where no logarithm is in it: equal boxes moved along a side, so that both parts are exact."""
    boxes = np.array([[0, 0, 12, 12, 0], [12, 0, 12, 12, 0]], np.float32)  # a distance of 1.5
    shapes, labels = shapes_of(boxes), np.zeros(2, np.int64)
    assert distances(shapes, shapes)[0, 1] == 1.5
    for limit, gone in ((1.5, [False, False]), (np.nextafter(1.5, 2), [False, True])):
        for found in (native_suppressed(shapes, labels, limit), numpy_removed(shapes, labels, limit)):
            assert found is not None
            assert found.tolist() == gone


def test_all_labels_alike_and_wanted_ones(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = np.float32([[80, 60, 60, 20, 0, 0, 0.5], [82, 60, 60, 20, 0, 0, 0.5]])
    boxes[0, 4], boxes[1, 5] = 0.9, 0.8
    rows = [rotated_nms(boxes, TWO, CONF, choice).rows.tolist() for choice in CHOICES]
    assert rows == [[0, 1], [0], [1]]
    monkeypatch.setenv(SWITCH, "0")
    assert native_suppressed(shapes_of(boxes[:, :5]), np.zeros(2), 1.0) is None
    assert [rotated_nms(boxes, TWO, CONF, choice).rows.tolist() for choice in CHOICES] == rows
