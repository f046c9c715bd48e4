"""How long a model takes: its network alone, and everything from an encoded image to objects.

A *run* is one batch of images. Each run is timed twice, the one right after the other, so that whatever else the
machine does meets both: first end to end as its predictor works, in one thread, stage after stage; then the
network alone, on the very arrays that the first pass gave to it. The two are never mixed. Python's garbage collector
waits while a run is timed. Runs that do not count: the warm-up, and the first run of every new input shape, because
backends prepare themselves for a shape when they meet it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import ImageError, UsageError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.bench.report import Benchmark, Encoded, Memory, Network, Part, Statistics
from deploykit.runtime.images.reading import decode_image, encoded_image
from deploykit.runtime.machine import Machine, peak_memory, reset_peak_memory, resident_memory, versions
from deploykit.runtime.options import MAX_PIXELS
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import Session
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.opening import kind_of, open_sources

__all__ = ["benchmark", "encoded_images"]

Source = str | os.PathLike[str] | bytes

STAGES = {"decode": "read", **{name: name for name in ("letterbox", "prepare", "inference", "postprocess")}}
"""What a stage is called here -> its name in a result's timings; results have those of their own kind."""
AnyPredictor = Predictor[ImageResult]
UNACCOUNTED = "rest"

FULL_HD = (1080, 1920)
MOST_IMAGES, MOST_BYTES = 100, 256_000_000  # that are kept in memory
FEWEST_WARM_RUNS = 3
LONGEST_RUN = 60.0  # seconds of one run where the duration is given, so that an endless network ends too


def benchmark(
    load: Callable[[], AnyPredictor],
    source: Source | Sequence[Source] | None = None,
    *,
    duration: float = 10.0,
    runs: int | None = None,
    warmup: float = 2.0,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = SILENT,
) -> Benchmark:
    """Load a model, warm it up and measure it: ``benchmark(lambda: deploykit.load("model.onnx"), "images")``.

    Args:
        load: opens the predictor, which is closed at the end; its batch is the number of images in a run.
        source: images that are run in turn: files, folders or encoded bytes; None: one synthetic 1080p frame.
        duration: seconds to measure, both passes together; at least one run is made. In ONNX Runtime, a run that takes
            longer than 60 seconds and than ten times the duration is ended, unless the predictor has its own limit.
        runs: count exactly so many runs instead.
        warmup: seconds to run before anything counts, and at least three runs; 0: none.
        max_pixels: the most pixels that the header of an image may declare.
        progress: hears the steps (loading, warming up, measuring) and their shares, between two runs.

    Raises:
        UsageError: a number is out of range, or a source is a video or a camera.
        NotFoundError, ImageError: there is no such image, or it cannot be read.
        DeployError: whatever ``load`` or the network raises.
    """
    if not 0 < duration < math.inf or not 0 <= warmup < math.inf:
        raise UsageError(f"duration must be over 0 seconds, warmup at least 0; got {duration:g} and {warmup:g}")
    if runs is not None and runs < 1:
        raise UsageError(f"runs must be at least 1, got {runs}")
    images = encoded_images(source, max_pixels)
    before, was_reset = resident_memory(), reset_peak_memory()
    progress.step("loading")
    start = time.perf_counter()
    with load() as predictor:
        load_seconds, loaded = time.perf_counter() - start, resident_memory()
        if images.synthetic and predictor.spec.input.channels > 3:
            images = _synthetic(predictor.spec.input.channels)
        machine = Machine.here()  # now, because its load average is to be that before the measurement
        watched = predictor.session = _RecordingSession(_limited(predictor, duration if runs is None else None))
        warm_start = time.perf_counter()
        warm_runs = _warm_up(predictor, watched, images, warmup, progress)
        warm_seconds = time.perf_counter() - warm_start
        counted, fresh, seconds = _measure(predictor, watched, images, duration, runs, progress)
        device = watched.session.device_memory  # now: buffers may come with the first run
        network = _network(predictor, watched, load_seconds)
        watched.notes = watched.session.notes  # now: an engine may have some after its first run
        notes = (*predictor.notes, *_notes(images, predictor, counted, fresh))
    total = len(counted) * predictor.batch
    return Benchmark(
        machine=machine,
        versions=versions(),
        network=network,
        opencv_threads=cv2.getNumThreads(),
        spec=predictor.spec,
        images=images,
        batch=predictor.batch,
        warmup_runs=warm_runs,
        warmup_seconds=warm_seconds,
        runs=len(counted),
        seconds=seconds,
        model_only=_part(
            _MODEL_ONLY.format(watched.inputs[0].dtype),
            [run.model for run in counted],
            total,
            [run.device for run in counted],
        ),
        end_to_end=_part(
            _END_TO_END.format(predictor.adapter.gives), [r.total for r in counted], total, [r.stages for r in counted]
        ),
        objects=sum(run.objects for run in counted) / total,
        memory=Memory(before, loaded, peak_memory(), not was_reset, device),
        notes=notes,
    )


_MODEL_ONLY = (
    "the network's call on a ready {} batch in memory, including the copies of its inputs and outputs; "
    "not included: decoding, letterbox, postprocess"
)
_END_TO_END = (
    "encoded images in memory to {}, one thread doing one stage after the other; "
    "not included: reading files, drawing, writing"
)


def encoded_images(source: Source | Sequence[Source] | None, max_pixels: int = MAX_PIXELS) -> Encoded:
    """The images of a source, read into memory and decoded once, so that one that is broken is found out before.

    Raises:
        UsageError: a video, a camera, or images that are decoded already.
        NotFoundError, ImageError: no such image, none at all, or one that cannot be read.
    """
    if source is None:
        return _synthetic()
    sources = [source] if isinstance(source, (str, os.PathLike, bytes)) else list(source)
    items = [item for one in sources for item in _images_of(one)]
    if not items:
        raise ImageError("a benchmark needs at least one image, got an empty list")
    data: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    for item in items[:MOST_IMAGES]:
        encoded = item if isinstance(item, bytes) else encoded_image(item, max_pixels=max_pixels)
        if data and sum(map(len, data)) + len(encoded) > MOST_BYTES:
            break
        name = "an encoded image" if isinstance(item, bytes) else str(item)
        image = decode_image(encoded, name, channels=None, max_pixels=max_pixels)
        data.append(encoded)
        sizes.append((image.shape[0], image.shape[1]))
    names = tuple("bytes in memory" if isinstance(one, bytes) else os.fspath(one) for one in sources)
    return Encoded(names, tuple(data), tuple(sizes), left_out=len(items) - len(data))


def _images_of(source: Source) -> list[Path | bytes]:
    if isinstance(source, bytes):
        return [source]
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"a benchmark decodes its images: expected files, folders or encoded bytes, got {type(source).__name__}"
        )
    kind = kind_of(source)
    if kind in ("video", "camera", "stream"):
        raise UsageError(f"a benchmark runs on images, again and again, but {os.fspath(source)} is a {kind}")
    found: list[Path | bytes] = []
    for opened in open_sources(source):
        if not isinstance(opened, Images) or any(isinstance(item, Address) for item in opened.items):
            raise UsageError(
                f"a benchmark reads images from files, but {os.fspath(source)} holds a video or an address"
            )
        found += [Path(name) for name in opened.names]
    return found


def _synthetic(channels: int = 3) -> Encoded:
    """A 1080p JPEG of about the bytes of a photograph: coloured noise in cells of several sizes, large ones stronger.

    With four channels it is a PNG, because JPEG has only three; the fourth is the first once more. In bytes all along,
    because floats would take memory of which the process keeps some, and that is measured too.
    """
    height, width = FULL_HD
    random = np.random.default_rng(0)
    image = np.full((height, width, 3), 114, np.uint8)
    for across, strength in ((4, 0.6), (16, 0.4), (64, 0.25), (256, 0.15), (width, 0.03)):
        cells = random.integers(0, 256, (across * 9 // 16, across, 3), np.uint8)
        cells = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.addWeighted(image, 1.0, cells, strength, -127.5 * strength, dst=image)
    if channels > 4:
        raise UsageError(f"no synthetic image has the {channels} channels that this network takes: give one (--source)")
    if channels == 4:
        done, data = cv2.imencode(".png", np.dstack((image, image[..., 0])), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    else:
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return Encoded(("synthetic frame (seed 0)",), (data.tobytes(),), (FULL_HD,), synthetic=True)


class _RecordingSession(Session):
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


def _limited(predictor: AnyPredictor, duration: float | None) -> Session:
    """Return the predictor's session; for a given duration its runs have a limit, which may be the predictor's own."""
    if duration is not None and predictor.options.time_limit is None:
        with contextlib.suppress(UsageError):  # a backend that cannot end a run
            predictor.session.limit_time(max(LONGEST_RUN, 10 * duration))
    return predictor.session


@dataclass(frozen=True)
class _Run:
    """Milliseconds of one run, and what it found."""

    model: float
    total: float
    stages: dict[str, float]
    device: dict[str, float]
    objects: int
    truncated: bool
    calls: int
    new_shape: bool


def _run(predictor: AnyPredictor, watched: _RecordingSession, batch: tuple[bytes, ...]) -> _Run:
    """Both passes over one batch."""
    watched.calls = []
    with _without_collector():
        start = time.perf_counter_ns()
        results = list(predictor.stream(Images(batch)))
        done = time.perf_counter_ns()
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
    return _Run(
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


def _batches(images: Encoded, size: int) -> Iterator[tuple[bytes, ...]]:
    """The images in turn and without end."""
    place = 0
    while True:
        yield tuple(images.data[(place + i) % len(images.data)] for i in range(size))
        place += size


def _warm_up(
    predictor: AnyPredictor, watched: _RecordingSession, images: Encoded, seconds: float, progress: Progress
) -> int:
    if seconds:
        progress.step("warming up")
    start, count = time.perf_counter(), 0
    batches = _batches(images, predictor.batch)
    while seconds and (count < FEWEST_WARM_RUNS or time.perf_counter() - start < seconds):
        progress.share("warming up", min((time.perf_counter() - start) / seconds, 1.0))
        _run(predictor, watched, next(batches))
        count += 1
    return count


def _measure(
    predictor: AnyPredictor,
    watched: _RecordingSession,
    images: Encoded,
    duration: float,
    runs: int | None,
    progress: Progress,
) -> tuple[list[_Run], int, float]:
    """The runs that count, how many did not because their input had a new shape, and the seconds of all of them."""
    counted: list[_Run] = []
    fresh = 0
    progress.step("measuring")
    start = time.perf_counter()
    for batch in _batches(images, predictor.batch):
        passed = time.perf_counter() - start
        if len(counted) == runs or (runs is None and counted and passed >= duration):
            break
        progress.share("measuring", min(len(counted) / runs if runs else passed / duration, 1.0))
        run = _run(predictor, watched, batch)
        if run.new_shape:
            fresh += 1
        else:
            counted.append(run)
    return counted, fresh, time.perf_counter() - start


def _part(includes: str, totals: list[float], images: int, stages: Sequence[dict[str, float]] = ()) -> Part:
    names = stages[0] if stages else ()
    return Part(
        includes=includes,
        total=Statistics.of(totals),
        images_per_second=images / (math.fsum(totals) / 1e3),
        stages={name: Statistics.of([one[name] for one in stages]) for name in names},
    )


def _network(predictor: AnyPredictor, watched: _RecordingSession, load_seconds: float) -> Network:
    session = watched.session
    return Network(
        model=predictor.spec.source.model,
        precision=predictor.spec.precision,
        inputs=tuple(f"{info.name} {info}" for info in session.inputs),
        shapes=tuple(watched.shapes),
        providers=session.providers,
        threads=session.threads,
        threads_from=session.threads_from,
        load_seconds=load_seconds,
    )


def _notes(images: Encoded, predictor: AnyPredictor, counted: list[_Run], fresh: int) -> Iterator[str]:
    """What a reader of the numbers ought to know besides."""
    if images.synthetic and not predictor.spec.output.finds_objects:
        yield "the image is synthetic: results on it are meaningless, only its size matters (--source)"
    elif images.synthetic:
        none = not any(run.objects for run in counted)
        found = "nothing is found in it, so NMS has little to do" if none else "detections in it are meaningless"
        yield f"the image is synthetic: {found}; measure on images of the model's own kind (--source)"
    if images.left_out:
        count = len(images.data)
        yield f"only the first {count} of {count + images.left_out} images are used: they are kept in memory"
    reached = len(counted) * predictor.batch
    if reached < len(images.data):
        yield f"only {reached} of {len(images.data)} images had their turn: measure for longer (--duration)"
    if any(run.calls > 1 for run in counted):
        yield "images of one run that need rectangles of different sizes went through the network in separate calls"
    if fresh:
        yield f"the first run of an input shape does not count: {fresh} such after the warm-up"
    if any(run.truncated for run in counted):
        most = predictor.spec.thresholds.pre_nms_topk
        yield f"some images have more candidates than the {most} that NMS looks at: their weakest are left out"
