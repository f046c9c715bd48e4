"""``deploykit predict --workers`` writes, prints and reports the same for any number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from deploykit.cli import main
from deploykit.errors import ImageError, UsageError
from deploykit.runtime.images.video_writer import Mp4Writer
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", batch="batch", spec=cell_spec(dynamic=True))


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """A folder of images of several sizes, of which two cannot be read, and a video."""
    folder, film = tmp_path / "images", tmp_path / "film.mp4"
    folder.mkdir()
    for number in range(12):
        image = planted((number % 8, number % 3, RED if number % 2 else BLUE), scale=2 + number % 3)
        (folder / f"{number:02d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    for name in ("03b.png", "09b.png"):
        (folder / name).write_bytes(b"broken")
    with Mp4Writer(film, 25) as writer:
        for number in range(10):
            writer.write(planted((number % 8, 2, RED), scale=4))
    return [str(folder), str(film)]


@pytest.mark.parametrize("batch", ["1", "4"])
def test_files_lines_and_the_record_are_those_of_one_worker(
    model: Path, sources: list[str], batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for workers in ("1", "3", "auto"):
        out = tmp_path / workers
        places = ["--out", str(out), "--coco", str(out / "c.json"), "--csv", str(out / "r.csv"), "--save-txt"]
        words = ["predict", str(model), *sources, *places, "--resume", "--workers", workers, "--batch", batch]
        assert main([*words, "--json"]) == ImageError.exit_code
        printed, said = capsys.readouterr()
        lines = [{**json.loads(line), "timings_ms": None} for line in printed.splitlines()]
        left_out = [line for line in said.splitlines() if "left out: " in line]
        written = [p for p in out.rglob("*.*") if p.suffix not in (".mp4", ".jsonl")]
        files = {str(p.relative_to(out)): p.read_bytes() for p in written}
        record = [json.loads(line) for line in (out / "predict.progress.jsonl").read_text().splitlines()[1:]]
        names = [(line["source"], len(line["files"])) for line in record]
        film = cv2.VideoCapture(str(out / "film.mp4"))
        seen.append((lines, left_out, files, names, int(film.get(cv2.CAP_PROP_FRAME_COUNT))))
        assert len(lines) == 22
        assert len(left_out) == 2
        assert ("3 images at the same time" in said) == (workers == "3")
    assert seen[0] == seen[1] == seen[2]
    assert main([*words[:-4], "--workers", "2"]) == ImageError.exit_code  # the record is of any number of workers
    assert "12 complete since an earlier run" in capsys.readouterr().out


def test_one_image_needs_no_workers_and_none_is_no_number(
    model: Path, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model), f"{sources[0]}/00.png"]) == 0
    assert "at the same time" not in capsys.readouterr().out
    assert main(["predict", str(model), *sources, "--workers", "0"]) == UsageError.exit_code
    assert "workers must be a number from 1 on, or auto, got 0" in capsys.readouterr().err
    assert main(["predict", str(model), *sources, "--workers", "many"]) == UsageError.exit_code
    assert "--workers: a number or auto is expected, got 'many'" in capsys.readouterr().err
