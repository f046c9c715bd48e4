"""One run of a benchmark: a batch end to end, and then the network alone on the very arrays of that pass."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.bench.report import Encoded
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import Session
from deploykit.runtime.sources.frames import Images

__all__ = ["AnyPredictor", "RecordingSession", "Run", "batches", "limited", "run_once"]

AnyPredictor = Predictor[ImageResult]
STAGES = {"decode": "read", **{name: name for name in ("letterbox", "prepare", "inference", "postprocess")}}
"""What a stage is called here -> its name in a result's timings; results have those of their own kind."""
UNACCOUNTED = "rest"
LONGEST_RUN = 60.0  # seconds of one run where the duration is given, so that an endless network ends too


class RecordingSession(Session):
    """A session that keeps what a run gave to it, so that the same calls can be made again, and nothing else."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self.providers, self.notes = session.providers, session.notes
        self.calls: list[Mapping[str, Array]] = []
        self.shapes: dict[tuple[int, ...], None] = {}  # in the order in which they came

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`deploykit.runtime.session.Session.run`."""
        self.calls.append(inputs)
        return self.session.run(inputs)

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def limited(predictor: AnyPredictor, duration: float | None) -> Session:
    """Return the predictor's session; for a given duration its runs have a limit, which may be the predictor's own."""
    if duration is not None and predictor.options.time_limit is None:
        with contextlib.suppress(UsageError):  # a backend that cannot end a run
            predictor.session.limit_time(max(LONGEST_RUN, 10 * duration))
    return predictor.session


@dataclass(frozen=True)
class Run:
    """Milliseconds of one run, and what it found."""

    model: float
    total: float
    stages: dict[str, float]
    device: dict[str, float]
    objects: int
    truncated: bool
    calls: int
    new_shape: bool


def run_once(predictor: AnyPredictor, watched: RecordingSession, batch: tuple[bytes, ...]) -> Run:
    """Both passes over one batch."""
    watched.calls = []
    with _without_collector():
        start = time.perf_counter_ns()
        results = list(predictor.stream(Images(batch), workers=1))
        done = time.perf_counter_ns()
        if not watched.calls:
            raise UsageError(
                "a benchmark takes the stages apart, which one stream of the GPU joins here: leave the word stages out "
                "of DEPLOYKIT_CUDA"
            )
        # The arrays stay as they are: the predictor fills its buffers again in the next run.
        device: Counter[str] = Counter()
        again = time.perf_counter_ns()
        for inputs in watched.calls:
            watched.session.run(inputs)
            device.update(watched.session.stage_ms)
        end = time.perf_counter_ns()
    total = (done - start) / 1e6
    known = {stage: name for stage, name in STAGES.items() if name in results[0].timings}
    stages = {stage: sum(result.timings[name] for result in results) for stage, name in known.items()}
    stages[UNACCOUNTED] = total - sum(stages.values())
    shapes = dict.fromkeys(array.shape for inputs in watched.calls for array in inputs.values())
    new_shape = not shapes.keys() <= watched.shapes.keys()
    watched.shapes |= shapes
    return Run(
        model=(end - again) / 1e6,
        total=total,
        stages=stages,
        device=dict(device),
        objects=sum(sum(result.counts().values()) for result in results),
        truncated=any(result.left_out for result in results),
        calls=len(watched.calls),
        new_shape=new_shape,
    )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def batches(images: Encoded, size: int) -> Iterator[tuple[bytes, ...]]:
    """The images in turn and without end."""
    place = 0
    while True:
        yield tuple(images.data[(place + i) % len(images.data)] for i in range(size))
        place += size
