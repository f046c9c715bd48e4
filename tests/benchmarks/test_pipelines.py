"""The benchmark of several workers runs each of its jobs. No test judges a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import pipelines
from measured import result_of
from pipelines import MEASURED, ONE

from deploykit.runtime.images.video_writer import Mp4Writer
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "pipelines.py"


@pytest.mark.slow
def test_every_job_gives_a_ratio_for_every_number_of_workers(tmp_path: Path) -> None:
    model = write_cell_model(tmp_path / "cells.onnx", batch="batch", spec=cell_spec(dynamic=True))
    (tmp_path / "images").mkdir()
    for number in range(4):
        image = planted((number, 2, RED if number % 2 else BLUE), scale=4)
        (tmp_path / "images" / f"{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    with Mp4Writer(tmp_path / "film.mp4", 25) as writer:
        for _ in range(4):
            writer.write(image)
    words = ["--images", tmp_path / "images", "--video", tmp_path / "film.mp4", "--batch", 2, "--rounds", 1]
    kept = tmp_path / "kept.json"
    command = [sys.executable, SCRIPT, model, *words, "--workers", "auto", "--neighbours", 0, 1, "--json", kept]
    subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    result = result_of(kept.read_text())
    assert "auto is " in result.how
    assert [table.title.partition(", ")[2] for table in result.tables] == [
        f"{beside}{unit}" for beside in ("", "beside 1 busy process, ") for unit in MEASURED.values()
    ]
    jobs = ["folder, drawn", "folder, JSON", "folder, JSON, batch 2", "video, drawn"]
    for table in result.tables:
        assert [row.labels for row in table.rows] == [(job,) for job in jobs]
        assert all(row.values[ONE] > 0 and table.ratio_of(row, "auto") > 0 for row in table.rows)


def test_a_job_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round is always run, and one after the last second is not."""
    now, ran = [0.0], list[str]()

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        now[0] += 10.0
        ran.append(command[-1])
        return SimpleNamespace(stdout='{"seconds": 2.0, "processor": 3.0, "peak": 4.0}')

    monkeypatch.setattr(pipelines.subprocess, "run", run)
    monkeypatch.setattr(pipelines.time, "monotonic", lambda: now[0])
    args = SimpleNamespace(model="m.onnx", images="images", rounds=5)
    for end, rounds in ((0.0, 1), (30.0, 2), (1e9, 5)):
        now[0] = 0.0
        found = pipelines.rounds_of(["predict"], [ONE, "auto"], args, end)
        assert [len(each) for each in found.values()] == [rounds, rounds]
    assert sorted(set(ran)) == ["1", "auto"]
