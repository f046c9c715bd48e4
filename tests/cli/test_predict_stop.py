"""A run of ``deploykit predict`` that is stopped keeps what is done, and another one goes on (``--resume``)."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from deploykit.cli import main
from deploykit.errors import UsageError
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model

MANY = 250  # images: more lines of JSON than a pipe holds, so that a run waits for its reader


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images under long names, each a link to one of two files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("red", RED), ("blue", BLUE)):
        (tmp_path / f"{name}.png").write_bytes(cv2.imencode(".png", planted((1, 2, colour)))[1].tobytes())
    for i in range(MANY):
        (folder / f"{'long-' * 20}{i:04d}.png").symlink_to(tmp_path / ("red.png" if i % 3 else "blue.png"))
    return folder


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def _outputs(tmp_path: Path, name: str) -> tuple[Path, list[str]]:
    out = tmp_path / name
    return out, [
        "--out",
        str(out),
        "--no-draw",
        "--save-txt",
        "--coco",
        str(out / "c.json"),
        "--csv",
        str(out / "r.csv"),
    ]


def _stopped(command: list[str], number: int, heard: Path) -> tuple[int, list[dict[str, object]], str]:
    """Send a signal to a process that has printed ten lines; return its exit code, all lines, and what it said."""
    with (
        heard.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "deploykit", *command], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(10)]
        process.send_signal(number)
        lines += process.stdout.readlines()
    return process.returncode, [json.loads(line) for line in lines], heard.read_text()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_leaves_whole_files_and_a_second_run_completes_them(
    model: Path, folder: Path, tmp_path: Path, number: int, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = _outputs(tmp_path, "out")
    command = ["predict", str(model), str(folder), *words]
    found, lines, said = _stopped([*command, "--json"], number, tmp_path / "said")
    assert found == code, said
    done = len({entry["image_id"] for entry in json.loads((out / "c.json").read_text())})
    assert 10 <= done < MANY
    complete = len((out / "predict.progress.jsonl").read_text().splitlines()) - 1
    (said_done,) = re.findall(
        rf"^deploykit: {word}; (\d+) of {MANY} images are done, and what is written is whole; "
        "the same command with --resume goes on",
        said,
        re.MULTILINE,
    )
    # The signal may come while an image is taken in: the file has it, and the record, the count or the pipe has not.
    assert done - 1 <= int(said_done) <= complete <= done
    assert len(lines) in (int(said_done), int(said_done) - 1)
    rows = _rows(out / "r.csv")
    assert [Path(row["image"]).name for row in rows] == sorted(p.name for p in folder.iterdir())[:done]
    assert done <= len(list((out / "labels").iterdir())) <= done + 1
    assert not [p for p in out.rglob(".*")]  # nothing half written
    assert main([*command, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert f"{complete} complete since an earlier run" in printed
    assert f"{MANY - complete} images: " in printed
    whole, words = _outputs(tmp_path, "whole")
    assert main(["predict", str(model), str(folder), *words]) == 0
    for name in ("c.json", "r.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (sorted(p.name for p in (place / "labels").iterdir()) for place in (out, whole))
    assert ours == theirs


def _three(tmp_path: Path) -> Path:
    folder = tmp_path / "three"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", planted((i, 2, RED)))[1].tobytes())
    return folder


def _printed(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main(["predict", *words]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def test_what_is_new_changed_or_gone_is_predicted_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = _three(tmp_path), tmp_path / "out"
    words = [str(model), str(folder), "--out", str(out), "--csv", str(out / "r.csv"), "--resume"]
    assert "3 images: red 3" in _printed(words, capsys)
    assert "3 complete since an earlier run\n0 images: nothing found" in _printed(words, capsys)
    first = (out / "r.csv").read_text()
    assert first.count(",red,") == 3
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "1.png").write_bytes(cv2.imencode(".png", planted((1, 2, BLUE)))[1].tobytes())
    (out / "2.png").unlink()
    assert "1 complete since an earlier run\n3 images: red 2, blue 1" in _printed(words, capsys)
    assert [row["name"] for row in _rows(out / "r.csv")] == ["red", "blue", "red", "red"]
    assert sorted(p.name for p in out.iterdir()) == [*(f"{i}.png" for i in range(4)), "predict.progress.jsonl", "r.csv"]


def test_another_model_or_other_options_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = _three(tmp_path), tmp_path / "out"
    words = [str(model), str(folder), "--out", str(out), "--resume"]
    _printed([*words, "--conf", "0.5"], capsys)
    said = _printed([*words, "--conf", "0.6"], capsys, UsageError.exit_code)
    assert "was written with --conf 0.5, and now it is 0.6: give the same options" in said
    assert "--conf 0.5, and now it is not given" in _printed(words, capsys, UsageError.exit_code)
    same = [*words, "--conf", "0.5"]
    assert "--classes not given, and now it is red blue" in _printed(
        [*same, "--classes", "red", "blue"], capsys, UsageError.exit_code
    )
    assert "--save-txt off, and now it is on" in _printed([*same, "--save-txt"], capsys, UsageError.exit_code)
    assert "3 complete" in _printed([*same, "--max-pixels", "1000000"], capsys)  # results do not depend on it
    write_cell_model(model, spec=cell_spec(), half=True)
    assert "is of another model, or this one has changed since" in _printed(same, capsys, UsageError.exit_code)
    record = out / "predict.progress.jsonl"
    record.write_text("no JSON\n")
    assert "is damaged" in _printed(same, capsys, UsageError.exit_code)
    record.write_text("{}\n")
    assert "is not the record of a run" in _printed(same, capsys, UsageError.exit_code)
    _printed([str(model), str(folder), "--out", str(out)], capsys)  # without --resume it begins again
    assert not record.exists()


def test_a_record_whose_last_line_was_cut_off_is_taken(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = _three(tmp_path), tmp_path / "out"
    words = [str(model), str(folder), "--out", str(out), "--resume"]
    _printed(words, capsys)
    record = out / "predict.progress.jsonl"
    record.write_bytes(record.read_bytes()[:-20])  # as a killed process leaves it
    assert "2 complete since an earlier run\n1 image: red 1" in _printed(words, capsys)
    assert len(record.read_text().splitlines()) == 4
