"""The command that runs all benchmarks, and the plain script that deploykit is compared with. No test judges a time."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import end_to_end

from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result
from deploykit.spec import InputSpec, ModelSpec, RawDetections

BENCHMARKS = Path(end_to_end.__file__).parent


@pytest.fixture(scope="module")
def every() -> ModuleType:
    """benchmarks/all.py."""
    spec = importlib.util.spec_from_file_location("all_benchmarks", BENCHMARKS / "all.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(every: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["all.py", *map(str, words)])
    code: int = every.main()
    return code


def test_numbers_that_mean_nothing_are_not_kept(
    every: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        called(every, monkeypatch, "--quick")
    assert "give --out" in capsys.readouterr().err
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    with pytest.raises(SystemExit):
        called(every, monkeypatch)
    assert "wait for an idle machine" in capsys.readouterr().err


def test_what_is_not_here_is_said_and_a_failure_stops_nothing(
    every: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run_for(seconds: float, command: list[str]) -> int | None:
        ran.append(command)
        return None if "cost.py" in str(command) else int("nms.py" in str(command))

    monkeypatch.setattr(every, "run_for", run_for)
    monkeypatch.setattr(every.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))  # no CUDA
    monkeypatch.setattr(every, "write_page", lambda out, page: page)
    assert called(every, monkeypatch, "--quick", "--out", tmp_path, "--weights", "w.pt") == 1
    out = capsys.readouterr().out
    assert "ultralytics_peer: left out, it needs --peer-python" in out
    assert "kernels: left out, it needs a GPU" in out
    assert "cost: ended, its time is over" in out
    assert "failed: nms, cost" in out
    scripts = [Path(command[1]).stem for command in ran]
    assert scripts == ["pre_post", "nms", "selection", "end_to_end", "cost", "pipelines", "memory", "export_time"]
    (words,) = (command for command in ran if command[1].endswith("end_to_end.py"))
    assert words[-2:] == ["--weights", "w.pt"]
    for one in every.BENCHMARKS:
        assert (BENCHMARKS / f"{one.name}.py").is_file()


def test_all_of_it_takes_at_most_25_minutes(every: ModuleType) -> None:
    assert sum(one.seconds for one in every.BENCHMARKS if one.needs != "cuda") <= 25 * 60


def test_a_benchmark_whose_time_is_over_is_ended_with_what_it_started(every: ModuleType, tmp_path: Path) -> None:
    started = tmp_path / "started"
    child = f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seconds = 0.0
    while not started.exists() or not started.read_text():  # a busy machine takes long to start it
        seconds += 2
        assert every.run_for(seconds, [sys.executable, "-c", parent]) is None
    number = int(started.read_text())
    for _ in range(100):
        if _gone(number):
            return
        time.sleep(0.1)
    pytest.fail(f"the process {number} still runs")


def _gone(number: int) -> bool:
    """Whether a process has ended; one that nobody has waited for is a zombie."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_an_exit_code_comes_back(every: ModuleType) -> None:
    assert every.run_for(60.0, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


@pytest.mark.slow
def test_a_benchmark_keeps_its_numbers_and_the_page_shows_them(
    every: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert called(every, monkeypatch, "--quick", "--out", tmp_path, "--only", "pre_post") == 0
    kept = json.loads((tmp_path / "pre_post.json").read_text())
    page = (tmp_path / "performance.md").read_text()
    assert all(table["title"] in page for table in kept["tables"])
    assert (tmp_path / "images" / "performance" / "ratios.svg").is_file()


def test_the_plain_script_and_deploykit_find_the_same() -> None:
    """One network of ready rows for both: objects at known places, and one that NMS must drop."""
    rows = np.zeros((1, 50, 7), np.float32)
    rows[0, :3] = [[100, 120, 40, 60, 0.9, 1, 0], [300, 250, 80, 30, 0.8, 0, 1], [102, 121, 40, 60, 0.7, 1, 0]]
    image = bytes(cv2.imencode(".png", np.full((480, 640, 3), 90, np.uint8))[1])
    spec = ModelSpec("detect", InputSpec(size=(640, 640)), RawDetections(cls=(5, 7)), ("a", "b"))
    predictor: Predictor[Result] = Predictor(FakeSession(lambda inputs: {"output": rows}, spec=spec))
    ours = predictor(image)
    blobs: list[Array] = []

    def run(_: None, feed: dict[str, Array]) -> list[Array]:
        blobs.append(feed["images"])
        return [rows.copy()]

    taken = SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="images")], run=run)
    boxes, scores = end_to_end.plain(taken, 640, image)
    np.testing.assert_allclose(scores, ours.scores, rtol=1e-6)
    np.testing.assert_allclose(boxes, ours.boxes, atol=1e-3)
    assert len(boxes) == 2
    assert blobs[0].shape == (1, 3, 640, 640)
    assert blobs[0][0, 0, 0, 0] == pytest.approx(114 / 255)
    ways: dict[str, Callable[[bytes], Any]] = {
        "deploykit": lambda _: ours,
        "plain script": partial(end_to_end.plain, taken, 640),
    }
    assert end_to_end.agreement(ways, (image,)) == "2 of 2"


def test_images_take_turns() -> None:
    seen: list[bytes] = []
    step = end_to_end.turn(seen.append, (b"a", b"b"))
    for _ in range(5):
        step()
    assert seen == [b"a", b"b", b"a", b"b", b"a"]
