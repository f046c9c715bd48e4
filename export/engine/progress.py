"""The progress of an engine's build: one rising share from the phases that TensorRT reports."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from deploykit.progress import Progress

__all__ = ["BuildProgress", "monitor"]


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class BuildProgress:
    """Turns a tree of phases with steps into one share from 0 to 1 that never falls.

    A phase's share is that of its finished steps, plus the share of the phase inside the running step. Several phases
    may follow each other inside one step, and their number is not known in advance; so the share stays where it would
    fall.

    Args:
        progress: receives the name of the outermost running phase and the share, from the building thread.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self.cancelled = False

    def cancel(self) -> None:
        """End the build at its next step."""
        self.cancelled = True
        self._progress.message("interrupted: TensorRT ends the build at its next step")

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase, inside ``parent`` if that runs."""
        with self._lock:
            self._phases[name] = _Phase(name, parent if parent in self._phases else None, max(steps, 1))
        self._report()

    def step(self, name: str, number: int) -> bool:
        """Finish step ``number`` (from 0) of a phase; return False to end the build."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done = max(phase.done, min(number + 1, phase.steps))
        self._report()
        return not self.cancelled

    def finish(self, name: str) -> None:
        """End a phase and the phases inside it."""
        with self._lock:
            ended = {name}
            for phase in list(self._phases.values()):  # in the order of their start: parents first
                if phase.parent in ended:
                    ended.add(phase.name)
            done = [self._phases.pop(each) for each in ended if each in self._phases]
        if any(phase.parent is None for phase in done):
            self._share = 1.0
            self._progress.share(name, 1.0)
        else:
            self._report()

    def _report(self) -> None:
        with self._lock:
            root = next((p for p in self._phases.values() if p.parent is None), None)
            if root is None:
                return
            self._share = max(self._share, self._of(root))
            name, share = root.name, self._share
        self._progress.share(name, share)

    def _of(self, phase: _Phase) -> float:
        inner = max((self._of(p) for p in self._phases.values() if p.parent == phase.name), default=0.0)
        return min(1.0, (phase.done + (inner if phase.done < phase.steps else 0.0)) / phase.steps)


def monitor(trt: Any, progress: BuildProgress) -> Any:
    """Return an ``IProgressMonitor`` of this TensorRT that reports to ``progress``.

    TensorRT calls it from its own threads, and an exception in it would end the process, so it raises none.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
