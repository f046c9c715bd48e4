"""What a process holds does not grow over many predictions and loads, and growth is seen. No test judges a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import deploykit
from deploykit.facade import load
from tests.cell_model import cell_spec, write_cell_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import steady_memory
from steady_memory import Held, Series, loads, predictions, series

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")


@pytest.fixture
def cells(tmp_path: Path) -> str:
    return str(write_cell_model(tmp_path / "cells.onnx", batch="batch", spec=cell_spec(dynamic=True)))


def test_growth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Collecting the garbage of all earlier tests ten times takes long; a list that grows is none.
    monkeypatch.setattr(steady_memory, "gc", SimpleNamespace(collect=int))
    kept: list[object] = []
    found = series("a leak", 10, lambda times: kept.append(np.ones(times << 19)))  # 4 MiB each time
    assert found.growth > 30
    assert not found.flat
    first = Held(100.0, 1, 6)
    assert Series("equal", 1, (first, Held(105.0, 1, 6))).flat
    assert not Series("a thread more", 1, (first, Held(100.0, 2, 6))).flat
    assert not Series("a file more", 1, (first, Held(100.0, 1, 7))).flat


def test_every_series_is_measured(cells: str, tmp_path: Path) -> None:
    words = ["--model", cells, "--predictions", "40", "--loads", "10", "--json", str(tmp_path / "kept.json")]
    done = subprocess.run([sys.executable, steady_memory.__file__, *words], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: so few need not be flat
    found = json.loads((tmp_path / "kept.json").read_text())["series"]
    assert [each["count"] for each in found] == [40, 40, 40, 10, 10]
    assert all(len(each["readings"]) == 10 and each["readings"][-1]["mib"] > 10 for each in found)


@pytest.mark.slow
def test_ten_thousand_predictions_and_a_thousand_loads_hold_what_a_few_hold(cells: str) -> None:
    for each in (*predictions(cells, 10_000), *loads(cells, 1_000)):
        assert each.flat, each


@pytest.mark.slow
def test_a_thousand_engines_on_a_stand_in_for_a_gpu_hold_what_a_few_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.runtime.backends.trt import session as trt
    from deploykit.runtime.engine_record import EngineRecord
    from tests import cpu_tensorrt
    from tests.cpu_tensorrt import CpuGpu, write_engine

    device = CpuGpu()
    monkeypatch.setattr(trt, "open_gpu", lambda index=0: device)
    monkeypatch.setitem(sys.modules, "tensorrt", cpu_tensorrt)
    monkeypatch.setattr(trt, "installed", lambda: ("tensorrt",))
    engine = write_engine(tmp_path / "cells.trt", write_cell_model(tmp_path / "cells.onnx", spec=cell_spec()))
    EngineRecord(
        "tensorrt", "10.16.0.1", cell_spec(), "cells.onnx", "00", size=engine.stat().st_size, verified=True
    ).write(engine)
    with deploykit.load(engine) as model:
        for _ in range(4):  # the third run is captured in a graph
            model(np.zeros((64, 64, 3), np.uint8))
        live = device.live
        for _ in range(1_000):
            model(np.zeros((64, 64, 3), np.uint8))
        assert device.live == live
    for each in loads(str(engine), 500, load):
        assert each.flat, each
        assert device.live == 0
