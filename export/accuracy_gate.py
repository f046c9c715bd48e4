"""The accuracy gate: an export whose AP falls by more than is allowed on annotated images is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from deploykit.errors import AccuracyError, NotFoundError
from deploykit.export.options import AccuracyGate
from deploykit.export.sessions.onnx_in_torch import open_onnx_in_torch
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.progress import SILENT, Progress
from deploykit.runtime.evaluate.coco_metrics import library
from deploykit.runtime.evaluate.compare import AccuracyComparison, check_drop, compare_evaluations
from deploykit.runtime.evaluate.evaluate import evaluate_session
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.evaluate.yolo_data import annotations_of
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.session import Session, open_session
from deploykit.spec import ModelSpec

__all__ = ["Gated", "check_gate"]


def check_gate(gate: AccuracyGate) -> None:
    """Check that the gate can be evaluated, before the export takes its time.

    Raises:
        NotFoundError, DataError: the annotations or the folder of images cannot be used.
        MissingDependencyError: the library of the metrics is not installed.
    """
    library("hotcoco")
    images = None if gate.images is None else Path(gate.images).expanduser()
    _, folder = annotations_of(Data(Path(gate.data).expanduser(), images), gate.split)
    if not folder.is_dir():
        raise NotFoundError(f"expected a folder of images to evaluate on at {folder}, which is not a folder")


class Gated:
    """The evaluations of a gate: of the source, once, and of exports on the same pixels.

    Args:
        gate: the images and the largest drop that is allowed.
        spec: the spec of the export.
        fused: the fused model, the source of an fp32 export; None for a lower precision.
        base: the verified fp32 file, the source of a lower precision; None for an fp32 export.
        progress: receives which model is evaluated, and how far that is.
    """

    def __init__(
        self,
        gate: AccuracyGate,
        spec: ModelSpec,
        fused: nn.Module | None,
        base: Path | None,
        progress: Progress = SILENT,
    ) -> None:
        self.gate, self._spec, self._progress = gate, spec, progress
        source: Session
        if base is None:
            assert fused is not None
            source = TorchSession(fused, spec)
        else:
            source = open_session(base, provider="cpu")
        with source:
            self._source = self._evaluated("the source", source)

    def compared(self, file: Path) -> AccuracyComparison:
        """Evaluate an export, with raw rows, and compare it with the source."""
        in_torch = self._spec.precision in ("bf16", "fp8")  # ONNX Runtime does not run all such files
        with open_onnx_in_torch(file) if in_torch else open_session(file, provider="cpu") as after:
            export = self._evaluated(file.name, after)
        return compare_evaluations(export, self._source, samples=self.gate.bootstrap)

    def holds(self, comparison: AccuracyComparison) -> bool:
        """Return whether AP falls by no more than is allowed."""
        try:
            self.check(comparison)
        except AccuracyError:
            return False
        return True

    def check(self, comparison: AccuracyComparison) -> float:
        """Return how far AP falls, in points.

        Raises:
            AccuracyError: that is more than is allowed.
        """
        return check_drop(comparison, self.gate.max_drop)

    def _evaluated(self, name: str, session: Session) -> DetectionEvaluation:
        gate, named = self.gate, _NamedEvaluation(name, self._progress)
        options = EvalOptions(limit=gate.limit, split=gate.split)
        return cast(DetectionEvaluation, evaluate_session(session, self._spec, gate.data, gate.images, options, named))


class _NamedEvaluation(Progress):
    """Passes the shares of an evaluation on, with the name of the model."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        self._progress.share(f"evaluating: {self._name}, {what.removeprefix('evaluating, ')}", done)
