"""How good a model is on images whose truth is known: its predictions, scored as its task is (docs/evaluation.md).

The images go the way that they go in use, through :class:`deploykit.runtime.predict.predictor.Predictor`, whatever kind
of model it is: the same canvas, tiles, channels and batch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from deploykit.errors import UsageError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.evaluate.meter import Data, Finished, Meter
from deploykit.runtime.evaluate.report import Evaluation
from deploykit.runtime.images.sources import Images
from deploykit.runtime.machine import versions
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.outputs import adapter_of, loaded
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import Session
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
    """Evaluate a network that is open already; see :func:`deploykit.evaluate` for the arguments.

    ``progress`` hears the step ``evaluating``, after each image the share of them that is done, and the step
    ``scoring``. The session stays open.
    """
    chosen = options or EvalOptions()
    task = spec.task if chosen.task is None else chosen.task
    folder = None if images is None else Path(images).expanduser()
    meter = meter_class(spec, task)(spec, task, Data(Path(data).expanduser(), folder), chosen)
    predictor: Predictor[ImageResult] = Predictor(session, meter.spec, meter.options)
    times: list[dict[str, float]] = []
    total = len(meter.paths)
    progress.step("evaluating")
    results = predictor.stream(Images(tuple(meter.paths), keep_files=False))
    for number, (path, result) in enumerate(zip(meter.paths, results, strict=True), start=1):
        start = time.perf_counter()
        meter.add(path, result)
        scored = {meter.stage: 1e3 * (time.perf_counter() - start)} if meter.stage else {}
        times.append({**result.timings, **scored})
        progress.share(f"evaluating, {number} of {total} images", number / total)
    progress.step("scoring")
    return meter.evaluation(Finished(predictor, _mean(times), versions(), tuple(session.notes)))


def meter_class(spec: ModelSpec, task: str) -> type[Meter]:
    """What scores a task of a model.

    Raises:
        UsageError: the model does not do it, or nothing scores it.
    """
    adapter = adapter_of(spec)
    if not adapter.meters:
        raise UsageError(f"this model gives {spec.task} of an image, and there is no truth that those are scored by")
    if task not in adapter.meters:
        raise UsageError(
            f"the task {task!r} was asked for, but this model's is {spec.task!r}, whose results are scored for "
            f"{', '.join(adapter.meters)}"
        )
    found: type[Meter] = loaded(adapter.meters[task])
    return found


def _mean(times: list[dict[str, float]]) -> dict[str, float]:
    """Milliseconds per stage; the first image pays for memory and caches, so it counts only where it is alone."""
    counted = times[1:] or times
    return {stage: sum(t[stage] for t in counted) / len(counted) for stage in counted[0]}
