"""The smallest set of layers with which a condition holds, by few trials of an order in which they are expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

__all__ = ["EVERY", "first_enough", "smallest_set"]

EVERY = 8
"""So many candidates at most are tried in every combination."""

PRUNING = 32
"""Trials at most that look for layers which a set does not need."""

Holds = Callable[[tuple[str, ...]], bool]


def smallest_set(ranked: Sequence[str], holds: Holds, most: int | None = None) -> tuple[str, ...] | None:
    """Return a small set with which ``holds`` is true; None: there is none.

    First the fewest of the first layers are looked for, then layers are left out that are not needed: each one where
    :data:`PRUNING` trials are enough for it. Of at most :data:`EVERY` candidates the result has the fewest layers that
    any set has; of more, it is a set of which none of the layers tried can be left out.

    Args:
        ranked: the candidates, in the order in which they are expected to matter.
        holds: whether the condition holds with these layers, in the order of ``ranked``.
        most: how many of the first candidates may be in the set; None: all.
    """
    most = len(ranked) if most is None else min(most, len(ranked))
    if len(ranked) <= EVERY:
        sets = (each for size in range(1, most + 1) for each in combinations(ranked, size))
        return next((each for each in sets if holds(each)), None)
    count = first_enough(most, lambda count: holds(tuple(ranked[:count])))
    return None if count is None else _pruned(tuple(ranked[:count]), holds)


def first_enough(most: int, enough: Callable[[int], bool]) -> int | None:
    """Return the least count from 1 to ``most`` that is enough, if every greater one is; None: not even ``most`` is.

    Counts are doubled until one is enough, because small ones are cheap to look for and likely.
    """
    low, high = 0, 1
    while high < most and not enough(high):
        low, high = high, 2 * high
    if high >= most:
        if most < 1 or not enough(most):
            return None
        high = most
    while high - low > 1:
        count = (low + high) // 2
        low, high = (low, count) if enough(count) else (count, high)
    return high


def _pruned(kept: tuple[str, ...], holds: Holds) -> tuple[str, ...]:
    """Leave out parts of a set that it does not need: first halves of it, in the end single layers."""
    size, left = len(kept) // 2, PRUNING
    while size >= 1:
        start = len(kept)
        while start > 0 and left > 0:  # from the end, where those lie that matter least
            without = kept[: max(0, start - size)] + kept[start:]
            start -= size
            left -= 1
            if without and holds(without):
                kept = without
        size //= 2
    return kept
