# ruff: noqa: E402  (the scripts are found by the path that is set first)
"""The steps of the GPU benchmark on its stand-ins: they go to their end, and what fails or is skipped says so."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_parts import Device, Network, Sitting, Skipped, Step, rows_of, timed
from measured import Row, Table

from deploykit.errors import DeviceError
from deploykit.runtime.cuda import gpu_unavailable_reason


def sitting(tmp_path: Path, budget: float = 60) -> Sitting:
    device: Any = SimpleNamespace(real=False, name="a stand-in", facts=lambda: {"device": "a stand-in"})
    return Sitting(tmp_path / "out", budget, device)


def table(step: Step) -> list[Table]:
    return [Table("Times", ("name",), {"ms": "{:.1f}"}, (Row(("one",), {"ms": 1.0}),))]


def test_a_failing_step_is_recorded_and_the_next_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(step: Step) -> list[Table]:
        raise ValueError("two\nlines")

    def skips(step: Step) -> list[Table]:
        raise Skipped("needs a GPU")

    made = sitting(tmp_path)
    for name, work in (("first", fails), ("second", skips), ("third", table)):
        made.step(name, work, 1)
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [(s["name"], s["state"], s["reason"]) for s in kept["steps"]] == [
        ("first", "failed", "ValueError: two lines"), ("second", "skipped", "needs a GPU"), ("third", "done", ""),
    ]  # fmt: skip
    assert kept["steps"][2]["tables"][0]["rows"] == [{"labels": ["one"], "values": {"ms": 1.0}, "ratios": {}}]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert page.startswith("# a stand-in\n")
    assert "skipped in 0.0 s: needs a GPU" in page
    assert "| one | 1.0 |" in page
    assert "second" in capsys.readouterr().out


def test_what_is_not_begun_within_the_budget_is_skipped(tmp_path: Path) -> None:
    made = sitting(tmp_path, budget=5)
    made.step("long", table, 30)
    made.step("short", table, 1)
    long, short = made.steps
    assert (long.state, short.state) == ("skipped", "done")
    assert long.reason == "5 s are left, and it takes about 30"


def test_a_row_that_cannot_be_measured_is_left_out_with_its_reason() -> None:
    def skips() -> dict[str, float]:
        raise Skipped("no GPU")

    def fails() -> dict[str, float]:
        raise RuntimeError("out of memory")

    step = Step("rows")
    rows = rows_of(step, {("a", "1"): skips, ("b", "1"): lambda: {"ms": 2.0}, ("c", "1"): fails})
    assert rows == (Row(("b", "1"), {"ms": 2.0}),)
    assert step.left_out == ["a, 1: no GPU", "c, 1: RuntimeError: out of memory"]
    late = Step("late", ends=0)
    with pytest.raises(Skipped, match=r"none of its rows could be measured \(a: the time of the step was over\)"):
        rows_of(late, {("a",): lambda: {"ms": 1.0}})


def test_variants_run_in_turn_and_as_often_as_the_time_allows() -> None:
    calls: list[str] = []
    found = timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 10, 7)
    assert set(found) == {"a", "b"}
    assert calls.count("a") == calls.count("b") == 2 + 2 + 7  # to know how long one takes, to warm up, and to measure


def test_a_network_without_a_graph_is_measured_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    @contextlib.contextmanager
    def opened(self: Device, file: Path, batch: int, size: tuple[int, int], *, graph: bool = False) -> Iterator[Any]:
        asked.append(graph)
        if graph:
            raise Skipped("it has a loop")
        yield file

    monkeypatch.setattr(Device, "opened", opened)
    device, step = Device.__new__(Device), Step("end to end")
    device.real = True
    with device.fastest(Network("n", {"fp16": Path("n.onnx")}, (64, 64)), "fp16", 8, step) as session:
        assert session == Path("n.onnx")  # type: ignore[comparison-overlap]  # the stand-in yields its file
    assert asked == [True, False]
    assert step.left_out == ["n, fp16, 8, its graph: it has a loop"]


@pytest.mark.slow
def test_all_steps_go_to_their_end_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--budget",
        "2000",
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=2000)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["real"] is False
    assert kept["machine"]["device"].startswith("CPU stand-in")
    states = {step["name"]: (step["state"], step["reason"]) for step in kept["steps"]}
    measured = ("networks", "parity", "kernels", "NMS by image", "network alone", "end to end")
    assert {states[name] for name in measured} == {("done", "")}, states
    assert states["TensorRT"] == states["PyTorch"] == ("skipped", "needs a GPU")
    parity = next(step for step in kept["steps"] if step["name"] == "parity")["tables"][0]["rows"]
    assert {row["labels"][1] for row in parity} == {"fp32", "fp16"}
    assert all(row["values"]["of the limit"] <= 1 for row in parity)
    assert all(row["values"]["of the limit"] > 0 for row in parity if row["labels"][1] == "fp16")
    left_out = [line for step in kept["steps"] for line in step["left_out"]]
    assert left_out
    assert all(line.endswith("needs a GPU") for line in left_out), left_out
    assert "CPU stand-in" in (tmp_path / "gpu.md").read_text()


def test_the_driver_runs_its_parts_where_there_is_no_gpu(tmp_path: Path) -> None:
    """With a time that is over at once, each part says that it is skipped, and the script ends."""
    script = ROOT / "benchmarks" / "gpu_run.sh"
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(script), str(tmp_path), "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for part in ("providers", "kernels", "tests", "measured"):
        assert f"== {part}: skipped, no time is left" in done.stdout


@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the script adds to
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
    assert ended.value.code == DeviceError.exit_code
    assert capsys.readouterr().err.startswith("an NVIDIA GPU is required, but ")
    assert not list(tmp_path.iterdir())
