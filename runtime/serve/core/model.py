"""A model that is served: its predictor, its batches, and the requests that it has."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.run_limit import RunEnd
from deploykit.runtime.images.headers.image_header import declared_size, size_at_once
from deploykit.runtime.predict.predictor import Predictor, PreparedImage
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.serve.core.batching import Batcher, Ticket
from deploykit.runtime.serve.core.failures import RefusedError
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.statistics import Statistics
from deploykit.runtime.sources.frames import Frame

__all__ = ["Answer", "ModelSource", "ServedModel", "modified"]

VARIANTS = 32  # sets of options whose predictors are kept
RETRY = 1  # seconds
PATIENCE = 5.0  # seconds that the first run of a worker waits for those of the others
IMAGES = 8  # of the largest size that may be here at the same time: so much memory do requests take together


@dataclass(frozen=True)
class ModelSource:
    """A model that is to be served: its name, its version and its file."""

    name: str
    version: int
    path: str


@dataclass(frozen=True)
class Answer:
    """The result for one image, with the milliseconds of each stage of the request."""

    result: ImageResult
    timings: Mapping[str, float]


class ServedModel:
    """A model that is open. Its coroutines are called in the event loop's thread.

    Args:
        source: what it is called, and where it is from.
        predictor: the open model, which is closed with this.
        pool: the threads that run it, which are shut down with this.
        reading: the threads that read images.
        options: the options of the server.
    """

    def __init__(
        self,
        source: ModelSource,
        predictor: Predictor[Any],
        pool: ThreadPoolExecutor,
        reading: Executor,
        options: ServeOptions,
    ) -> None:
        self.source, self.predictor, self.options = source, predictor, options
        self.active = self.pixels = 0
        self.statistics = Statistics()
        self.dynamic_batch = predictor.session.inputs[0].shape[0] is None
        self.most = options.max_batch if self.dynamic_batch else predictor.batch
        self._pool, self._reading = pool, reading
        workers = predictor.workers if predictor.session.concurrent else 1
        self.batcher = Batcher(pool, workers, self.most, options.batch_window / 1e3)
        session = predictor.session
        # A worker of one thread wins nothing by batches, nor does a request that is alone. It then reads the image too:
        # threads that read beside as many workers as there are cores would only take turns with them.
        self._on_cpu = session.concurrent and session.providers == ("CPUExecutionProvider",)
        self._single = session.threads == 1
        self._variants: OrderedDict[Hashable, Predictor[Any]] = OrderedDict()
        self._holders, self._closed = 0, False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def takes(self) -> frozenset[str]:
        """The options of a prediction that a request may give."""
        return frozenset(self.predictor.adapter.takes)

    def with_options(self, asked: Mapping[str, Any]) -> Predictor[Any]:
        """Return a predictor of the same network with some options of a request.

        Raises:
            UsageError: an option belongs to another task, or is out of range.
        """
        if not asked:
            return self.predictor
        key = tuple(sorted(asked.items()))
        if key in self._variants:
            self._variants.move_to_end(key)
            return self._variants[key]
        base = self.predictor
        made: Predictor[Any] = Predictor(base.session, base.spec, replace(base.options, **asked), name=base.name)
        self._variants[key] = made
        if len(self._variants) > VARIANTS:
            self._variants.popitem(last=False)
        return made

    @contextlib.contextmanager
    def admitted(self) -> Iterator[Ticket]:
        """Count a request while the context lasts.

        Raises:
            RefusedError: the queue is full.
        """
        if self.active >= self.options.queue:
            raise RefusedError(503, f"{self.active} requests wait for this model, the most there may be", RETRY)
        self.active += 1
        try:
            with self.held(), self.batcher.expected() as ticket:
                yield ticket
        finally:
            self.active -= 1

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model open while the context lasts, even if another one has taken its place."""
        self._holders += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._idle.set()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[dict[str, float]]:
        """Count a request in the statistics; what is put into the value are its stages."""
        start, stages = time.perf_counter(), dict[str, float]()
        try:
            yield stages
        except BaseException:
            self.statistics.fail(1e3 * (time.perf_counter() - start))
            raise
        stages["total"] = 1e3 * (time.perf_counter() - start)
        self.statistics.take(stages, stages["total"])

    async def predict(self, data: bytes, name: str, asked: Mapping[str, Any]) -> Answer:
        """Predict on one encoded image.

        Args:
            data: the image.
            name: what it is called in the result.
            asked: options of the prediction that differ from the server's.

        Raises:
            RefusedError: the queue is full, or the image declares too many pixels.
            DeployError: what :class:`Predictor` raises.
        """
        with self._counted() as stages, self.admitted() as ticket:
            predictor = self.with_options(asked)
            with self._room_for(size_at_once(data) or await self._size_of(data)):
                result = await self._predicted(predictor, partial(predictor.prepare, data, name), ticket, stages)
        return Answer(result, stages)

    async def predict_frame(self, frame: Frame, asked: Mapping[str, Any]) -> Answer:
        """Predict on a frame of a source, whose name and number the result has; options and errors are those of
        :meth:`predict`."""

        def prepare() -> PreparedImage:
            return replace(predictor.prepare(frame.image, frame.name), frame=frame)

        with self._counted() as stages, self.admitted() as ticket:
            predictor = self.with_options(asked)
            result = await self._predicted(predictor, prepare, ticket, stages)
        return Answer(result, stages)

    async def _predicted(
        self, predictor: Predictor[Any], prepare: Callable[[], PreparedImage], ticket: Ticket, stages: dict[str, float]
    ) -> ImageResult:
        if self._on_cpu and (self._single or self.active == 1):
            done = await self.batcher.compute(partial(_read_and_run, predictor), prepare, object(), ticket=ticket)
        else:
            prepared = await asyncio.get_running_loop().run_in_executor(self._reading, prepare)
            kind = (id(predictor), prepared.shape, prepared.tiled)
            done = await self.batcher.compute(predictor.run, prepared, kind, ticket=ticket)
        result: ImageResult = done.value
        stages |= {"queue": done.queue_ms, **result.timings}
        return result

    async def _size_of(self, data: bytes) -> tuple[int, int]:
        """Return an image's size by its header, which is read by a thread because it may be long; one that is not
        understood is refused where it is decoded."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, declared_size, data) or (0, 0)

    @contextlib.contextmanager
    def _room_for(self, size: tuple[int, int]) -> Iterator[None]:
        """Check the (height, width) of an image, and count its pixels while the context lasts.

        Raises:
            RefusedError: it declares too many pixels, or the images that are here have as many as there may be.
        """
        most, (height, width) = self.options.max_pixels, size
        if height * width > most:
            raise RefusedError(413, f"the image declares {width} x {height} pixels, more than the {most:,} allowed")
        if self.pixels + height * width > IMAGES * most:
            raise RefusedError(503, "the images that wait for this model have as many pixels as they may", RETRY)
        self.pixels += height * width
        try:
            yield
        finally:
            self.pixels -= height * width

    async def infer(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, float]]:
        """Run the bare network on tensors, whose first axis is that of the batch where it is dynamic.

        Returns:
            The outputs, and the milliseconds of each stage.

        Raises:
            RefusedError: the queue is full. BackendError: the network failed.
        """
        with self._counted() as stages, self.admitted() as ticket:
            rows = {len(value) for value in inputs.values() if value.ndim}
            together = self.dynamic_batch and len(rows) == 1
            kind = ("tensors", tuple((name, each.dtype.str, each.shape[1:]) for name, each in sorted(inputs.items())))
            weight = rows.pop() if together else self.most
            run = partial(_run_tensors, self.predictor.session)
            done = await self.batcher.compute(run, dict(inputs), kind, weight=weight, ticket=ticket)
            stages |= {"queue": done.queue_ms, "inference": done.run_ms}
        return done.value, stages

    async def warm_up(self) -> None:
        """Run the network on an empty image in each worker's thread, so that no request pays for memory and caches."""
        height, width = self.predictor.spec.input.size
        canvas = np.zeros((height, width, 3), np.uint8)
        channels = self.predictor.spec.input.channels
        if channels not in (1, 3):
            canvas = np.zeros((height, width, channels), np.uint8)

        together = threading.Barrier(self.batcher.workers)  # so that no thread takes the turn of another one

        def run() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(PATIENCE)
            self.predictor.run([self.predictor.prepare(canvas)])

        end = RunEnd()
        try:
            loop = asyncio.get_running_loop()
            turns = [loop.run_in_executor(self._pool, end.call, run) for _ in range(self.batcher.workers)]
            await asyncio.gather(*turns)
        finally:
            end.end()

    async def close(self, seconds: float | None = None) -> None:
        """Wait for the requests that there are, at most so many seconds, end the runs of the others, and close the
        model; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        self.batcher.end()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, self.predictor.close)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _read_and_run(predictor: Predictor[Any], batch: list[Callable[[], PreparedImage]]) -> list[ImageResult]:
    """Read one image and run it in the same thread."""
    return predictor.run([prepare() for prepare in batch])


def _run_tensors(session: Any, batch: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Run requests of tensors together, along their first axis."""
    if len(batch) == 1:
        return [_own(session.run(batch[0]))]
    rows = [len(next(iter(each.values()))) for each in batch]
    outputs: dict[str, Array] = session.run({name: np.concatenate([each[name] for each in batch]) for name in batch[0]})
    ends = np.cumsum(rows)
    if any(len(value) != ends[-1] for value in outputs.values()):  # the axis of the batch is not their first
        return [_own(session.run(each)) for each in batch]
    starts = ends - rows
    return [
        {name: value[start:end].copy() for name, value in outputs.items()}
        for start, end in zip(starts, ends, strict=True)
    ]


def _own(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return outputs that the next run does not write over."""
    return {name: value.copy() for name, value in outputs.items()}


def modified(path: str) -> tuple[int, int, int]:
    """Return what tells that a file is another one than before: its time, its size and its place."""
    try:
        about = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return (about.st_mtime_ns, about.st_size, about.st_ino)
