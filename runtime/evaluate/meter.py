"""What an evaluation asks of a task: which images it predicts on and how, and what it makes of the results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from deploykit.errors import UsageError
from deploykit.runtime.evaluate.report import Evaluation
from deploykit.runtime.options import EvalOptions, PredictOptions, given_options
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.spec import ModelSpec

__all__ = ["Data", "Finished", "Meter"]

EVERY = frozenset({"task", "limit", "batch"})
"""Options that go with every task."""
WORDS = {"keep_detections": "detections (to be written, drawn, or for intervals)"}
"""What options are called whose name says too little."""


@dataclass(frozen=True)
class Data:
    """What is evaluated on: the truth and, where that is not all, the folder of images."""

    truth: Path
    images: Path | None


@dataclass(frozen=True)
class Finished:
    """What is known of the predictions when they are done: who made them, in which time, and on what."""

    predictor: Predictor[ImageResult]
    timings: Mapping[str, float]
    versions: Mapping[str, str]
    notes: tuple[str, ...]

    def common(self, task: str, notes: Sequence[str] = ()) -> dict[str, Any]:
        """The fields of every :class:`Evaluation` but the metrics."""
        return {
            "task": task,
            "timings": dict(self.timings),
            "versions": dict(self.versions),
            "notes": (*self.notes, *notes),
        }


class Meter(ABC):
    """Scores the results of one task, image by image.

    Attributes:
        takes: the options of an evaluation that mean something here, besides those that go with every task.
        stage: what the time of :meth:`add` is called; empty: it is not told.
        paths: the images to predict on, in order; set by the constructor.
        spec: the spec to predict by; the model's, unless the constructor changes it.
        options: how to predict.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    stage: ClassVar[str] = "score"
    paths: Sequence[Path]

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """Read what is evaluated on, and decide how.

        Raises:
            NotFoundError, DataError: the data are missing, or fit neither each other nor the model.
            UsageError: an option of another task. MissingDependencyError: a library of the metrics.
        """
        wrong = [name for name in given_options(options) if name not in self.takes | EVERY]
        if wrong:
            told = ", ".join(WORDS.get(name, name) for name in wrong)
            raise UsageError(f"{told}: not for an evaluation of the task {task}")
        if options.limit is not None and options.limit < 1:
            raise UsageError(f"the limit must be at least 1 image, got {options.limit}")
        self.spec, self.task = spec, task
        self.options = PredictOptions(batch=options.batch)

    @abstractmethod
    def add(self, path: Path, result: ImageResult) -> None:
        """Score the next image.

        Raises:
            DataError: its truth cannot be read, or does not fit it.
        """

    @abstractmethod
    def evaluation(self, finished: Finished) -> Evaluation:
        """Everything together, after the last image."""
