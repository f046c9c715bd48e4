"""Dense outputs of two networks, matched: classes of pixels, grey levels, values, each on both sides of its limit."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from deploykit.export.matching import Matching
from deploykit.export.outputs import export_adapter_of
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import DenseOutput, InputSpec, ModelSpec

LIMITS = Tolerance()
Task = Literal["segment", "classify", "restore", "features"]


def matched(task: Task, expected: Array, found: Array, **canvas: object) -> Matching:
    classes = ("a", "b", "c")[: len(expected)] if task in ("segment", "classify") else ()
    spec = ModelSpec(task, InputSpec(size=(4, 4), **canvas), DenseOutput(), classes)  # type: ignore[arg-type]
    (matching,) = export_adapter_of(spec).match(("a", "b", "one"), [expected], [found], LIMITS)
    return matching


def logits(*channels: float) -> Array:
    """A pixel of these logits among fifteen that are sure of the first class."""
    values = np.zeros((len(channels), 4, 4))
    values[0] = 8.0
    values[:, 1, 2] = channels
    return values


@pytest.mark.parametrize(("share", "excused"), [(0.5, True), (0.95, True), (1.05, False), (2.0, False)])
def test_a_pixel_whose_best_classes_were_equal_may_have_either(share: float, excused: bool) -> None:
    """Within twice what a value may be off, which is a share of the largest logit."""
    apart = share * 2 * LIMITS.dense * 8.0
    result = matched("segment", logits(3.0, 3.0 - apart, 0.0), logits(3.0, 3.0 + 1e-6, 0.0))
    assert (result.what, result.expected, result.found, result.matched) == ("classes", 16, 16, 15)
    assert result.borderline == (2 if excused else 0)
    assert result.ok is excused


def test_the_reference_decides_what_was_equal() -> None:
    sure, undecided = logits(3.0, 1.0, 0.0), logits(3.0, 3.0 + 1e-6, 0.0)
    result = matched("segment", sure, undecided)
    assert (result.matched, result.borderline, result.ok) == (15, 0, False)


def test_one_channel_is_a_class_against_none() -> None:
    expected = np.full((1, 4, 4), 2.0)
    found = expected.copy()
    found[0, 0, 0] = -2.0
    assert matched("segment", expected, expected).ok
    result = matched("segment", expected, found)
    assert (result.expected, result.matched, result.ok) == (16, 15, False)
    assert result.max_score == pytest.approx(1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2)))


def test_the_class_of_an_image_is_one_pixel() -> None:
    result = matched("classify", np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 0.5]))
    assert (result.expected, result.matched, result.borderline, result.ok) == (1, 0, 0, False)


@pytest.mark.parametrize(("levels", "ok"), [(0.99, True), (-0.99, True), (1.01, False), (-1.01, False)])
def test_restored_values_are_compared_as_grey_levels(levels: float, ok: bool) -> None:
    expected = np.full((3, 4, 4), 0.5)
    for scale, std in ((1 / 255, (1.0, 1.0, 1.0)), (1.0, (1.0, 1.0, 1.0)), (1 / 255, (0.5, 0.25, 0.125))):
        found = expected.copy()
        found[2, 3, 3] += levels * scale / std[2]
        result = matched("restore", expected, found, scale=scale, std=std)
        assert (result.what, result.expected, result.matched) == ("grey levels", 48, 47 + ok)
        assert result.ok is ok


@pytest.mark.parametrize(("share", "ok"), [(0.95, True), (1.05, False)])
def test_features_are_compared_as_they_are(share: float, ok: bool) -> None:
    expected = np.array([-20.0, 1.0, 3.0])
    result = matched("features", expected, expected + np.array([0, 0, share * LIMITS.dense * 20.0]))
    assert (result.what, result.expected, result.matched, result.ok) == ("values", 3, 2 + ok, ok)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_does_not_match(value: float) -> None:
    for task in ("segment", "restore", "features"):
        expected = np.full((3, 4, 4), 0.5)
        expected[0] = 1.0
        found = expected.copy()
        found[1, 2, 2] = value
        assert not matched(task, expected, found).ok  # type: ignore[arg-type]
        assert not matched(task, found, found).ok  # type: ignore[arg-type]
