"""``deploykit cluster run`` and ``check``, by processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest

from deploykit.cli import main
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, colour in enumerate((RED, BLUE, RED, RED, BLUE)):
        (folder / f"{i}.png").write_bytes(cv2.imencode(".png", planted((i, 2, colour)))[1].tobytes())
    (folder / "3.png").write_bytes(b"no image")
    return folder


def rows_in(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "timings_ms"} for row in rows]


def words_of(model: Path, images: Path, out: Path, *more: str) -> list[str]:
    return ["cluster", "run", str(model), str(images), "--out", str(out), "--workers", "1", "--per-part", "2", *more]


def test_its_rows_are_the_lines_of_predict(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words_of(model, images, out, "--join")) == 20  # one image cannot be read
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 5 images in 3 parts, 1 of them without a result: their rows say why; in ")
    rows = rows_in(out / "results.jsonl")
    assert sorted(file.name for file in out.iterdir()) == ["manifest.json", "parts", "plan.jsonl", "results.jsonl"]
    assert rows == [row for number in range(3) for row in rows_in(out / f"parts/part-{number:06}.jsonl")]
    assert rows[3].keys() == {"schema", "name", "frame", "error"}
    assert rows[3]["error"].startswith(f"{images / '3.png'} is not a complete image")
    assert main(["predict", str(model), str(images), "--json"]) == 20
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        del line["timings_ms"]
    assert [row for row in rows if "error" not in row] == lines
    assert [len(line["detections"]) for line in lines] == [1, 1, 1, 1]


def test_the_same_command_goes_on_and_another_one_is_refused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words_of(model, images, out)) == 20
    (out / "parts/part-000001.jsonl").unlink()
    (out / "manifest.json").unlink()
    capsys.readouterr()
    assert main(words_of(model, images, out, "--json")) == 20
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["images"], manifest["failed"], manifest["computed"]) == (5, 1, 1)
    for more, said in (
        (["--conf", "0.5"], "--conf was not given and is 0.5"),
        (["--classes", "red"], "--classes was not given and is ['red']"),
        (["--per-part", "3"], "parts had 2 images and now have 3"),
    ):
        assert main(words_of(model, images, out, *more)) == 2
        assert f"{out} holds another run: {said}; give the same" in capsys.readouterr().err
    write_cell_model(model, spec=cell_spec(dynamic=True), batch="n")
    assert main(words_of(model, images, out)) == 2
    assert "it is of another model, or this one has changed since" in capsys.readouterr().err
    assert main(["cluster", "check", str(out)]) == 0
    assert capsys.readouterr().out.endswith("whole: each image has one row\n")
    (out / "parts/part-000001.jsonl").write_text("")
    assert main(["cluster", "check", str(out)]) == 80
    assert main(["cluster", "check", str(images)]) == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--cpus", "0"], "--cpus must be at least 1, got 0"),
        (["--gpus", "1"], "--gpus says what Ray gives each worker: it needs --address"),
        (["--per-part", "0"], "a part must have at least 1 image, got 0"),
        (["film.mp4"], "cluster run takes images, and film.mp4 is a video or a stream: use predict"),
    ],
)
def test_what_cannot_be_meant_is_an_error(
    more: list[str], said: str, model: Path, images: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    writer = cv2.VideoWriter("film.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 64))
    writer.write(planted((1, 1, RED)))
    writer.release()
    place = [str(images), *more] if more[0].endswith(".mp4") else [str(images)]
    options = [] if more[0].endswith(".mp4") else more
    assert main(["cluster", "run", str(model), *place, "--out", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert main(["cluster", "run", str(model), str(images)]) == 2
    assert "name the folder of the results with --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run MODEL --max-replicas 2", "--max-replicas is for deploykit cluster serve, not for run"),
        ("serve MODEL --conf 0.5", "--conf is for deploykit cluster run, not for serve"),
        ("manifest MODEL --out DIR", "--out is for deploykit cluster run, not for manifest"),
        ("check DIR --per-part 3", "--per-part is for deploykit cluster run, not for check"),
        ("serve MODEL --head one2many", "--head is for deploykit cluster run, not for serve"),
    ],
)
def test_an_option_of_another_action_is_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_what_is_not_installed_is_told_before_anything_is_written(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pyarrow", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
    for more in (["--format", "parquet"], ["--address", "local"]):
        out = tmp_path / more[1]
        assert main(words_of(model, images, out, *more)) == 3
        assert "pip install 'deploykit-vision[cluster]'" in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_goes_on_and_its_workers_end(root: Path, tmp_path: Path) -> None:
    """SIGKILL to the head alone, in the middle: its workers end by themselves."""
    asset, out, images = root / "deploykit/assets", tmp_path / "out", tmp_path / "images"
    images.mkdir()
    for i in range(16):
        (images / f"{i:02}.jpg").symlink_to(asset / "markers.jpg")
    words = ["cluster", "run", str(asset / "markers.onnx"), str(images), "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "deploykit", *words, "--per-part", "1"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while len(list((out / "parts").glob("part-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    there = len(list((out / "parts").glob("part-*")))
    assert 2 <= there < 16
    for _ in range(200):
        if not _session(process.pid):
            break
        time.sleep(0.05)
    assert not _session(process.pid)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"deploykit: note: {there} of 16 images are complete since an earlier run" in done.stderr
    assert f"{16 - there} parts computed" in done.stdout
    assert main(["cluster", "check", str(out)]) == 0


def _session(leader: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == leader and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_how_it_goes_on(number: int, code: int, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["cluster", "run", str(root / "deploykit/assets/markers.onnx"), str(tmp_path / "*.jpg"), "--out", str(out)]
    for i in range(60):
        (tmp_path / f"{i:02}.jpg").symlink_to(root / "deploykit/assets/markers.jpg")
    program = (
        "import signal, sys\nfrom deploykit.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *words, "--per-part", "1", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list((out / "parts").glob("part-*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.splitlines()[-1].endswith(f"; the same command goes on from what {out} has")
