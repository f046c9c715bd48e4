"""The benchmark of several workers runs each of its jobs. No test judges a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest

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
    command = [sys.executable, SCRIPT, model, *words, "--workers", "auto", "--neighbours", 1]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[4:]]
    jobs = ["folder, drawn", "folder, JSON", "folder, JSON, batch 2", "video, drawn"]
    assert [row[:2] for row in rows] == [[job, "auto"] for job in jobs]
    assert all(float(row[2].split()[0]) > 0 and float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
