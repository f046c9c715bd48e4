"""Timing variants in turn, so that what else the machine does meets all of them alike."""

import random
import time
from collections.abc import Callable, Mapping


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    rest: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each variant by a ``clock``, a value a round; the ``warmup`` rounds before are not counted.

    Every round has an order of its own (seeded), so that what one variant leaves in a cache serves no other one alone.
    ``rest`` seconds pass before each run: threads of some libraries look for work for a while after theirs and would
    take the cores from whoever comes next.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    chance = random.Random(0)
    for number in range(warmup + rounds):
        for name in chance.sample(list(variants), len(variants)):
            if rest:
                time.sleep(rest)
            start = clock()
            variants[name]()
            if number >= warmup:
                times[name].append((clock() - start) * 1e3)
    return times
