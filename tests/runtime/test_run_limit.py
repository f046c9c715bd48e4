"""Networks that never end: a time limit and Ctrl-C end them, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import deploykit
from deploykit.cli import main
from deploykit.errors import BackendError, UsageError
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.backends.run_limit import RunEnd, RunLimit
from deploykit.runtime.session import open_session
from tests.cell_model import cell_spec, write_cell_model

IMAGES = {"images": np.zeros((1, 3, 64, 64), np.float32)}


def write_endless_model(path: Path, trips: int = 2**62, *, if_bright: bool = False) -> Path:
    """The cell model, whose output then goes ``trips`` times through a loop that does nothing; ``if_bright``: only for
    images that are not black."""
    model = onnx.load(write_cell_model(path, spec=cell_spec()))
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["once" if name == output else name for name in node.output]
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name} again"]) for name in ("on", "rows")],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("rows again", TensorProto.FLOAT, None),
        ],
    )
    if if_bright:
        graph.initializer.append(helper.make_tensor("most", TensorProto.FLOAT, [], [float(trips)]))
        graph.node.append(helper.make_node("ReduceMax", [graph.input[0].name], ["brightest"], keepdims=0))
        graph.node.append(helper.make_node("Mul", ["brightest", "most"], ["times"]))
        graph.node.append(helper.make_node("Cast", ["times"], ["trips"], to=TensorProto.INT64))
    else:
        graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [trips]))
    graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    graph.node.append(helper.make_node("Loop", ["trips", "yes", "once"], [output], body=body))
    onnx.save(model, path)
    return path


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    return write_endless_model(tmp_path / "endless.onnx")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    return tmp_path / "a.png"


def test_a_draft_of_a_spec_does_not_run_for_ever(
    endless: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(endless)
    del model.metadata_props[:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"  # so that only a run tells how many
    onnx.save(model, endless)
    stopped = r"longer than the time limit of 0\.3 s"
    with pytest.raises(BackendError, match=stopped):
        deploykit.load(endless, time_limit=0.3)
    assert main(["bench", "--engine", str(endless), "--time-limit", "0.3"]) == BackendError.exit_code
    monkeypatch.setattr("deploykit.runtime.foreign.probe.SECONDS", 0.3)
    with pytest.raises(BackendError, match=stopped):
        deploykit.load(endless)
    assert main(["inspect", str(endless)]) == BackendError.exit_code
    assert "time limit of 0.3 s" in capsys.readouterr().err


def test_a_run_over_the_limit_is_ended_and_the_next_one_counts_anew(endless: Path) -> None:
    with open_session(endless) as session:
        session.limit_time(0.2)
        for _ in range(2):
            start = time.perf_counter()
            with pytest.raises(
                BackendError, match=r"endless\.onnx was stopped: .* longer than the time limit of 0\.2 s"
            ):
                session.run(IMAGES)
            assert 0.2 <= time.perf_counter() - start < 5


def test_runs_within_the_limit_give_what_they_give_without(tmp_path: Path) -> None:
    with open_session(write_endless_model(tmp_path / "m.onnx", trips=3)) as session:
        expected = session.run(IMAGES)["output"]
        session.limit_time(60)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: session.run(IMAGES)["output"], range(40)):
                np.testing.assert_array_equal(found, expected)
        session.limit_time(None)
        np.testing.assert_array_equal(session.run(IMAGES)["output"], expected)


def test_only_the_run_that_takes_too_long_is_ended() -> None:
    class Flag:
        terminate = False

    limit, slow, fast = RunLimit(0.1), Flag(), Flag()
    with limit.watch(slow):
        time.sleep(0.2)
        with limit.watch(fast):
            pass
        deadline = time.monotonic() + 5
        while not slow.terminate and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (slow.terminate, fast.terminate) == (True, False)
    deadline = time.monotonic() + 5
    while any(t.name == "run limit" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name == "run limit" for t in threading.enumerate()), "it ends with the last run"


def test_a_run_that_nobody_waits_for_is_ended_and_no_other(endless: Path, tmp_path: Path) -> None:
    end, other = RunEnd(), RunEnd()
    quick = write_endless_model(tmp_path / "quick.onnx", trips=3)
    stopped = "was stopped because nobody waits for its result any more"
    with open_session(endless) as session, open_session(quick) as second, ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(each.call, session.run, IMAGES) for each in (end, other)]
        time.sleep(0.2)
        end.end()
        with pytest.raises(BackendError, match=stopped):
            runs[0].result(10)
        assert not runs[1].done()
        assert list(other.call(second.run, IMAGES)) == ["output"]
        with pytest.raises(BackendError, match=stopped):
            end.call(second.run, IMAGES)  # what would have followed
        assert list(second.run(IMAGES)) == ["output"]
        other.end()
        with pytest.raises(BackendError, match=stopped):
            runs[1].result(10)


FORKED = """
import os, signal, sys, threading, time
import numpy
from deploykit.errors import BackendError
from deploykit.runtime.backends.run_limit import RunEnd, interrupts_end_runs
from deploykit.runtime.session import open_session
images = {"images": numpy.zeros((1, 3, 64, 64), numpy.float32)}
session, end, said = open_session(sys.argv[1], threads=1), RunEnd(), []
session.limit_time(60)
def run():
    try:
        end.call(session.run, images)
    except BackendError as e:
        said.append(str(e))
thread = threading.Thread(target=run)
signal.signal(signal.SIGTERM, lambda *_: None)  # which Python is woken by all the same
with interrupts_end_runs():
    thread.start()
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        try:
            os.kill(os.getpid(), signal.SIGTERM)  # the child's own
            session._limit.seconds = 0.2
            session.run(images)
        except BackendError as e:
            os._exit(7 if "time limit of 0.2 s" in str(e) else 8)
        os._exit(9)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert thread.is_alive(), said
end.end()
thread.join(10)
print(code, said)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_its_own_limits_and_signals(endless: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", FORKED, str(endless)]  # Python 3.12 warns of a fork beside threads
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("7 ['a run of ")
    assert "nobody waits" in done.stdout


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, seconds: float) -> None:
    model = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    with open_session(model) as session, pytest.raises(UsageError, match="must be over 0 seconds"):
        session.limit_time(seconds)


def test_a_backend_that_cannot_end_a_run_says_so() -> None:
    session = FakeSession(lambda _: {}, spec=cell_spec())
    session.limit_time(None)
    with pytest.raises(UsageError, match=r"a time limit needs an \.onnx file in ONNX Runtime"):
        session.limit_time(1)


def test_every_way_in_takes_the_limit(
    endless: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(BackendError, match=r"time limit of 0\.3 s"):
        deploykit.load(endless, time_limit=0.3)(image)
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(truth))
    words = {
        "predict": ["--model", str(endless), "--source", str(image)],
        "bench": ["--engine", str(endless), "--duration", "1"],
        "eval": ["--model", str(endless), "--data", str(tmp_path / "coco.json"), "--images", str(tmp_path)],
    }
    words["eval"] += ["--task", "detect"]
    for command, given in words.items():
        assert main([command, *given, "--time-limit", "0.3"]) == BackendError.exit_code
        assert "longer than the time limit of 0.3 s" in capsys.readouterr().err


def test_a_benchmark_of_some_seconds_ends_without_being_told(
    endless: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("deploykit.runtime.bench.runs.LONGEST_RUN", 0.3)
    assert main(["bench", "--engine", str(endless), "--duration", "0.01"]) == BackendError.exit_code
    assert "longer than the time limit of 0.3 s" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_an_endless_run(endless: Path, image: Path, number: int, code: int) -> None:
    words = [sys.executable, "-m", "deploykit", "predict", "-v", "--model", str(endless), "--source", str(image)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ), text=True)
    assert process.stderr is not None
    try:
        while "outputs output" not in (line := process.stderr.readline()):
            assert line, "it ended before it opened the model"
        opened, deadline = _cpu_seconds(process.pid), time.monotonic() + 60
        while _cpu_seconds(process.pid) < opened + 0.7 and time.monotonic() < deadline:  # reading the image takes less
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, said.count("\n")) == (code, 1), said


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
