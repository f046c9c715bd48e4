"""A network with its spec: images in, results out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

import numpy as np

from deploykit.errors import DeployError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.in_memory import AnyImage, is_image
from deploykit.runtime.images.placing import CanvasImage, on_own_canvas, place_on_canvas
from deploykit.runtime.images.tiles import run_tiled
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.pipeline.job import Job, Load, Unreadable
from deploykit.runtime.pipeline.overlapped import results
from deploykit.runtime.pipeline.workers import few_together, images_together, workers_on
from deploykit.runtime.predict.checks import checked_batch, checked_input, checked_reopening
from deploykit.runtime.predict.mosaic import is_mosaic, mosaic_job, read_item, restore_mosaic
from deploykit.runtime.raw.mosaic import RawImage
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import RestoredRaw
from deploykit.runtime.results.other_names import PREDICTOR_NAMES, missing_attribute
from deploykit.runtime.session import Session
from deploykit.runtime.sources.frames import Frame, Images, Skip
from deploykit.runtime.sources.live import Live
from deploykit.runtime.sources.opening import open_images, open_sources
from deploykit.runtime.sources.video import Video
from deploykit.spec import ModelSpec

__all__ = ["Predictor", "PreparedImage"]

R_co = TypeVar("R_co", bound=ImageResult, covariant=True)
_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A frame on its canvas; if ``tiled``, the canvas is the whole image and runs in tiles."""

    frame: Frame
    shown: CanvasImage
    tiled: bool
    ms: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the canvas; images of one shape can run in one batch."""
        return self.shown.canvas.shape


class Predictor(Generic[R_co]):
    """Runs a network on images; ``R_co`` is the type of an image's result.

    Several threads may call it, stream with it and close it at the same time, and get the results that one would get;
    what begins after :meth:`close` is a BackendError. What :func:`deploykit.load` returned can be pickled and copied,
    by its path and options: a copy opens the file again, in a session of its own.

    The model's task determines the result: :class:`deploykit.Result` for detections, else one of
    :mod:`deploykit.runtime.results.dense`; all are :class:`deploykit.ImageResult`.

    A restoration network of fixed size takes larger images in tiles of that size. One of free size takes them whole,
    unless ``tile`` is set. A restoration network of four channels takes the mosaics of RAW files, always in tiles; its
    result is a :class:`deploykit.runtime.results.dense.RestoredRaw`.

    Args:
        session: the network; :func:`deploykit.open_session` opens one. Closed together with the predictor.
        spec: the spec of the network; None reads it from the session's metadata.
        options: the options of the prediction; None: the defaults.
        name: the file of the network, for messages.

    Raises:
        SpecError: the spec is missing or does not fit the network.
        UsageError: an option belongs to another task, is out of range, or is not supported by the network.

    Attributes:
        reopen: opens the same model again with the same options; None: it was made around an open session.
    """

    reopen: Callable[[], Predictor[R_co]] | None = None

    def __init__(
        self, session: Session, spec: ModelSpec | None = None, options: PredictOptions | None = None, *, name: str = ""
    ) -> None:
        self.session, self.name = session, name
        self.spec = session_spec(session, "the model") if spec is None else spec
        self.options = options or PredictOptions()
        self.adapter = adapter_of(self.spec, self.options)
        self.adapter.check_input()
        info = checked_input(session, self.spec.input)
        self.adapter.check_outputs(session.outputs)
        self._fixed_batch = info.shape[0] is not None
        self._fixed_size = None not in info.shape[2:]
        own = self.spec.input  # a network of fixed size takes no rectangles, whatever the spec says
        self._canvas = replace(own, fit=replace(own.fit, auto=False)) if self._fixed_size else own
        self._dtype = np.dtype(info.dtype)
        if self.options.time_limit is not None:
            session.limit_time(self.options.time_limit)
        asked = self.options.batch
        self.batch = checked_batch(info, self.spec.input.batch if asked is None else asked)
        self.tiling = self.adapter.tiling(fixed_size=self._fixed_size, batch=self.batch)
        self.workers = workers_on(self.options.workers, session.threads)
        alone = session.threads == 1 and session.providers == ("CPUExecutionProvider",) and not self._fixed_batch
        self._together = images_together(self.batch, own.size) if alone else self.batch
        self._spare: list[Array] = []

    def __repr__(self) -> str:
        own, name = self.spec.input, f" {Path(self.name).name}" if self.name else ""
        size = f"{own.size[1]}x{own.size[0]}" if self._fixed_size else "of any size"
        batch = f"batch {self.batch}" if self._fixed_batch else "any batch"
        return f"<Predictor{name}: {self.spec.task}, input {size}, {batch}, on {', '.join(self.session.providers)}>"

    if not TYPE_CHECKING:  # a type checker goes on to refuse what is not there

        def __getattr__(self, name: str) -> Any:
            return missing_attribute(self, name, PREDICTOR_NAMES)

    def __reduce__(self) -> tuple[Callable[[], Predictor[R_co]], tuple[()]]:
        return checked_reopening(self.reopen), ()

    @property
    def task(self) -> str:
        """What the network does, such as ``segment``."""
        return self.spec.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; may be empty."""
        return self.spec.classes

    @property
    def takes_raw(self) -> bool:
        """Whether the network takes the mosaics of RAW files."""
        return self.adapter.takes_raw

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the network here: the notes of its session and of the options, and what becomes
        of colours."""
        notes = (*self.session.notes, *self.adapter.notes)
        if self._together < (self.options.batch or 1):
            notes = (*notes, few_together(self.batch, self._together))
        if self.spec.input.channels != 1:
            return notes
        return (*notes, "this network takes grey images (1 channel): images in colour become grey")

    @overload
    def __call__(self, source: AnyImage) -> R_co: ...  # type: ignore[overload-overlap]  # a str is a sequence too
    @overload
    def __call__(self, source: Sequence[AnyImage]) -> list[R_co]: ...
    def __call__(self, source: AnyImage | Sequence[AnyImage]) -> R_co | list[R_co]:
        """Predict on one image, or on a list of images.

        Args:
            source: a path or a web address, encoded bytes, an open binary file, a BGR ``uint8 (H, W, 3)`` array, a
                Pillow image, or a tensor (RGB ``(C, H, W)``, ``uint8``, or floating-point from 0 to 1). A list of them
                gives a list.

        Raises:
            UsageError: the source is a folder, a video or a camera, which :meth:`stream` reads, or no image at all.
            NotFoundError, ImageError, FetchError: the source is missing or cannot be read.
            BackendError: the network failed.
        """
        found = self._results(open_images(source), None, 1)
        return next(found) if is_image(source) else list(found)

    def stream(
        self,
        source: AnyImage | int | Sequence[AnyImage | int] | Images | Video,
        *,
        skip: Skip | None = None,
        workers: int | None = None,
    ) -> Generator[R_co]:
        """Predict on any source, always as a lazy iterator, in the order of the source.

        Images are read, prepared and computed ahead by several workers, a bounded number of them; cameras, live streams
        and images at addresses are not. An error is raised after the results before it. Close the iterator (or drop it)
        to leave it early: what has begun is waited for.

        Args:
            source: an image as for a call, a folder, a pattern (``*.jpg``, ``**``), a list of files (``.txt``), a video
                file, the address of an image, a video or a live stream, the number of a camera, a list of these, or
                one of what :func:`deploykit.runtime.sources.opening.open_sources` returned.
            skip: called with the error of each unreadable image, which is then left out; None raises the error.
            workers: how many images, or batches, are on their way at the same time; 1: one after the other, in the
                caller's thread; None: :attr:`workers`. The results are the same.

        Raises:
            NotFoundError, ImageError, FetchError, UsageError: the source cannot be opened, or ``workers`` is below 1.
        """
        opened = [source] if isinstance(source, (Images, Video)) else open_sources(source, raw=self.takes_raw)
        asked = self.workers if workers is None else workers
        return self._each(opened, skip, workers_on(asked, self.session.threads))

    def prepare(self, source: AnyImage, name: str = "") -> PreparedImage:
        """Read one image and place it on the network's canvas, for :meth:`run`; ``name`` is that of its result.

        Raises:
            NotFoundError, ImageError: the image is missing or cannot be read.
        """
        (load,) = self._loads(Images((source,), names=(name,)))
        prepared = load()
        if isinstance(prepared, Unreadable):
            raise prepared.error
        return prepared

    def run(self, batch: Sequence[PreparedImage]) -> list[R_co]:
        """Return the results of images that were prepared, have one shape, and are at most :attr:`batch` where the
        network's batch is fixed.

        Raises:
            BackendError: the network failed.
        """
        return self._run(list(batch))

    def restore_raw(self, raw: RawImage) -> RestoredRaw:
        """Restore a mosaic: pack it to four channels, run the network in tiles, unpack the result.

        Raises:
            UsageError: the network takes no mosaics. BackendError: it failed.
        """
        if not self.takes_raw or self.tiling is None:
            raise UsageError("mosaics need a restoration network with 4 channels, and this model is not one")
        return restore_mosaic(raw, self._run_tiles, self.tiling, self.spec.input)

    def close(self) -> None:
        """Close the session."""
        self._spare.clear()
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, sources: Sequence[Images | Video], skip: Skip | None, workers: int) -> Generator[R_co]:
        for each in sources:
            yield from self._results(each, skip, workers)

    def _results(self, source: Images | Video, skip: Skip | None, workers: int) -> Iterator[R_co]:
        if not self.takes_raw or isinstance(source, Video):
            one = source.live or (isinstance(source, Images) and source.fetched)  # whose reading Ctrl-C must end
            yield from results(self._job(source), 1 if one else workers, skip)
            return
        start = 0
        for mosaics, items in groupby(source.items, key=is_mosaic):
            part = source.part(start, start := start + len(list(items)))
            if mosaics:
                job = mosaic_job(
                    part, self.restore_raw, max_pixels=self.options.max_pixels, here=not self.session.concurrent
                )
                yield from cast("Iterator[R_co]", results(job, workers, skip))
            else:
                yield from results(self._job(part), workers, skip)

    def _job(self, source: Images | Video) -> Job[PreparedImage, R_co]:
        """Return the work on a source; a camera's frame does not wait for the next one."""
        return Job(
            self._loads_of_video(source) if isinstance(source, Video) else self._loads(source),
            self._run,
            batch=1 if source.live else self._together,
            alike=lambda first, other: first.shape == other.shape,
            size=lambda item: item.frame.image.nbytes + item.shown.canvas.nbytes,
            slow=isinstance(source, Video),
            here=not self.session.concurrent,
        )

    def _loads(self, source: Images) -> Generator[Load[PreparedImage]]:
        """Yield what reads and prepares each image, with the number of channels that the network takes."""
        read = partial(read_item, channels=self.spec.input.channels, max_pixels=self.options.max_pixels)
        apart = source.apart
        for load in source.loads(read):
            yield partial(self._loaded, load) if apart else partial(_same, self._loaded(load))

    def _loaded(self, load: Callable[[], Frame]) -> PreparedImage | Unreadable:
        try:
            frame = load()
        except DeployError as e:
            return Unreadable(e)
        return self._prepare(frame)

    def _loads_of_video(self, source: Video) -> Generator[Load[PreparedImage]]:
        """Yield what prepares each frame, and at the end what could not be read."""
        channels, most = self.spec.input.channels, self.options.max_pixels
        if channels not in (1, 3):
            raise UsageError(f"this network takes images of {channels} channels, but videos have 3")
        every, failed = self.options.every, list[DeployError]()
        if isinstance(source, Live):
            frames = source.frames(failed.append, max_pixels=most, reconnect=self.options.reconnect, every=every)
        else:
            frames = source.frames(failed.append, max_pixels=most)
        for frame in frames:
            if isinstance(source, Live) or frame.number is None or frame.number % every == 0:
                yield partial(self._prepare, frame)
        yield from (partial(_same, Unreadable(error)) for error in failed)

    def _prepare(self, frame: Frame) -> PreparedImage:
        """Place an image on the network's canvas, or keep it whole if it runs in tiles or unchanged."""
        start = time.perf_counter()
        tiled = False
        if self.tiling is None:
            shown = place_on_canvas(frame.image, self._canvas)
        else:
            tiled = not (self._fixed_size and frame.image.shape[:2] == self.spec.input.size)
            tiles = len(self.tiling.places(frame.image.shape[:2])) if tiled else 1
            shown = on_own_canvas(frame.image, tiles=tiles)
        return PreparedImage(frame, shown, tiled, (time.perf_counter() - start) * 1e3)

    def _run(self, batch: list[PreparedImage]) -> list[R_co]:
        """Run the network on images whose canvases have one size."""
        if batch[0].tiled:
            return [self._run_in_tiles(prepared) for prepared in batch]
        start = time.perf_counter()
        canvas = self.spec.input
        slots = self.batch if self._fixed_batch else len(batch)
        buffer = self._buffer((slots, canvas.channels, *batch[0].shown.canvas.shape[:2]))
        images = to_nchw([p.shown.canvas for p in batch], canvas, buffer).astype(self._dtype, copy=False)
        ready = time.perf_counter()
        outputs = self.session.run({canvas.name: images})
        done = time.perf_counter()
        self.adapter.check_values(outputs, len(batch))
        marks = (start, ready, done, time.perf_counter())
        before, inference, checking = (1e3 * (b - a) / len(batch) for a, b in pairwise(marks))
        results = [self._result(p, outputs, i, (p.ms + before, inference, checking)) for i, p in enumerate(batch)]
        self._spare.append(buffer)  # only now, because an output may be a view of the input
        return results

    def _run_in_tiles(self, prepared: PreparedImage) -> R_co:
        start = time.perf_counter()
        image = to_nchw([prepared.shown.canvas], self.spec.input)[0]
        ready = time.perf_counter()
        outputs = {self.spec.output_names[0]: self._run_tiles(image)[None]}
        inference = 1e3 * (time.perf_counter() - ready)
        return self._result(prepared, outputs, 0, (prepared.ms + 1e3 * (ready - start), inference, 0.0))

    def _run_tiles(self, image: Array) -> Array:
        """Return the output of an image ``(C, H, W)``, assembled from its tiles."""

        def run(tiles: Array) -> Array:
            outputs = self.session.run({self.spec.input.name: tiles.astype(self._dtype, copy=False)})
            self.adapter.check_values(outputs, len(tiles))
            return self.adapter.tensor_in(outputs, "a tile")

        assert self.tiling is not None
        return run_tiled(run, image, self.tiling, full_batches_only=self._fixed_batch)

    def _buffer(self, shape: tuple[int, ...]) -> Array:
        """Return an unused float32 array, an old one if it fits: fresh memory costs more than filling it."""
        with contextlib.suppress(IndexError):  # asking first would let another thread take it in between
            spare = self._spare.pop()
            if spare.shape == shape:
                return spare
        return np.empty(shape, np.float32)

    def _result(
        self, prepared: PreparedImage, outputs: dict[str, Array], slot: int, ms: tuple[float, float, float]
    ) -> R_co:
        """Decode one image; ``ms``: what its input, the network, and the check of the outputs took."""
        start = time.perf_counter()
        made = self.adapter.decode(outputs, slot, prepared.shown)
        frame = prepared.frame
        result = made(
            size=prepared.shown.source,
            name=frame.name,
            frame=frame.number,
            time=frame.time,
            timings={
                "read": frame.read_ms,
                self.adapter.stage: ms[0],
                "inference": ms[1],
                "postprocess": ms[2] + (time.perf_counter() - start) * 1e3,
            },
            image=_shown(frame.image) if frame.keep else None,
        )
        return cast("R_co", result)


def _same(item: _Prepared) -> _Prepared:
    return item


def _shown(image: Array) -> Array | None:
    """Return what a result keeps of an image to draw on: BGR, of more channels the first three."""
    if image.ndim != 3 or image.shape[2] < 3:
        return None
    return image if image.shape[2] == 3 else np.ascontiguousarray(image[..., :3])
