"""What so many runs can say about a ratio of two medians, and what they cannot.

Runs that follow each other are alike: whatever else the machine does meets several of them. So the bootstrap draws
blocks of consecutive runs, as long as runs stay correlated, and its interval is wider than one of independent runs
(H. R. Kuensch, "The jackknife and the bootstrap for general stationary observations", 1989). Two sittings can differ in
more than that, in the machine's state, for example: no run of either shows it, and no interval holds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["CONFIDENCE", "DRAWS", "FEWEST", "Ratio", "Verdict", "ratio_of_medians"]

CONFIDENCE = 0.95
DRAWS = 2000
FEWEST = 10
"""Runs below which the interval is open: the middle of a handful of runs says nothing about its own spread."""
SEED = 0
VALUES_AT_ONCE = 1 << 20  # of draws in memory
CORRELATED = 0.1  # autocorrelation from which on runs count as alike

Verdict = Literal["slower", "faster", "same", "unsure"]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, new over old, and its interval of :data:`CONFIDENCE`; an open interval is 0 to infinity.

    ``blocks``: how many consecutive runs were drawn together, of the old and of the new.
    """

    value: float
    low: float
    high: float
    blocks: tuple[int, int] = (1, 1)

    def verdict(self, margin: float) -> Verdict:
        """Say whether new is slower, faster or the same, by more or less than ``margin`` (a share), or unsure.

        ``slower`` and ``faster``: the whole interval lies beyond the margin; ``same``: all of it lies within.
        """
        if self.low > 1 + margin:
            return "slower"
        if self.high < 1 - margin:
            return "faster"
        return "same" if 1 - margin <= self.low and self.high <= 1 + margin else "unsure"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: None where the interval is open."""
        facts = asdict(self)
        return facts | {"high": self.high if math.isfinite(self.high) else None, "blocks": list(self.blocks)}

    def __str__(self) -> str:
        if not math.isfinite(self.high):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio_of_medians(old: Sequence[float], new: Sequence[float], *, paired: bool = False) -> Ratio:
    """Return median(new) / median(old) with its interval.

    Args:
        old, new: times above 0 of at least one run each, in the order in which they were taken.
        paired: the runs were taken in turn, so that one of each is of the same round: rounds are drawn, and what
            slowed a whole round down cancels out.
    """
    before, after = np.asarray(old, np.float64), np.asarray(new, np.float64)
    value = float(np.median(after) / np.median(before))
    if paired:
        count = min(len(before), len(after))
        before, after = before[:count], after[:count]
    lengths = (_block(before), _block(after))
    if paired:
        lengths = (max(lengths), max(lengths))
    if min(len(before), len(after)) < FEWEST:
        return Ratio(value, 0.0, math.inf, lengths)
    random = np.random.default_rng(SEED)
    at_once = max(1, VALUES_AT_ONCE // max(len(before), len(after)))
    parts = []
    for start in range(0, DRAWS, at_once):
        draws = min(at_once, DRAWS - start)
        first = _drawn(random, draws, len(before), lengths[0])
        second = first if paired else _drawn(random, draws, len(after), lengths[1])
        parts.append(np.median(after[second], axis=1) / np.median(before[first], axis=1))
    ratios = np.concatenate(parts)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, (tail, 100 - tail))
    return Ratio(value, min(float(low), value), max(float(high), value), lengths)


def _block(values: Array) -> int:
    """Return the length of a block: twice the number of runs over which values stay correlated, and a fifth at most."""
    ranks = values.argsort().argsort().astype(np.float64)  # ranks, so that one very slow run does not decide
    ranks -= ranks.mean()
    power, most = float(ranks @ ranks), max(1, len(values) // 5)
    if not power or np.ptp(values) == 0:
        return 1
    for lag in range(1, most):
        if float(ranks[lag:] @ ranks[:-lag]) / power < CORRELATED:
            return min(most, max(1, 2 * (lag - 1)))
    return most


def _drawn(random: np.random.Generator, draws: int, count: int, length: int) -> Array:
    """Return ``count`` indices a draw: consecutive ones in blocks that begin anywhere, the start follows on the end."""
    starts = random.integers(0, count, (draws, -(-count // length), 1))
    indices: Array = (starts + np.arange(length)).reshape(draws, -1)[:, :count] % count
    return indices
