"""Evaluation of a model on annotated images: its predictions, scored by its task's metrics (docs/evaluation.md).

Every kind of model runs through :class:`deploykit.runtime.predict.predictor.Predictor`, as in use: with the same
canvas, tiles, channels and batch.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from deploykit.errors import UsageError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.evaluate.meter import Data, Finished, Meter
from deploykit.runtime.evaluate.report import Evaluation
from deploykit.runtime.machine import versions
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.outputs import adapter_of, loaded
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import Session
from deploykit.runtime.sources.frames import Images
from deploykit.spec import ModelSpec

__all__ = ["evaluate_session", "meter_class"]


def evaluate_session(
    session: Session,
    spec: ModelSpec,
    data: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    options: EvalOptions | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Evaluate an open network; see :func:`deploykit.evaluate` for the arguments.

    ``progress`` receives the step ``evaluating``, the share of images done after each one, and the step ``scoring``.
    The session stays open.
    """
    chosen = options or EvalOptions()
    task = spec.task if chosen.task is None else chosen.task
    folder = None if images is None else Path(images).expanduser()
    meter = meter_class(spec, task)(spec, task, Data(Path(data).expanduser(), folder), chosen)
    predictor: Predictor[ImageResult] = Predictor(
        session, meter.spec, replace(meter.options, time_limit=chosen.time_limit, workers=chosen.workers)
    )
    times: list[dict[str, float]] = []
    total = len(meter.paths)
    progress.step("evaluating")
    source = Images(tuple(meter.paths), keep_files=False, unturned=meter.unturned)
    with contextlib.closing(predictor.stream(source)) as results:
        for number, (path, result) in enumerate(zip(meter.paths, results, strict=True), start=1):
            start = time.perf_counter()
            meter.add(path, result)
            scored = {meter.stage: 1e3 * (time.perf_counter() - start)} if meter.stage else {}
            times.append({**result.timings, **scored})
            progress.share(f"evaluating, {number} of {total} images", number / total)
    progress.step("scoring")
    return meter.evaluation(Finished(predictor, _mean(times), versions(), predictor.notes))


def meter_class(spec: ModelSpec, task: str) -> type[Meter]:
    """Return the class that scores a task of a model.

    Raises:
        UsageError: the model does not do the task, or the task has no metrics.
    """
    adapter = adapter_of(spec)
    if not adapter.meters:
        raise UsageError(f"this model's task is {spec.task}, which has no ground truth to score against")
    if task not in adapter.meters:
        raise UsageError(
            f"this model's task is {spec.task!r}, so it cannot be scored for {task!r}, only for "
            f"{', '.join(adapter.meters)}"
        )
    found: type[Meter] = loaded(adapter.meters[task])
    return found


def _mean(times: list[dict[str, float]]) -> dict[str, float]:
    """Return milliseconds per stage; the first image pays for memory and caches, so it counts only if it is alone."""
    counted = times[1:] or times
    return {stage: sum(t[stage] for t in counted) / len(counted) for stage in counted[0]}
