"""The gate of accuracy: an export that loses more on annotated images than is allowed is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from deploykit.errors import NotFoundError
from deploykit.export.options import AccuracyGate
from deploykit.export.sessions.onnx_in_torch import open_onnx_in_torch
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.progress import SILENT, Progress
from deploykit.runtime.evaluate.coco_data import read_coco
from deploykit.runtime.evaluate.coco_metrics import library
from deploykit.runtime.evaluate.compare import AccuracyComparison, check_drop, compare_evaluations
from deploykit.runtime.evaluate.evaluate import evaluate_session
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.session import Session, open_session
from deploykit.spec import ModelSpec

__all__ = ["check_accuracy_drop", "check_gate"]


def check_gate(gate: AccuracyGate) -> None:
    """Find out before anything takes time that nothing could be evaluated.

    Raises:
        NotFoundError, DataError: the annotations or the folder. MissingDependencyError: the library of the metrics.
    """
    library("hotcoco")
    read_coco(gate.data)
    if not Path(gate.images).expanduser().is_dir():
        raise NotFoundError(f"a folder of images to evaluate on was expected at {gate.images}, which is none")


def check_accuracy_drop(
    gate: AccuracyGate,
    file: Path,
    spec: ModelSpec,
    fused: nn.Module,
    base: Path | None,
    progress: Progress = SILENT,
) -> AccuracyComparison:
    """Evaluate an export and what it was made from, on the same pixels.

    Args:
        gate: the images and the limit.
        file: the export, with raw rows.
        spec: of it.
        fused: the folded model, which an fp32 export is held against.
        base: the verified fp32 file that a lower precision is held against.
        progress: hears what is evaluated, and the share of it that is done.

    Raises:
        AccuracyError: it loses more than is allowed. DataError, NotFoundError: see :func:`deploykit.evaluate`.
    """
    before: Session = TorchSession(fused, spec) if base is None else open_session(base, provider="cpu")
    computed = spec.precision in ("bf16", "fp8")  # ONNX Runtime runs not all such files
    after: Session = open_onnx_in_torch(file) if computed else open_session(file, provider="cpu")
    found = []
    with before, after:
        for name, session in (("the source", before), (file.name, after)):
            heard = _Heard(name, progress)
            found.append(evaluate_session(session, spec, gate.data, gate.images, EvalOptions(limit=gate.limit), heard))
    source, export = (cast(DetectionEvaluation, each) for each in found)
    comparison = compare_evaluations(export, source, samples=gate.bootstrap)
    check_drop(comparison, gate.max_drop)
    return comparison


class _Heard(Progress):
    """Hands the shares of an evaluation on, with the name of what is evaluated."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        self._progress.share(f"evaluating: {self._name}, {what.removeprefix('evaluating, ')}", done)
