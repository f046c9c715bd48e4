"""What a long job is doing, and how long each of its steps took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Clock"]


@dataclass
class Clock:
    """Tells the caller each step, and how long each took."""

    on_step: Callable[[str], None]
    _marks: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, step: str) -> None:
        self._marks.append((step, time.perf_counter()))
        self.on_step(step)

    def seconds(self) -> dict[str, float]:
        """Seconds by step, a step's details (``checking: noise``) added up."""
        ends = [start for _, start in self._marks[1:]] + [time.perf_counter()]
        total: dict[str, float] = {}
        for (step, start), end in zip(self._marks, ends, strict=True):
            name = step.split(":")[0]
            total[name] = round(total.get(name, 0.0) + end - start, 3)
        return total
