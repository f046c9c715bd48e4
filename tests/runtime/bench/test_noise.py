"""Ratios of medians: what the interval holds, and what it may be called. Times here are drawn, never measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.bench.noise import FEWEST, Ratio, ratio_of_medians

times = st.lists(st.floats(0.1, 1000.0), min_size=FEWEST, max_size=40)


def drawn(seed: int, count: int, *, centre: float = 10.0, memory: float = 0.0) -> list[float]:
    """Times around a centre with a long tail; ``memory``: how much of a disturbance is left in the next run."""
    random, level, found = np.random.default_rng(seed), 0.0, []
    for _ in range(count):
        level = memory * level + random.normal()
        found.append(centre * math.exp(0.05 * level))
    return found


@settings(max_examples=25)
@given(times, st.floats(0.5, 2.0))
def test_the_ratio_of_scaled_times_is_the_scale_and_the_interval_holds_the_value(old: list[float], by: float) -> None:
    found = ratio_of_medians(old, [by * value for value in old], paired=True)
    assert found.value == pytest.approx(by)
    assert found.low <= found.value <= found.high
    # In rounds that are scaled as a whole nothing is left to chance.
    assert (found.low, found.high) == pytest.approx((by, by))


@settings(max_examples=15)
@given(times, times)
def test_old_and_new_exchanged_give_the_reciprocal(old: list[float], new: list[float]) -> None:
    assert ratio_of_medians(old, new).value * ratio_of_medians(new, old).value == pytest.approx(1.0)


def test_the_interval_of_equal_sittings_holds_one_about_as_often_as_it_says() -> None:
    held = sum(
        found.low <= 1.0 <= found.high
        for found in (ratio_of_medians(drawn(2 * i, 60), drawn(2 * i + 1, 60)) for i in range(60))
    )
    assert held >= 52  # of 60; 57 are expected, 51 or fewer happen by chance less than once in a hundred


def test_runs_that_stay_alike_widen_the_interval() -> None:
    """Independent draws of such runs would call equal sittings different most of the time."""
    pairs = [(drawn(2 * i, 120, memory=0.9), drawn(2 * i + 1, 120, memory=0.9)) for i in range(30)]
    found = [ratio_of_medians(*pair) for pair in pairs]
    random = np.random.default_rng(0)
    shuffled = [ratio_of_medians(random.permutation(a).tolist(), random.permutation(b).tolist()) for a, b in pairs]
    held, naive = (sum(one.low <= 1.0 <= one.high for one in some) for some in (found, shuffled))
    assert held > naive
    assert held >= 20
    assert np.mean([max(one.blocks) for one in found]) > np.mean([max(one.blocks) for one in shuffled])


def test_a_slowdown_is_seen_and_its_absence_too() -> None:
    old = drawn(0, 200)
    assert ratio_of_medians(old, drawn(1, 200, centre=12.0)).verdict(0.05) == "slower"
    assert ratio_of_medians(old, drawn(1, 200, centre=8.0)).verdict(0.05) == "faster"
    assert ratio_of_medians(old, drawn(1, 200)).verdict(0.05) == "same"


def test_paired_rounds_show_what_sittings_cannot() -> None:
    """A machine whose speed wanders by half, and a variant that is faster by a twentieth."""
    waves = 1 + 0.5 * np.sin(np.arange(100) / 5)
    old = (waves * np.array(drawn(0, 100, centre=10.0))).tolist()
    new = (waves * np.array(drawn(0, 100, centre=9.5))).tolist()
    assert ratio_of_medians(old, new, paired=True).verdict(0.03) == "faster"
    assert ratio_of_medians(old, new[37:] + new[:37]).verdict(0.03) == "unsure"


def test_few_runs_leave_the_interval_open() -> None:
    found = ratio_of_medians([1.0] * 100, [9.0] * (FEWEST - 1))
    assert (found.value, found.low, found.high) == (9.0, 0.0, math.inf)
    assert found.verdict(0.05) == "unsure"
    assert str(found) == "9.00"
    assert found.to_dict()["high"] is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.06, 1.2, "slower"), (1.04, 1.2, "unsure"), (0.96, 1.04, "same"), (0.94, 1.04, "unsure"),
        (0.8, 0.94, "faster"), (0.8, 0.96, "unsure"),
    ],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Ratio((low + high) / 2, low, high).verdict(0.05) == verdict
