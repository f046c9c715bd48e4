"""What float32 was measured to cost, by hand-made measurements: which tolerance it widens, and what it explains."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from deploykit.export.parity.detections import Matching
from deploykit.export.parity.float32_noise import SAFETY_FACTOR, Float32Cost, relaxed_tolerance
from deploykit.export.parity.report import ParityReport
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.spread import NO_SPREAD, QUANTILES
from deploykit.runtime.parity.tolerance import Tolerance

FP32 = Tolerance()
NAMES = ("the checkpoint", "PyTorch", "noise")


def difference(values: str, used: float, spread: tuple[float, ...] = NO_SPREAD, *, dense: bool = False) -> Difference:
    return Difference(*NAMES, values, 10, used, used, (0, 0, 0.0, 0.0), dense=dense, spread=spread)


def report(*differences: Difference, score: float = 0.0, keypoint: float | None = None) -> ParityReport:
    matching = Matching(*NAMES, "detections", 1, 1, 1, 0, 1.0, score, keypoint)
    return ParityReport({}, differences, (matching,))


def cost(*differences: Difference, score: float = 0.0, keypoint: float | None = None) -> Float32Cost:
    return Float32Cost.of({"PyTorch": [report(*differences, score=score, keypoint=keypoint)]})


def test_the_cost_is_the_largest_of_all_measurements() -> None:
    measured = Float32Cost.of(
        {
            "PyTorch": [
                report(difference("boxes", 2.0, (0.1, 0.5, 0.6)), score=1e-5, keypoint=0.02),
                report(difference("boxes", 1.0, (0.2, 0.3, 0.9)), score=3e-5),
            ],
            "ONNX Runtime": [report(difference("keypoints", 4.0), difference("scores", 5.0), keypoint=0.01)],
        }
    )
    assert measured.used == {"PyTorch": {"pixels": 2.0}, "ONNX Runtime": {"pixels": 4.0, "probability": 5.0}}
    assert measured.spread["boxes"] == (0.2, 0.5, 0.9)
    assert (measured.share("pixels"), measured.share("probability"), measured.share("masks")) == (4.0, 5.0, 0.0)
    assert (measured.score, measured.keypoint) == (3e-5, 0.02)


@pytest.mark.parametrize(
    ("values", "dense", "widened"),
    [
        ("boxes", False, ("pixels", "relative", "same_box")),
        ("keypoints", False, ("pixels", "relative", "same_box")),
        ("scores", False, ("probability",)),
        ("visibility", False, ("probability",)),
        ("masks", False, ("max_score",)),
        ("output", True, ("dense",)),
    ],
)
def test_each_kind_of_value_widens_its_own_tolerance(values: str, dense: bool, widened: tuple[str, ...]) -> None:
    limits = relaxed_tolerance(FP32, cost(difference(values, 10.0, dense=dense)))
    factor = SAFETY_FACTOR * 10.0
    grown = {name: pytest.approx(factor * getattr(FP32, name)) for name in widened if name != "same_box"}
    if "same_box" in widened:  # corners may at least be as far off as values
        grown["same_box"] = pytest.approx(factor * FP32.pixels)
    assert limits == replace(FP32, **grown)


@pytest.mark.parametrize("share", [1.01 / SAFETY_FACTOR, 5.0, 8.0])
def test_corners_stay_the_same_within_what_they_were_until_values_need_more(share: float) -> None:
    limits = relaxed_tolerance(FP32, cost(difference("boxes", share)))
    assert limits is not None
    assert limits.same_box == pytest.approx(max(FP32.same_box, SAFETY_FACTOR * share * FP32.pixels))


def test_scores_and_masks_share_a_tolerance_and_the_larger_need_counts() -> None:
    for masks, score, expected in ((10.0, 2e-4, 3e-3), (1.0, 2e-3, 6e-3)):
        limits = relaxed_tolerance(FP32, cost(difference("masks", masks), score=score))
        assert limits == replace(FP32, max_score=pytest.approx(expected))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_anywhere_widens_nothing(broken: float) -> None:
    wide = difference("scores", 10.0)
    assert relaxed_tolerance(FP32, cost(wide)) is not None
    assert relaxed_tolerance(FP32, cost(wide, score=broken)) is None
    assert relaxed_tolerance(FP32, cost(wide, keypoint=broken)) is None
    assert relaxed_tolerance(FP32, cost(wide, difference("output", broken, dense=True))) is None


def spread(value: float, at: int | None) -> tuple[float, ...]:
    """A spread that is so much at one quantile, or at all of them."""
    return tuple(value if at in (None, i) else 0.0 for i in range(len(QUANTILES)))


@pytest.mark.parametrize("at", [None, *range(len(QUANTILES))])
def test_each_quantile_is_held_to_what_float32_costs_there(at: int | None) -> None:
    measured = cost(difference("scores", 30.0, spread(2.0, at)))
    most = SAFETY_FACTOR * 2.0
    assert measured.explains(report(difference("scores", 80.0, spread(0.99 * most, at))))
    assert not measured.explains(report(difference("scores", 80.0, spread(1.01 * most, at))))


@pytest.mark.parametrize("at", range(len(QUANTILES)))
def test_a_quantile_may_always_be_within_the_tolerance(at: int) -> None:
    measured = cost(difference("scores", 30.0, spread(0.1, at)))
    for values in ("scores", "boxes"):  # boxes were not measured
        assert measured.explains(report(difference(values, 80.0, spread(0.99, at))))
        assert not measured.explains(report(difference(values, 80.0, spread(1.01, at))))


def test_one_comparison_that_is_not_explained_is_enough() -> None:
    measured = cost(difference("scores", 30.0, (0.5, 0.9, 2.0)), difference("boxes", 1.0))
    good, bad = difference("scores", 80.0, (0.5, 0.9, 5.9)), difference("boxes", 80.0, (0.0, 0.0, 1.1))
    assert measured.explains(report(good))
    assert not measured.explains(report(bad))
    assert not measured.explains(report(good, bad))
    assert not measured.explains(report(bad, good))


def test_the_note_tells_what_was_widened_and_nothing_else() -> None:
    measured = Float32Cost.of(
        {"PyTorch": [report(difference("scores", 12.0))], "ONNX Runtime": [report(difference("scores", 34.5))]}
    )
    limits = relaxed_tolerance(FP32, measured)
    assert limits is not None
    note = measured.note(limits)
    assert "probabilities use 12 in PyTorch and 34.5 in ONNX Runtime times their tolerance" in note
    assert f"may be off by {limits.probability:.3g}" in note
    assert "boxes" not in note
    assert "masks" not in note


@pytest.mark.parametrize(
    ("torch", "levels", "is_fault"),
    [
        (0.5, 14.0, False),
        (0.5, 16.0, True),
        (0.0, 2.9, False),
        (0.0, 3.1, True),
        (40.0, 1100.0, False),
        (0.5, math.inf, True),
    ],
)  # fmt: skip
def test_levels_that_differ_by_far_more_than_pytorch_rounds_are_a_fault(
    torch: float, levels: float, is_fault: bool
) -> None:
    measured = Float32Cost.of(
        {"PyTorch": [report(difference("boxes", torch))], "ONNX Runtime": [report(difference("boxes", levels))]}
    )
    fault = measured.optimizer_fault()
    assert bool(fault) == is_fault
    if is_fault:
        assert f"levels differ by {levels:.3g} times the tolerance of pixels" in fault
