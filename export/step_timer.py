"""The time that each step of an export takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from deploykit.progress import SILENT, Progress, Within

__all__ = ["StepTimer"]

LOG = logging.getLogger(__name__)

LONG = 30.0  # seconds

SHORTCUTS = {
    "checking": "the verification computes the model in float64 on the sample and on noise: a smaller --img is faster; "
    "--no-check skips it and writes a file that nothing verified",
    "quantizing": "quantization measures the network on images: fewer of them (--calib-size 8), one method "
    "(--calib-method minmax) and no search for layers to keep (--keep none) are faster, and may cost accuracy",
}
"""A long step -> what makes it faster, and what that costs."""


class StepTimer(Within):
    """A progress that times the steps and passes everything on.

    Args:
        progress: hears everything.
        shortcuts: step -> what can be given up to make it faster; said once, when it has taken half a minute.
    """

    def __init__(self, progress: Progress = SILENT, shortcuts: Mapping[str, str] = SHORTCUTS) -> None:
        super().__init__("", progress)
        self._starts: list[tuple[str, float]] = []
        self._shortcuts = dict(shortcuts)

    def step(self, name: str) -> None:
        """Begin a step; see :meth:`Progress.step`."""
        now = time.perf_counter()
        if self._starts:
            LOG.debug("%s took %.2f s", self._starts[-1][0], now - self._starts[-1][1])
        self._starts.append((name, now))
        super().step(name)
        self._offer_shortcut()

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        super().share(what, done)
        self._offer_shortcut()

    def _offer_shortcut(self) -> None:
        now = self._starts[-1][0].split(":")[0] if self._starts else ""
        if now in self._shortcuts and self.seconds()[now] > LONG:
            self.message(self._shortcuts.pop(now))

    def seconds(self) -> dict[str, float]:
        """Return seconds by step. Details of a step (``checking: noise``) are added up; the last step ends now."""
        ends = [start for _, start in self._starts[1:]] + [time.perf_counter()]
        total: dict[str, float] = {}
        for (step, start), end in zip(self._starts, ends, strict=True):
            name = step.split(":")[0]
            total[name] = round(total.get(name, 0.0) + end - start, 3)
        return total
