"""Benchmarks: the arithmetic, which time goes to which stage, what counts, and what is said. No test judges a time."""

from __future__ import annotations

import gc
import itertools
import json
import math
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploykit
from deploykit.errors import BackendError, ImageError, NotFoundError, UsageError
from deploykit.progress import Progress
from deploykit.runtime import machine
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.bench import benchmark as bench
from deploykit.runtime.bench import images as bench_images
from deploykit.runtime.bench import runs as bench_runs
from deploykit.runtime.bench.benchmark import benchmark
from deploykit.runtime.bench.images import encoded_images
from deploykit.runtime.bench.report import Benchmark, Statistics
from deploykit.runtime.compute import default_threads
from deploykit.runtime.images.reading import decode_image
from deploykit.runtime.kinds import detection
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.predict import mosaic, predictor
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.sources import frames
from deploykit.spec import Fit, InputSpec, ModelSpec, RawDetections, Source
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model
from tests.heard import Heard

STAGES = ["decode", "letterbox", "inference", "postprocess", "rest"]
SPEC = ModelSpec("detect", InputSpec(size=(64, 64)), RawDetections(), ("thing",), source=Source(model="fake"))
IMAGE = planted((1, 2, RED), scale=2)


def encoded(image: Array = IMAGE) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def nothing(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"output": np.zeros((len(inputs["images"]), 5, 6), np.float32)}


def fake(answer: Callable[[Mapping[str, Array]], dict[str, Array]] = nothing, spec: ModelSpec = SPEC) -> Predictor:
    return Predictor(FakeSession(answer, spec=spec))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


quick = partial(benchmark, warmup=0.001)  # three runs

# The arithmetic.


def interpolated(values: list[float], percent: float) -> float:
    """A percentile in plain Python, as numpy's page defines its method 'linear'."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=250))
def test_statistics_are_what_they_are_called(values: list[float]) -> None:
    found = Statistics.of(values)
    assert (found.count, found.samples) == (len(values), tuple(values))
    for percent, got in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert got == pytest.approx(interpolated(values, percent), rel=1e-9)
        assert got == float(np.percentile(values, percent))
    assert found.min == min(values) <= found.p50 <= found.p90 <= found.p99 <= found.max == max(values)
    for percentile in found.unsure:  # as the command says
        assert sorted(values)[-2:][0] <= getattr(found, percentile) <= found.max
    assert found.min <= found.mean <= found.max
    assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    assert found.std == pytest.approx(math.sqrt(variance), rel=1e-6, abs=1e-6 * mean)


@pytest.mark.parametrize(
    ("count", "unsure"),
    [
        (1, ("p50", "p90", "p99")),
        (2, ("p90", "p99")),
        (9, ("p90", "p99")),
        (10, ("p99",)),
        (99, ("p99",)),
        (100, ()),
        (5000, ()),
    ],
)
def test_a_percentile_of_too_few_runs_is_called_so(count: int, unsure: tuple[str, ...]) -> None:
    assert Statistics.of([1.0] * count).unsure == unsure
    assert Statistics.of([1.0] * count).to_dict()["unsure"] == list(unsure)


def test_stages_add_up_to_the_end_to_end_time_of_their_run(model: Path) -> None:
    report = benchmark(lambda: deploykit.load(model), encoded(), runs=7, warmup=0.01)
    whole = report.end_to_end
    assert list(whole.stages) == STAGES
    for samples in zip(whole.total.samples, *(s.samples for s in whole.stages.values()), strict=True):
        total, *stages = samples
        assert sum(stages) == pytest.approx(total, abs=1e-6)
        assert all(ms > 0 for ms in stages)  # the rest as well: the four stages are less than everything
    for part in (whole, report.model_only):
        assert part.total.count == report.runs == 7
        assert part.images_per_second == pytest.approx(7 / (sum(part.total.samples) / 1e3))
    assert report.model_only.stages == {}
    assert report.seconds * 1e3 > sum(whole.total.samples) + sum(report.model_only.total.samples)


# Which time goes where: a clock that only moves when a part of the work moves it.


class _Clock:
    """Stands still but for ``tick``."""

    def __init__(self) -> None:
        self.now = 0  # nanoseconds

    def tick(self, ms: int) -> None:
        self.now += ms * 1_000_000

    def perf_counter(self) -> float:
        return self.now / 1e9

    def perf_counter_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    for module in (bench, bench_runs, predictor, frames):
        monkeypatch.setattr(module, "time", clock)
    return clock


def ticking(clock: _Clock, ms: int, calls: list[Array] | None = None) -> Predictor:
    """A fake network that takes so long."""

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(ms)
        if calls is not None:
            calls.append(inputs["images"].copy())
        return nothing(inputs)

    return fake(answer)


def slowed(monkeypatch: pytest.MonkeyPatch, clock: _Clock, module: SimpleNamespace, name: str, ms: int) -> None:
    do = getattr(module, name)

    def slow(*words: object, **options: object) -> object:
        clock.tick(ms)
        return do(*words, **options)

    monkeypatch.setattr(module, name, slow)


def test_each_stage_gets_its_own_time_and_no_other(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, clock, mosaic, "read_any_image", 3)
    slowed(monkeypatch, clock, predictor, "to_nchw", 5)
    slowed(monkeypatch, clock, detection, "decode_rows", 7)
    slowed(monkeypatch, clock, detection, "Result", 2)
    report = quick(lambda: ticking(clock, 40), encoded(), runs=4)
    means = {name: stage.mean for name, stage in report.end_to_end.stages.items()}
    assert means == pytest.approx({"decode": 3, "letterbox": 5, "inference": 40, "postprocess": 7, "rest": 2})
    assert report.end_to_end.total.mean == pytest.approx(57)
    assert report.model_only.total.mean == pytest.approx(40)
    assert report.end_to_end.images_per_second == pytest.approx(1000 / 57)
    assert report.model_only.images_per_second == pytest.approx(1000 / 40)


def test_a_slow_network_shows_in_inference_and_nowhere_else(clock: _Clock) -> None:
    means = [
        {name: stage.mean for name, stage in quick(load, encoded(), runs=2).end_to_end.stages.items()}
        for load in (lambda: ticking(clock, 10), lambda: ticking(clock, 900))
    ]
    assert [m.pop("inference") for m in means] == pytest.approx([10, 900])
    assert all(ms == pytest.approx(0, abs=1e-6) for m in means for ms in m.values())


def test_the_time_of_a_batch_is_that_of_all_its_images(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, clock, mosaic, "read_any_image", 3)
    spec = replace(SPEC, input=replace(SPEC.input, batch=4))

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(20)
        return nothing(inputs)

    report = quick(lambda: fake(answer, spec), encoded(), runs=3)
    assert report.batch == 4
    assert report.network.shapes == ((4, 3, 64, 64),)
    assert report.end_to_end.stages["decode"].mean == pytest.approx(12)
    assert report.end_to_end.stages["inference"].mean == pytest.approx(20)
    assert report.end_to_end.total.mean == pytest.approx(32)
    assert report.end_to_end.images_per_second == pytest.approx(4 / 0.032)
    assert report.model_only.images_per_second == pytest.approx(4 / 0.020)


def test_it_measures_for_the_requested_duration(clock: _Clock) -> None:
    report = benchmark(lambda: ticking(clock, 50), encoded(), duration=1.0, warmup=0.6)
    assert (report.warmup_runs, report.runs) == (6, 10)  # 100 ms a run: the network is called twice
    assert (report.warmup_seconds, report.seconds) == (pytest.approx(0.6), pytest.approx(1.0))
    assert benchmark(lambda: ticking(clock, 50), encoded(), duration=1e-6).runs == 1  # never none
    assert quick(lambda: ticking(clock, 50), encoded(), runs=3, duration=1e-6).runs == 3


def test_the_warm_up_is_not_counted(clock: _Clock) -> None:
    calls = itertools.count()

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(500 if next(calls) < 6 else 10)  # three runs of two calls
        return nothing(inputs)

    report = benchmark(lambda: fake(answer), encoded(), runs=5, warmup=0.001)
    assert report.warmup_runs == 3  # at least
    assert report.end_to_end.total.max == report.model_only.total.max == pytest.approx(10)
    assert next(calls) == 2 * (3 + 5)


def test_the_first_run_of_an_input_shape_is_not_counted(clock: _Clock) -> None:
    spec = replace(SPEC, input=replace(SPEC.input, dynamic="shape", fit=Fit(auto=True)))
    seen: set[tuple[int, ...]] = set()

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(10 if inputs["images"].shape in seen else 500)
        seen.add(inputs["images"].shape)
        return nothing(inputs)

    wide, high = (encoded(np.zeros(shape, np.uint8)) for shape in ((32, 64, 3), (64, 32, 3)))
    report = benchmark(lambda: fake(answer, spec), [wide, wide, wide, wide, high], runs=9, warmup=0.001)
    assert report.network.shapes == ((1, 3, 32, 64), (1, 3, 64, 32))
    assert report.end_to_end.total.max == pytest.approx(10)
    assert report.runs == 9
    assert report.notes == ("the first run of an input shape does not count: 1 such after the warm-up",)
    seen.clear()
    assert benchmark(lambda: fake(answer, spec), wide, duration=0.001, warmup=0).end_to_end.total.max < 11


def test_images_of_a_run_that_need_different_rectangles_are_reported_as_separate_calls(clock: _Clock) -> None:
    spec = replace(SPEC, input=replace(SPEC.input, dynamic="shape", batch=2, fit=Fit(auto=True)))

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(10)
        return nothing(inputs)

    wide, high = (encoded(np.zeros(shape, np.uint8)) for shape in ((32, 64, 3), (64, 32, 3)))
    report = quick(lambda: fake(answer, spec), [wide, high], runs=3)
    assert "in separate calls" in report.notes[0]
    assert report.model_only.total.mean == report.end_to_end.total.mean == pytest.approx(20)


# What is run.


def test_the_network_alone_gets_the_very_arrays_of_the_run_before(clock: _Clock) -> None:
    images = [encoded(planted((i, i, RED))) for i in range(5)]
    calls: list[Array] = []
    benchmark(lambda: ticking(clock, 1, calls), images, runs=5, warmup=0.001)
    assert len(calls) == 2 * (3 + 5)
    for first, second in zip(calls[::2], calls[1::2], strict=True):
        assert np.array_equal(first, second)
    measured = calls[2 * 3 :: 2]
    assert len({array.tobytes() for array in measured}) == 5  # each had its turn


def test_objects_are_counted_over_the_images_of_all_runs(tmp_path: Path) -> None:
    path = write_cell_model(tmp_path / "d.onnx", spec=cell_spec(dynamic=True), batch="n")
    images = [encoded(planted(*[(i, 1, RED) for i in range(0, 2 * count, 2)])) for count in (0, 1, 3)]
    report = quick(lambda: _loaded(path, batch=2), images, runs=3)
    assert report.batch == 2
    assert report.objects == pytest.approx(4 / 3)  # 0 + 1, 3 + 0, 1 + 3
    assert report.notes == ()


def _loaded(path: Path, *, batch: int) -> Predictor:
    return Predictor(deploykit.open_session(path, threads=1), options=PredictOptions(batch=batch))


def test_a_network_that_finds_nothing_and_one_that_finds_too_much(clock: _Clock) -> None:
    def everything(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(1)
        return {"output": np.random.default_rng(0).random((1, 3000, 6), np.float32) * 0.4 + 0.6}

    none = quick(lambda: ticking(clock, 1), None, runs=1)
    assert none.objects == 0
    assert "synthetic: nothing is found in it, so NMS has little to do" in none.notes[0]
    much = quick(lambda: fake(everything), None, runs=1)
    assert 0 < much.objects <= 300
    assert "synthetic: detections in it are meaningless" in much.notes[0]
    assert "more candidates than the 1000 that NMS looks at" in much.notes[1]


def test_the_collector_waits_while_a_run_is_timed_and_only_then(clock: _Clock) -> None:
    states: list[bool] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(1)
        states.append(gc.isenabled())
        return nothing(inputs)

    between: list[bool] = []

    class Between(Progress):
        def share(self, what: str, done: float) -> None:
            between.append(gc.isenabled())

    assert gc.isenabled()
    quick(lambda: fake(answer), encoded(), runs=3, progress=Between())
    assert (set(states), set(between), gc.isenabled()) == ({False}, {True}, True)
    gc.disable()
    try:
        quick(lambda: fake(answer), encoded(), runs=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_failing_network_leaves_everything_as_it_was(clock: _Clock) -> None:
    def fails(_: Mapping[str, Array]) -> dict[str, Array]:
        raise BackendError("out of memory")

    opened = fake(fails)
    session = opened.session
    with pytest.raises(BackendError, match="out of memory"):
        quick(lambda: opened, encoded(), runs=1)
    assert gc.isenabled()
    with pytest.raises(BackendError, match="closed"):
        session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})


def test_progress_is_reported_from_nothing_to_all(clock: _Clock) -> None:
    heard = Heard()
    benchmark(lambda: ticking(clock, 50), encoded(), duration=0.5, warmup=0.3, progress=heard)
    assert heard.steps == ["loading", "warming up", "measuring"]
    assert list(dict.fromkeys(what for what, _ in heard.shares)) == ["warming up", "measuring"]
    assert [round(done, 6) for what, done in heard.shares if what == "measuring"] == [0, 0.2, 0.4, 0.6, 0.8]


# The images.


def test_the_synthetic_frame_is_a_whole_jpeg_of_a_photographs_size_and_always_the_same() -> None:
    first, second = encoded_images(None), encoded_images(None)
    assert first == second
    assert (first.synthetic, first.sizes) == (True, ((1080, 1920),))
    (data,) = first.data
    assert data[:2] == b"\xff\xd8"
    assert 150_000 < len(data) < 800_000
    assert decode_image(data).shape == (1080, 1920, 3)


def test_folders_files_and_bytes_go_together(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, scale in (("b.png", 2), ("a.png", 1)):
        (folder / name).write_bytes(encoded(planted(scale=scale)))
    single = tmp_path / "c.png"
    single.write_bytes(encoded(planted(scale=3)))
    found = encoded_images([folder, str(single), encoded(planted(scale=4))])
    assert found.sizes == ((64, 64), (128, 128), (192, 192), (256, 256))
    assert found.data[2] == single.read_bytes()
    assert found.sources == (str(folder), str(single), "bytes in memory")
    assert not found.synthetic
    assert encoded_images(folder).sizes == ((64, 64), (128, 128))


def test_more_images_than_are_kept_are_reported_as_left_out(monkeypatch: pytest.MonkeyPatch, clock: _Clock) -> None:
    images = [encoded(planted((i, 0, BLUE))) for i in range(5)]
    monkeypatch.setattr(bench_images, "MOST_IMAGES", 3)
    assert (len(encoded_images(images).data), encoded_images(images).left_out) == (3, 2)
    notes = quick(lambda: ticking(clock, 1), images, runs=2).notes
    assert notes[0] == "only the first 3 of 5 images are used: they are kept in memory"
    assert notes[1] == "only 2 of 3 images had their turn: measure for longer (--duration)"
    monkeypatch.setattr(bench_images, "MOST_BYTES", len(images[0]) + len(images[1]))
    assert encoded_images(images).left_out == 3
    monkeypatch.setattr(bench_images, "MOST_BYTES", 1)
    assert encoded_images(images).left_out == 4  # one there must be


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ([], ImageError, "at least one image"),
        ("none.png", NotFoundError, r"none\.png, which does not exist"),
        ("empty", ImageError, "holds no image"),
        ("broken.png", ImageError, r"broken\.png is not a complete image"),
        (b"broken", ImageError, "an encoded image is not a complete image"),
        ("film.mp4", UsageError, r"film\.mp4 is a video"),
        ("0", UsageError, "0 is a camera"),
        (["broken.png", "film.mp4"], UsageError, r"film\.mp4 is a video"),
        ([IMAGE], UsageError, "files, folders or encoded bytes, got ndarray"),
    ],
)
def test_sources_without_images_are_refused_before_anything_is_loaded(
    source: object, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(error, match=said):
        benchmark(lambda: pytest.fail("it was loaded"), source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "numbers",
    [
        {"duration": 0},
        {"duration": -1},
        {"duration": math.nan},
        {"duration": math.inf},
        {"warmup": -0.1},
        {"warmup": math.nan},
        {"runs": 0},
        {"runs": -3},
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_loaded(numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        benchmark(lambda: pytest.fail("it was loaded"), encoded(), **numbers)  # type: ignore[arg-type]


# What is said.


def test_the_header_says_what_is_in_effect(model: Path) -> None:
    report = benchmark(lambda: deploykit.load(model), encoded(), runs=2, warmup=0)
    with deploykit.open_session(model) as session:
        assert report.network.providers == session.providers
    assert report.network.inputs == ("images float32 (1, 3, 64, 64)",)
    assert report.network.shapes == ((1, 3, 64, 64),)
    assert report.network.precision == "fp32"
    assert (report.network.threads, report.network.threads_from) == default_threads()
    assert report.opencv_threads == cv2.getNumThreads()
    assert report.spec == cell_spec()
    assert report.versions["numpy"] == np.__version__
    assert {"Python", "deploykit", "OpenCV", "onnxruntime"} <= set(report.versions)
    assert report.machine.cores <= report.machine.machine_cores
    one = quick(lambda: Predictor(deploykit.open_session(model, threads=1)), encoded(), runs=1)
    assert one.network.threads == 1


def test_notes_and_device_memory_are_the_sessions_own(clock: _Clock) -> None:
    def load() -> Predictor:
        predictor = ticking(clock, 1)
        predictor.session.notes = ("the GPU is slow today",)
        predictor.session.device_memory = 123_000
        return predictor

    report = quick(load, encoded(), runs=1)
    assert report.notes == ("the GPU is slow today",)
    assert report.memory.device == 123_000
    assert quick(lambda: ticking(clock, 1), encoded(), runs=1).memory.device is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory a process holds")
def test_memory_that_a_model_takes_is_seen(clock: _Clock) -> None:
    held = mmap.mmap(-1, 80_000_000)  # fresh pages: an array may get memory that the process holds already

    def load() -> Predictor:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        return ticking(clock, 1)

    with held:
        memory = quick(load, encoded(), runs=1).memory
    assert memory.before is not None
    assert memory.loaded is not None
    assert memory.peak is not None
    assert memory.loaded - memory.before > 70_000_000
    assert memory.peak > memory.before + 70_000_000


def test_where_the_system_says_little_the_report_says_so(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESS", Path("/proc/none"))
    memory = quick(lambda: ticking(clock, 1), encoded(), runs=1).memory
    assert (memory.before, memory.loaded, memory.peak_of_process) == (None, None, True)
    if os.name == "posix":
        assert memory.peak is not None
        assert memory.peak > 10_000_000


def test_one_thread_does_one_stage_after_the_other_whatever_the_predictor_does_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream reads ahead in threads of its own; then the stages of a run would add up to more than it takes."""
    threads: set[str] = set()
    load = reading_names(monkeypatch, threads)
    free = replace(SPEC, input=replace(SPEC.input, dynamic="batch"))

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        threads.add(threading.current_thread().name)
        return nothing(inputs)

    session = FakeSession(answer, spec=free)
    report = quick(lambda: Predictor(session, free, PredictOptions(batch=4, workers=3)), [encoded()] * 4, runs=3)
    assert load
    assert threads == {threading.current_thread().name}
    assert all(ms >= 0 for ms in report.end_to_end.stages["rest"].samples)


def reading_names(monkeypatch: pytest.MonkeyPatch, threads: set[str]) -> list[int]:
    """Note the thread of every image that is decoded."""
    calls: list[int] = []
    read = mosaic.read_any_image

    def noted(*words: Any, **options: Any) -> Any:
        calls.append(1)
        threads.add(threading.current_thread().name)
        return read(*words, **options)

    monkeypatch.setattr(mosaic, "read_any_image", noted)
    return calls


def test_the_report_is_json_with_every_number_and_no_image(clock: _Clock) -> None:
    report = quick(lambda: ticking(clock, 25), [encoded(), encoded()], runs=4)
    data = json.loads(json.dumps(report.to_dict()))
    assert set(data) == {
        "schema", "machine", "versions", "network", "opencv_threads", "spec", "images", "batch", "warmup_runs",
        "warmup_seconds", "runs", "seconds", "model_only", "end_to_end", "objects", "memory", "notes",
    }  # fmt: skip
    assert data["images"] == {
        "sources": ["bytes in memory"] * 2, "sizes": [[128, 128]] * 2, "left_out": 0, "synthetic": False,
        "bytes": 2 * len(encoded()), "count": 2,
    }  # fmt: skip
    for part, stages in (("model_only", []), ("end_to_end", STAGES)):
        assert list(data[part]["stages_ms"]) == stages
        assert set(data[part]) == {"includes", "images_per_second", "total_ms", "stages_ms"}
        times = data[part]["total_ms"]
        assert set(times) == {"count", "mean", "std", "min", "p50", "p90", "p99", "max", "unsure"}
        assert times["p50"] == pytest.approx(25)
        assert times["unsure"] == ["p90", "p99"]
    assert ModelSpec.from_json(json.dumps(data["spec"])) == SPEC
    with_samples = _parts_with_samples(report)
    assert with_samples == {"model_only": 4, "end_to_end": 4}


def _parts_with_samples(report: Benchmark) -> dict[str, int]:
    data = json.loads(json.dumps(report.to_dict(samples=True)))
    assert all(len(stage["samples"]) == 4 for stage in data["end_to_end"]["stages_ms"].values())
    return {part: len(data[part]["total_ms"]["samples"]) for part in ("model_only", "end_to_end")}


def test_the_two_measurements_say_what_they_include(clock: _Clock) -> None:
    report = quick(lambda: ticking(clock, 1), encoded(), runs=1)
    assert "ready float32 batch" in report.model_only.includes
    assert "not included: decoding, letterbox, postprocess" in report.model_only.includes
    assert "one thread" in report.end_to_end.includes
    assert "not included: reading files" in report.end_to_end.includes
