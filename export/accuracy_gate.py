"""The accuracy gate: an export whose accuracy falls by more than is allowed on annotated images is not kept."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from deploykit.errors import AccuracyError, NotFoundError, UsageError
from deploykit.export.options import AccuracyGate
from deploykit.export.sessions.onnx_in_torch import open_onnx_in_torch
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.progress import SILENT, Progress
from deploykit.runtime.evaluate.coco_metrics import library
from deploykit.runtime.evaluate.compare import Comparison, check_drop, compared
from deploykit.runtime.evaluate.evaluate import evaluate_session, meter_class
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.evaluate.report import DetectionEvaluation, Evaluation
from deploykit.runtime.evaluate.yolo_data import annotations_of
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.session import Session, open_session
from deploykit.spec import ModelSpec

__all__ = ["Gated", "check_gate", "metric_of"]


def check_gate(gate: AccuracyGate, spec: ModelSpec) -> None:
    """Check that the gate can be evaluated, before the export takes its time.

    Raises:
        NotFoundError, DataError: the ground truth or the folder of images cannot be used.
        UsageError: the task has no metric for it. MissingDependencyError: its library is not installed.
    """
    if not metric_of(spec):
        raise UsageError(
            f"--max-drop holds AP, top-1 or mIoU, and this model's task is {spec.task}: measure the accuracy of the "
            "checkpoint and of the export with deploykit eval"
        )
    images = None if gate.images is None else Path(gate.images).expanduser()
    data = Data(Path(gate.data).expanduser(), images)
    if not spec.output.finds_objects:
        meter_class(spec, spec.task)(spec, spec.task, data, _options(gate))  # which reads the ground truth
        return
    library("hotcoco")
    _, folder = annotations_of(data, gate.split)
    if not folder.is_dir():
        raise NotFoundError(f"expected a folder of images to evaluate on at {folder}, which is not a folder")


def metric_of(spec: ModelSpec) -> str:
    """Return the metric that the gate holds; empty: the task has none."""
    if spec.task not in adapter_of(spec).meters:
        return ""
    return meter_class(spec, spec.task).metric


def _options(gate: AccuracyGate) -> EvalOptions:
    return EvalOptions(limit=gate.limit, split=gate.split, mask_values=gate.mask_values, ignore_label=gate.ignore_label)


class Gated:
    """The evaluations of a gate: of the source, once, and of exports on the same pixels.

    Args:
        gate: the images and the largest drop that is allowed; ``metric`` is what may fall by it.
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
        self.gate, self.metric = gate, metric_of(spec)
        self._spec, self._progress = spec, progress
        source: Session
        if base is None:
            assert fused is not None
            source = TorchSession(fused, spec)
        else:
            source = open_session(base, provider="cpu")
        with source:
            self._source = self._evaluated("the source", source)

    def compared(self, file: Path) -> Comparison:
        """Evaluate an export, with raw rows, and compare it with the source."""
        in_torch = self._spec.precision in ("bf16", "fp8")  # ONNX Runtime does not run all such files
        with open_onnx_in_torch(file) if in_torch else open_session(file, provider="cpu") as after:
            export = self._evaluated(file.name, after)
        detected = isinstance(export, DetectionEvaluation)
        return compared(export, self._source, samples=self.gate.bootstrap if detected else None)

    def holds(self, comparison: Comparison) -> bool:
        """Return whether the metric falls by no more than is allowed."""
        try:
            self.check(comparison)
        except AccuracyError:
            return False
        return True

    def check(self, comparison: Comparison) -> float:
        """Return how far the metric falls, in points.

        Raises:
            AccuracyError: that is more than is allowed.
        """
        return check_drop(comparison, self.gate.max_drop, metric=self.metric)

    def _evaluated(self, name: str, session: Session) -> Evaluation:
        gate, named = self.gate, _NamedEvaluation(name, self._progress)
        return evaluate_session(session, self._spec, gate.data, gate.images, _options(gate), named)


class _NamedEvaluation(Progress):
    """Passes the shares of an evaluation on, with the name of the model."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        self._progress.share(f"evaluating: {self._name}, {what.removeprefix('evaluating, ')}", done)
