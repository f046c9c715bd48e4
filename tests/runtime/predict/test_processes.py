"""One predictor by many threads, in other processes, copied, closed, dropped, and at the end of the interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deploykit
from deploykit import errors
from deploykit.errors import BackendError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.run_limit import RunEnd, interrupts_end_runs
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.session import open_session
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model
from tests.forked import facts, forked, predicted
from tests.runtime.test_run_limit import write_endless_model
from tests.serving import MARKERS

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
BLACK = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def desk() -> Array:
    return cv2.imread(str(Path(MARKERS).with_name("markers.jpg")))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", batch="batch", spec=cell_spec(dynamic=True))


def held() -> tuple[int, list[str]]:
    """The threads of this process, and its open files."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            names.append(str(link.readlink()))
    return threading.active_count(), sorted(names)


def test_many_threads_find_what_one_finds(desk: Array) -> None:
    images = [desk, np.ascontiguousarray(desk[::2, ::2]), np.ascontiguousarray(desk[:, ::-1]), desk[:201, :333].copy()]
    with deploykit.load(MARKERS, task="keypoints", threads=2) as model:
        alone = [predicted(model, image) for image in images]
        assert len(alone[0][1]), "there is something to find"  # type: ignore[arg-type]  # bytes

        def work(first: int) -> None:
            order = [(first + n) % 4 for n in range(2)]
            assert [predicted(model, images[n]) for n in order] == [alone[n] for n in order]
            found = model.stream([images[n] for n in order], workers=1 + first % 2)
            assert [facts(result) for result in found] == [alone[n] for n in order]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))


@settings(max_examples=5)
@given(
    seed=st.integers(0, 2**32 - 1), threads=st.integers(1, 4), workers=st.integers(1, 3),
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=3),
)  # fmt: skip
def test_threads_and_workers_and_repetition_change_no_byte(
    seed: int, threads: int, workers: int, sizes: list[tuple[int, int]]
) -> None:
    noise = np.random.default_rng(seed)
    images = [noise.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    with (
        deploykit.load(MARKERS, task="keypoints", threads=1, conf=0.0, iou=1.0) as one,
        deploykit.load(MARKERS, task="keypoints", threads=threads, conf=0.0, iou=1.0) as model,
    ):
        expected = [predicted(one, image) for image in images]
        assert [predicted(one, image) for image in images] == expected
        assert [facts(result) for result in model.stream(images, workers=workers)] == expected


@FORK
@pytest.mark.parametrize("ran", [False, True], ids=["before a run", "after one"])
def test_a_fork_finds_the_same(desk: Array, ran: bool, caplog: pytest.LogCaptureFixture) -> None:
    with deploykit.load(MARKERS, task="keypoints", threads=1) as other:
        expected = predicted(other, desk)
    model = deploykit.load(MARKERS, task="keypoints", threads=3, workers=3)
    if ran:
        assert predicted(model, desk) == expected

    def work() -> None:
        for _ in range(2):
            assert predicted(model, desk) == expected
        assert sum("before this process was forked" in text for text in caplog.messages) == 1
        assert [facts(found) for found in model.stream([desk] * 4)] == [expected] * 4
        with deploykit.load(MARKERS, task="keypoints", threads=2) as own:
            assert predicted(own, desk) == expected
        model.close()
        gc.collect()

    def drop() -> None:
        nonlocal model
        assert predicted(model, desk) == expected
        del model

    forked(work)
    forked(drop)
    assert predicted(model, desk) == expected
    assert not caplog.messages
    model.close()


@pytest.mark.parametrize(
    "way", [pytest.param("fork", marks=pytest.mark.slow), "spawn", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_a_predictor_is_sent_to_a_process(way: str, tmp_path: Path) -> None:
    if os.name == "nt" and way != "spawn":
        pytest.skip("Windows has spawn alone")
    image = str(Path(MARKERS).with_name("markers.jpg"))
    words = [sys.executable, "-W", "ignore", "-m", "tests.forked", way, MARKERS, image, "found"]
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 0


def test_a_pickle_holds_the_path_and_the_options(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cells.parent)
    image = planted((1, 2, RED), (3, 4, BLUE))
    spec = replace(cell_spec(dynamic=True), classes=("cat", "dog"))
    with deploykit.load("cells.onnx", task="keypoints", spec=spec, classes=["dog"], max_det=7, threads=1) as model:
        data, expected = pickle.dumps(model), predicted(model, image)
    assert len(data) < 4000
    monkeypatch.chdir("/")
    with pickle.loads(data) as again:
        assert (again.options, again.spec, again.session.threads) == (model.options, spec, 1)
        assert predicted(again, image) == expected
        assert again(image).counts() == {"dog": 1}
        with pickle.loads(pickle.dumps(again)) as third:
            assert predicted(third, image) == expected
    cells.unlink()
    with pytest.raises(NotFoundError, match=r"cells\.onnx"):
        pickle.loads(data)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_is_made_around_an_open_session_says_why_it_cannot_be_sent(
    cells: Path, copied: Callable[[object], object]
) -> None:
    with open_session(cells) as session:
        with pytest.raises(UsageError, match=r"made around an open session.*deploykit\.load\(path\) makes one"):
            copied(Predictor(session))
        with pytest.raises(UsageError, match=r"memory of its process.*open the file there"):
            copied(session)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_a_session_of_its_own(cells: Path, copied: Callable[[Any], Any]) -> None:
    image = planted((1, 2, RED))
    with deploykit.load(cells, task="keypoints") as model:
        expected = predicted(model, image)
        copied(model).close()
        assert predicted(model, image) == expected


def test_results_and_errors_can_be_sent(desk: Array) -> None:
    with deploykit.load(MARKERS, task="keypoints", threads=1) as model:
        result = model(desk)
    again = pickle.loads(pickle.dumps(result))
    assert facts(again) == facts(result)
    assert again.to_dict() == result.to_dict()
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("words")))
        assert (type(error), str(error)) == (kind, "words")
    assert len(kinds) > 20


def test_what_begins_after_the_end_is_an_error_of_ours(cells: Path) -> None:
    model = deploykit.load(cells, task="keypoints")
    prepared = model.prepare(BLACK)
    model.close()
    model.close()
    late: list[Callable[[], object]] = [
        lambda: model(BLACK), lambda: list(model.stream([BLACK] * 3)), lambda: model.run([prepared]),
        lambda: list(model.stream([BLACK] * 3, workers=1)),
    ]  # fmt: skip
    for call in late:
        with pytest.raises(BackendError, match="is closed"):
            call()
    assert "keypoints" in repr(model)
    with deploykit.load(cells) as opened, opened:
        pass


def test_closing_while_others_run_gives_results_or_says_closed(desk: Array) -> None:
    for turn in range(4):
        model = deploykit.load(MARKERS, task="keypoints", threads=2)
        expected, done, wrong = predicted(model, desk), [], []

        def run(model: Predictor[Any] = model, expected: object = expected, done: list[int] = done,
                wrong: list[str] = wrong) -> None:  # fmt: skip
            try:
                while True:
                    assert predicted(model, desk) == expected
                    done.append(1)
            except BackendError as e:
                if "is closed" not in str(e):
                    wrong.append(str(e))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not done:
            time.sleep(0.001)
        time.sleep(0.002 * turn)
        model.close()
        for thread in threads:
            thread.join(30)
        assert wrong == []


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_what_is_dropped_is_freed_without_being_closed(desk: Array) -> None:
    with deploykit.load(MARKERS, threads=2) as warm:
        warm(desk)
    before = held()
    gc.disable()
    try:
        model = deploykit.load(MARKERS, threads=2, workers=3)
        stream = model.stream([desk] * 20)
        next(stream)
        session = weakref.ref(model.session)
        inner = weakref.ref(model.session._session)  # type: ignore[attr-defined]  # ONNX Runtime's own
        del model, stream
        assert session() is None
        assert inner() is None
    finally:
        gc.enable()
    assert held() == before


def test_an_event_loop_predicts_in_threads(desk: Array) -> None:
    async def work(model: Predictor[Any]) -> list[tuple[object, ...]]:
        loop = asyncio.get_running_loop()
        calls: Any = [asyncio.to_thread(predicted, model, desk) for _ in range(3)]
        calls += [loop.run_in_executor(None, predicted, model, desk) for _ in range(3)]
        return list(await asyncio.gather(*calls))

    with deploykit.load(MARKERS, task="keypoints", threads=1) as model:
        assert asyncio.run(work(model)) == [predicted(model, desk)] * 6


def test_an_event_loop_gives_up_a_run(tmp_path: Path) -> None:
    async def work(model: Predictor[Any]) -> None:
        end = RunEnd()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(end.call, model, BLACK), 0.3)
        end.end()

    with deploykit.load(write_endless_model(tmp_path / "m.onnx"), threads=1) as model:
        start = time.monotonic()
        asyncio.run(work(model))  # which waits for the threads at its end
        assert time.monotonic() - start < 20


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="Ctrl-C cannot be sent to this process alone")
def test_ctrl_c_ends_a_run_in_a_program_that_asks_for_it(tmp_path: Path) -> None:
    with deploykit.load(write_endless_model(tmp_path / "m.onnx"), threads=1) as model:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt), interrupts_end_runs():
            model(BLACK)
        timer.join()


END = """
import sys, threading, time
import numpy, deploykit
image = numpy.zeros((480, 640, 3), numpy.uint8)
model = deploykit.load(sys.argv[1], threads=2, workers=3)
"""
ENDS = {
    "an open predictor": "model(image)",
    "a stream that goes on": "stream = model.stream([image] * 50); next(stream)",
    "a cycle of both": "stream = model.stream([image] * 50); next(stream); model.own = (model, stream)",
    "an exit": "stream = model.stream([image] * 50); next(stream); sys.exit(0)",
    "a daemon thread that predicts": (
        "threading.Thread(target=lambda: [model(image) for _ in iter(int, 1)], daemon=True).start(); time.sleep(0.5)"
    ),
    "a fork that exits": (
        "import os, warnings; warnings.simplefilter('ignore'); model(image); child = os.fork()\n"
        "if not child:\n    model(image)\n    sys.exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    ),
    "one that never ends": (
        "model = deploykit.load(sys.argv[2], threads=1)\n"
        "threading.Thread(target=lambda: model(image), daemon=True).start(); time.sleep(0.5)"
    ),
}


FAST = ("a stream that goes on", "a daemon thread that predicts", "a fork that exits")


@pytest.mark.parametrize("end", [end if end in FAST else pytest.param(end, marks=pytest.mark.slow) for end in ENDS])
def test_the_interpreter_ends_quietly(end: str, tmp_path: Path) -> None:
    if "fork" in end and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    endless = write_endless_model(tmp_path / "endless.onnx")
    words = [sys.executable, "-W", "error", "-c", END + ENDS[end], MARKERS, str(endless)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
