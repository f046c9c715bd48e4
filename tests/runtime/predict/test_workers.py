"""Several workers give the results of one, bit by bit: images, videos, batches, failures, and networks of any kind."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit
from deploykit.errors import ImageError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.options import ComputeKeywords, PredictOptions
from deploykit.runtime.pipeline import workers as planning
from deploykit.runtime.pipeline.workers import TOGETHER, images_together, plan_workers
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result
from deploykit.spec import InputSpec, ModelSpec, RawDetections
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model

COLOURS = (RED, BLUE)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A network with a dynamic batch, and images of several sizes, the last of which cannot be read."""
    folder = tmp_path_factory.mktemp("workers")
    model = write_cell_model(folder / "cells.onnx", batch="batch", spec=cell_spec(dynamic=True))
    images = []
    for number in range(7):
        image = planted((number, number % 5, COLOURS[number % 2]), scale=2 + number % 3, wide=1 + number % 2)
        images.append(folder / f"{number}.png")
        images[-1].write_bytes(cv2.imencode(".png", image)[1].tobytes())
    images.append(folder / "broken.png")
    images[-1].write_bytes(images[0].read_bytes()[:100])
    return model, images


def _facts(result: Result) -> tuple[object, ...]:
    points = None if result.keypoints is None else result.keypoints.tobytes()
    image = None if result.image is None else result.image.tobytes()
    arrays = (result.boxes.tobytes(), result.scores.tobytes(), result.labels.tobytes())
    return (result.name, result.frame, result.size, *arrays, points, image)


def _seen(model: Predictor[Result], source: object, *, workers: int, tells: bool) -> list[object]:
    found: list[object] = []
    skip = (lambda error: found.append(str(error))) if tells else None
    try:
        for result in model.stream(source, skip=skip, workers=workers):  # type: ignore[arg-type]  # paths and arrays
            found.append(_facts(result))
    except ImageError as e:
        found.append(f"raised: {e}")
    return found


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.integers(0, 7), min_size=1, max_size=16),
    batch=st.integers(1, 4), workers=st.integers(2, 5), tells=st.booleans(), in_memory=st.booleans(),
)  # fmt: skip
def test_images_in_any_order_with_failures(
    files: tuple[Path, list[Path]], order: list[int], batch: int, workers: int, tells: bool, in_memory: bool
) -> None:
    path, images = files

    def source() -> list[object]:
        opened = [io.BytesIO(image.read_bytes()) for image in images]  # which a first reading leaves at its end
        return [opened[i] if in_memory else images[i] for i in order]

    model = deploykit.load(path, task="keypoints", batch=batch)
    one = _seen(model, source(), workers=1, tells=tells)
    assert _seen(model, source(), workers=workers, tells=tells) == one
    unread = len(order) - len(set(order) - {7}) if in_memory else order.count(7)
    assert sum(isinstance(each, str) for each in one) == (unread if tells else min(unread, 1))
    assert not tells or len(one) == len(order)


def test_a_video_by_several_workers(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with Mp4Writer(film, 25) as writer:
        for number in range(30):
            writer.write(planted((number % 8, number // 8, COLOURS[number % 2]), scale=4))
    for batch, every in ((1, 1), (4, 1), (1, 3)):
        model = deploykit.load(files[0], task="keypoints", batch=batch, every=every)
        one = _seen(model, film, workers=1, tells=False)
        assert len(one) == -(-30 // every)
        assert _seen(model, film, workers=3, tells=False) == one


def test_a_session_that_is_not_for_several_threads_runs_in_the_callers(files: tuple[Path, list[Path]]) -> None:
    threads = set()

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        threads.add(threading.current_thread())
        return {"output": np.zeros((1, 4, 10), np.float32)}

    with Predictor(FakeSession(answer, spec=cell_spec())) as model:
        assert len(list(model.stream(files[1][:7], workers=4))) == 7
    assert threads == {threading.current_thread()}


def test_a_stream_that_is_left_early_leaves_no_thread(files: tuple[Path, list[Path]]) -> None:
    before = threading.active_count()
    model = deploykit.load(files[0], task="keypoints", workers=4)
    found = model.stream(files[1][:7] * 20)
    assert next(found).name == str(files[1][0])
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("asked", "options", "cores", "path", "expected"),
    [
        (None, {}, 8, "m.onnx", (8, 1)),
        ("auto", {"device": "cpu"}, 64, "m.onnx", (16, 4)),
        (2, {}, 8, "m.onnx", (2, 4)),
        (1, {}, 8, "m.onnx", (1, None)),
        ("auto", {}, 1, "m.onnx", (1, None)),
        ("auto", {"threads": 3}, 8, "m.onnx", (2, 3)),  # the share of the machine that was given
        ("auto", {"threads": 1}, 8, "m.onnx", (1, 1)),
        (4, {"threads": 2}, 8, "m.onnx", (4, 2)),
        ("auto", {"device": "cuda"}, 8, "m.onnx", (2, None)),
        ("auto", {}, 8, "m.trt", (2, None)),
        ("auto", {}, 8, "m.pt", (2, None)),
    ],
)
def test_workers_and_threads_follow_from_the_machine_and_the_network(
    asked: int | None, options: ComputeKeywords, cores: int, path: str, expected: tuple[int, int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(planning, "usable_cores", lambda: (cores, ""))
    count, compute = plan_workers(path, asked, options)
    assert (count, compute.get("threads")) == expected


def test_a_share_in_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "usable_cores", lambda: (8, ""))
    monkeypatch.setenv("DEPLOYKIT_THREADS", "1")
    assert plan_workers("m.onnx", "auto", {}) == (1, {})


def test_a_network_is_opened_for_its_workers(files: tuple[Path, list[Path]]) -> None:
    assert deploykit.load(files[0], workers=64).session.threads == 1
    assert deploykit.load(files[0], workers=64).workers == 64
    for wrong in (0, -1):
        with pytest.raises(UsageError, match="workers must be a number from 1 on, or auto"):
            deploykit.load(files[0], workers=wrong)
        with pytest.raises(UsageError, match="workers must be a number from 1 on, or auto"):
            deploykit.load(files[0]).stream(files[1], workers=wrong)


@given(batch=st.integers(1, 100), height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_images_that_run_together_have_few_pixels(batch: int, height: int, width: int) -> None:
    count = images_together(batch, (height, width))
    assert 1 <= count <= batch
    assert count == 1 or count * height * width <= TOGETHER
    assert count == batch or (count + 1) * height * width > TOGETHER


@pytest.mark.parametrize(
    ("threads", "provider", "size", "dynamic", "expected"),
    [
        (1, "CPUExecutionProvider", (640, 480), "batch", [1] * 6),
        (1, "CPUExecutionProvider", (320, 640), "batch", [2] * 3),
        (1, "CPUExecutionProvider", (160, 160), "batch", [4, 2]),
        (1, "CPUExecutionProvider", (640, 480), "none", [4, 4]),
        (2, "CPUExecutionProvider", (640, 480), "batch", [4, 2]),
        (1, "CUDAExecutionProvider", (640, 480), "batch", [4, 2]),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_one_thread_runs_few_large_images_together(
    threads: int, provider: str, size: tuple[int, int], dynamic: str, expected: list[int], workers: int
) -> None:
    seen: list[int] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        (images,) = inputs.values()
        seen.append(len(images))
        return {"output": np.zeros((len(images), 3, 6), np.float32)}

    layout = InputSpec(size=size, batch=4 if dynamic == "none" else 1, dynamic=dynamic)
    session = FakeSession(answer, spec=ModelSpec("detect", layout, RawDetections(cls=(5, 6)), ("thing",)))
    session.threads, session.providers, session.concurrent = threads, (provider,), True
    model: Predictor[Result] = Predictor(session, options=PredictOptions(batch=4))
    images = [np.zeros((*size, 3), np.uint8)] * 6
    assert len(list(model.stream(images, workers=workers))) == 6
    assert sorted(seen, reverse=True) == expected
    assert any("one thread of a CPU" in note for note in model.notes) == (expected[0] < 4)
