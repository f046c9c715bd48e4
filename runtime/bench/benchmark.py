"""How long a model takes: its network alone, and everything from an encoded image to objects.

A *run* is one batch of images. Each run is timed twice, the one right after the other, so that whatever else the
machine does meets both: first end to end as its predictor works, in one thread, stage after stage; then the
network alone, on the very arrays that the first pass gave to it. The two are never mixed. Python's garbage collector
waits while a run is timed. Runs that do not count: the warm-up, and the first run of every new input shape, because
backends prepare themselves for a shape when they meet it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import cv2

from deploykit.errors import UsageError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.bench.images import Source, encoded_images, synthetic_image
from deploykit.runtime.bench.report import Benchmark, Encoded, Memory, Network, Part, Statistics
from deploykit.runtime.bench.runs import AnyPredictor, RecordingSession, Run, batches, limited, run_once
from deploykit.runtime.machine import Machine, peak_memory, reset_peak_memory, resident_memory, versions
from deploykit.runtime.options import MAX_PIXELS

__all__ = ["benchmark"]

FEWEST_WARM_RUNS = 3


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
            images = synthetic_image(predictor.spec.input.channels)
        machine = Machine.here()  # now, because its load average is to be that before the measurement
        watched = predictor.session = RecordingSession(limited(predictor, duration if runs is None else None))
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


def _warm_up(
    predictor: AnyPredictor, watched: RecordingSession, images: Encoded, seconds: float, progress: Progress
) -> int:
    if seconds:
        progress.step("warming up")
    start, count = time.perf_counter(), 0
    turns = batches(images, predictor.batch)
    while seconds and (count < FEWEST_WARM_RUNS or time.perf_counter() - start < seconds):
        progress.share("warming up", min((time.perf_counter() - start) / seconds, 1.0))
        run_once(predictor, watched, next(turns))
        count += 1
    return count


def _measure(
    predictor: AnyPredictor,
    watched: RecordingSession,
    images: Encoded,
    duration: float,
    runs: int | None,
    progress: Progress,
) -> tuple[list[Run], int, float]:
    """The runs that count, how many did not because their input had a new shape, and the seconds of all of them."""
    counted: list[Run] = []
    fresh = 0
    progress.step("measuring")
    start = time.perf_counter()
    for batch in batches(images, predictor.batch):
        passed = time.perf_counter() - start
        if len(counted) == runs or (runs is None and counted and passed >= duration):
            break
        progress.share("measuring", min(len(counted) / runs if runs else passed / duration, 1.0))
        run = run_once(predictor, watched, batch)
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


def _network(predictor: AnyPredictor, watched: RecordingSession, load_seconds: float) -> Network:
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


def _notes(images: Encoded, predictor: AnyPredictor, counted: list[Run], fresh: int) -> Iterator[str]:
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
