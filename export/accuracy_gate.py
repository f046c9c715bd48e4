"""The gate of accuracy: an export that loses more on annotated images than is allowed is not kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from deploykit.errors import NotFoundError, UsageError
from deploykit.export.sessions.onnx_in_torch import open_onnx_in_torch
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.progress import Progress
from deploykit.runtime.evaluate.coco_data import read_coco
from deploykit.runtime.evaluate.coco_metrics import library
from deploykit.runtime.evaluate.compare import AccuracyComparison, check_drop, compare_evaluations
from deploykit.runtime.evaluate.evaluate import evaluate_session
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.session import Session, open_session
from deploykit.spec import ModelSpec

__all__ = ["AccuracyGate", "judge"]


@dataclass(frozen=True)
class AccuracyGate:
    """``max_drop``: AP may fall by so many points (hundredths) on the annotated images.

    ``data``: annotations in COCO's format; ``images``: the folder with their images; ``limit``: only the first so
    many; ``bootstrap``: draws for the interval that is told with the drop.
    """

    max_drop: float
    data: str | os.PathLike[str]
    images: str | os.PathLike[str]
    limit: int | None = None
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise UsageError(f"--max-drop is a number of points of at least 0, got {self.max_drop}")

    def check(self) -> None:
        """Find out before anything takes time that nothing could be evaluated.

        Raises:
            NotFoundError, DataError: the annotations or the folder. MissingDependencyError: the library of the metrics.
        """
        library("hotcoco")
        read_coco(self.data)
        if not Path(self.images).expanduser().is_dir():
            raise NotFoundError(f"a folder of images to evaluate on was expected at {self.images}, which is none")


def judge(
    gate: AccuracyGate,
    file: Path,
    spec: ModelSpec,
    fused: nn.Module,
    base: Path | None,
    on_progress: Callable[[str, float], None] = lambda *_: None,
) -> AccuracyComparison:
    """Evaluate an export and what it was made from, on the same pixels.

    Args:
        gate: the images and the limit.
        file: the export, with raw rows.
        spec: of it.
        fused: the folded model, which an fp32 export is held against.
        base: the verified fp32 file that a lower precision is held against.
        on_progress: told what is evaluated, and the share of it that is done.

    Raises:
        AccuracyError: it loses more than is allowed. DataError, NotFoundError: see :func:`deploykit.evaluate`.
    """
    before: Session = TorchSession(fused, spec) if base is None else open_session(base, provider="cpu")
    computed = spec.precision in ("bf16", "fp8")  # ONNX Runtime runs not all such files
    after: Session = open_onnx_in_torch(file) if computed else open_session(file, provider="cpu")
    found = []
    with before, after:
        for name, session in (("the source", before), (file.name, after)):
            heard = _Heard(name, on_progress)
            found.append(evaluate_session(session, spec, gate.data, gate.images, EvalOptions(limit=gate.limit), heard))
    source, export = (cast(DetectionEvaluation, each) for each in found)
    comparison = compare_evaluations(export, source, samples=gate.bootstrap)
    check_drop(comparison, gate.max_drop)
    return comparison


class _Heard(Progress):
    """Hands the shares of an evaluation on, with the name of what is evaluated."""

    def __init__(self, name: str, on_progress: Callable[[str, float], None]) -> None:
        self._name, self._on_progress = name, on_progress

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        self._on_progress(f"evaluating: {self._name}, {what.removeprefix('evaluating, ')}", done)
