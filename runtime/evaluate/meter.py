"""The interface of an evaluation to a task: which images to predict on and how, and how to score the results."""

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

EVERY = frozenset({"task", "limit", "batch", "max_pixels", "time_limit", "workers"})
"""Options of every task."""
WORDS = {"keep_detections": "detections (to be written, drawn, or for intervals)"}
"""Names in messages for options whose own name is unclear."""


@dataclass(frozen=True)
class Data:
    """The data of an evaluation: the ground truth and, if separate, the folder of images."""

    truth: Path
    images: Path | None


@dataclass(frozen=True)
class Finished:
    """Facts about the finished predictions: the session, the timings and the images."""

    predictor: Predictor[ImageResult]
    timings: Mapping[str, float]
    versions: Mapping[str, str]
    notes: tuple[str, ...]

    def common(self, task: str, notes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the fields that every :class:`Evaluation` has, except the metrics."""
        return {
            "task": task,
            "timings": dict(self.timings),
            "versions": dict(self.versions),
            "notes": (*self.notes, *notes),
            "workers": self.predictor.workers,
        }


class Meter(ABC):
    """Scores the results of one task, image by image.

    Attributes:
        takes: the options of an evaluation that this task uses, besides those of every task.
        metric: the one that an accuracy gate holds, a fraction of 1; empty: there is none.
        stage: the name of the time of :meth:`add` in the timings; empty: not reported.
        paths: the images to predict on, in order; set by the constructor.
        unturned: those of them that are not turned by their EXIF orientation, because their annotations are not.
        spec: the spec for the predictions; the model's, unless the constructor changes it.
        options: the options of the predictions.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    metric: ClassVar[str] = ""
    stage: ClassVar[str] = "score"
    paths: Sequence[Path]
    unturned: frozenset[Path] = frozenset()

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """Read the data and decide how to predict.

        Raises:
            NotFoundError, DataError: the data are missing, inconsistent, or do not fit the model.
            UsageError: an option of another task is set. MissingDependencyError: a metrics library is missing.
        """
        wrong = [name for name in given_options(options) if name not in self.takes | EVERY]
        if wrong:
            told = ", ".join(WORDS.get(name, name) for name in wrong)
            raise UsageError(f"{told}: cannot be used in an evaluation of the task {task}")
        if options.limit is not None and options.limit < 1:
            raise UsageError(f"the limit must be at least 1 image, got {options.limit}")
        self.spec, self.task = spec, task
        self.options = PredictOptions(batch=options.batch, max_pixels=options.max_pixels)

    @abstractmethod
    def add(self, path: Path, result: ImageResult) -> None:
        """Score the next image.

        Raises:
            DataError: its ground truth cannot be read or does not fit it.
        """

    @abstractmethod
    def evaluation(self, finished: Finished) -> Evaluation:
        """Return the evaluation after the last image."""
