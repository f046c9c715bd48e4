"""The time that each step of an export takes."""

from __future__ import annotations

import time

from deploykit.progress import SILENT, Progress, Within

__all__ = ["StepTimer"]


class StepTimer(Within):
    """A progress that times the steps and passes everything on."""

    def __init__(self, progress: Progress = SILENT) -> None:
        super().__init__("", progress)
        self._starts: list[tuple[str, float]] = []

    def step(self, name: str) -> None:
        """Begin a step; see :meth:`Progress.step`."""
        self._starts.append((name, time.perf_counter()))
        super().step(name)

    def seconds(self) -> dict[str, float]:
        """Return seconds by step. Details of a step (``checking: noise``) are added up; the last step ends now."""
        ends = [start for _, start in self._starts[1:]] + [time.perf_counter()]
        total: dict[str, float] = {}
        for (step, start), end in zip(self._starts, ends, strict=True):
            name = step.split(":")[0]
            total[name] = round(total.get(name, 0.0) + end - start, 3)
        return total
