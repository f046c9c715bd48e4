"""Further layers in higher precision until the accuracy gate holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import onnx_ir as ir

from deploykit.errors import AccuracyError, ParityError
from deploykit.export.precision.convert import Further, PrecisionReport
from deploykit.export.precision.search.minimal import first_enough
from deploykit.progress import SILENT, Progress
from deploykit.runtime.evaluate.compare import Comparison

__all__ = ["keep_for_accuracy"]

STEPS = 16
"""Numbers of further layers that are told apart: each number that is tried is a conversion and an evaluation."""

W = TypeVar("W")


class Gated(Protocol):
    """The evaluations of a gate: see :class:`deploykit.export.accuracy_gate.Gated`."""

    metric: str

    def compared(self, file: Path) -> Comparison:
        """Evaluate an export, and compare it with its source."""

    def holds(self, comparison: Comparison) -> bool:
        """Return whether the metric falls by no more than is allowed."""

    def check(self, comparison: Comparison) -> float:
        """Return how far the metric falls, in points; AccuracyError: by more than is allowed."""


def keep_for_accuracy(
    gated: Gated, file: Path, further: Further, write: Callable[[ir.Model], W], progress: Progress = SILENT
) -> tuple[PrecisionReport, Comparison, W]:
    """Keep the fewest further layers with which accuracy falls by no more than is allowed, in steps of a sixteenth.

    They are the first ones of the ranking by the error of the outputs. At most eight networks are converted and
    evaluated.

    Args:
        gated: the evaluations.
        file: the export, which loses too much; it is replaced.
        further: converts again.
        write: writes a converted graph to the file, and reports on it.
        progress: receives the steps.

    Returns:
        The report of the conversion, the comparison, and the report on the file.

    Raises:
        AccuracyError: no number of further layers is enough.
    """
    progress.step("layers to keep")
    ranked = further.ranking()
    unit = max(1, math.ceil(len(ranked) / STEPS))
    found: dict[int, tuple[PrecisionReport, Comparison, W]] = {}

    def enough(count: int) -> bool:
        progress.step(f"evaluating with {min(count * unit, len(ranked))} further layers in higher precision")
        try:
            graph, report = further.convert(ranked[: count * unit])
        except ParityError:  # other layers round otherwise then, and may be just beyond the tolerance
            return False
        written = write(graph)
        found[count] = report, gated.compared(file), written
        return gated.holds(found[count][1])

    most = math.ceil(len(ranked) / unit)
    count = first_enough(most, enough)
    if count is None:
        why = "they are beyond the tolerance" if most else "there are none"
        why = _said(gated, found[most][1]) if most in found else why
        raise AccuracyError(f"keeping {len(ranked)} further layers in higher precision does not help: {why}")
    if next(reversed(found)) != count:  # another number was tried last
        write(further.convert(ranked[: count * unit])[0])
    return found[count]


def _said(gated: Gated, comparison: Comparison) -> str:
    try:
        return f"{gated.metric} falls by {gated.check(comparison):.2f} points"
    except AccuracyError as e:
        return str(e)
