"""Timing variants in turn, so that what else the machine does meets all of them alike."""

import time
from collections.abc import Callable, Mapping


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Milliseconds of each variant, a value a round; the ``warmup`` rounds before are not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if number >= warmup:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times
