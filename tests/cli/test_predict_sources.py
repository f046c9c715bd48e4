"""The sources of ``deploykit predict``: patterns, lists, sub-folders, standard input, addresses, RAW files."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from deploykit.cli import main
from deploykit.errors import FetchError, ImageError, MissingDependencyError, NotFoundError, UsageError
from deploykit.runtime.raw import mosaic
from deploykit.runtime.raw.dng import dng_bytes
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model
from tests.runtime.raw.test_mosaic import image as mosaic_image
from tests.runtime.sources.camera_server import Server

RED_PNG, BLUE_PNG = (cv2.imencode(".png", planted((1, 2, colour), scale=4))[1].tobytes() for colour in (RED, BLUE))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "images"
    for name, data in (("a.png", RED_PNG), ("sub/a.png", BLUE_PNG), ("sub/deep/a.png", RED_PNG), ("b.png", BLUE_PNG)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    monkeypatch.chdir(folder)
    return folder


def _predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_recursive_keeps_the_sub_folders(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sub" / "notes.txt").write_text("x")
    assert _predict(model, folder, "--recursive", "--out", tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert "4 images: red 2, blue 2" in out
    assert "passed over in" in err
    assert "1 other file (sub/notes.txt)" in err
    assert "numbered" not in err
    assert _files(tmp_path / "out") == ["a.png", "b.png", "sub/a.png", "sub/deep/a.png"]
    assert _predict(model, folder, "--out", tmp_path / "flat") == 0
    assert "1 sub-folder (sub)" in capsys.readouterr().err
    assert _files(tmp_path / "flat") == ["a.png", "b.png"]


def test_a_pattern_is_quoted_and_its_results_do_not_collide(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _predict(model, "*.png", "--out", tmp_path / "one") == 0
    assert _files(tmp_path / "one") == ["a.png", "b.png"]
    assert _predict(model, "sub/**/*.png", "a.png", "--out", tmp_path / "two") == 0
    assert _files(tmp_path / "two") == ["a-2.png", "a.png", "deep/a.png"]
    assert "a.png -> " in capsys.readouterr().err
    assert _predict(model, "*.jpg") == NotFoundError.exit_code
    assert "no file matches the pattern *.jpg" in capsys.readouterr().err


def test_a_list_and_standard_input_name_images(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "list.txt").write_text("a.png\nsub/a.png\n")
    assert _predict(model, "list.txt") == 0
    assert "2 images: red 1, blue 1" in capsys.readouterr().out
    for data, summary in ((BLUE_PNG, "stdin: blue 1"), (b"a.png\nb.png\n", "b.png: blue 1")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert _predict(model, "-") == 0
        assert summary in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(RED_PNG)))
    assert _predict("--model", model, "--json", "--source", "a.png", "-", "b.png") == 0
    found = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert [Path(name).name for name in found] == ["a.png", "stdin", "b.png"]
    assert _predict(model, "-", "-") == UsageError.exit_code


def test_images_and_streams_at_addresses_are_drawn(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(folder) as server:
        words = [server.address("file/a.png?key=secret"), server.address("file/b.png?key=other", user="anna:secret@")]
        coco = tmp_path / "r.json"
        assert _predict(model, *words, "--out", tmp_path / "out", "--coco", coco) == 0
        server.length = 8
        assert _predict(model, server.address("mjpeg?key=secret"), "--reconnect", 0, "--out", tmp_path / "film") == 0
        out, err = capsys.readouterr()
        assert _predict(model, server.address("missing/a.png")) == NotFoundError.exit_code
        assert _predict(model, server.address("error/a.png"), "a.png") == ImageError.exit_code
        assert _predict(model, server.address("error/a.png")) == FetchError.exit_code
    assert "secret" not in out + err
    assert f"{server.address('file/a.png')}: red 1" in out
    assert _files(tmp_path / "out") == ["a.png", "b.png"]
    assert {entry["image_id"] for entry in json.loads(coco.read_text())} == {"a", "b"}
    assert f"{server.address('mjpeg')}: 8 frames came, " in out
    assert _files(tmp_path / "film") == ["mjpeg.mp4"]


def test_ctrl_c_ends_a_live_stream_with_its_results(model: Path, tmp_path: Path, root: Path) -> None:
    with Server(tmp_path) as server:
        words = ["predict", str(model), server.address("mjpeg"), "--out", str(tmp_path / "out")]
        command = [sys.executable, "-m", "deploykit", *words]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=20)
    assert all(" frame " in line for line in lines)
    assert (process.returncode, err) == (0, "")
    assert "frames came, " in out
    assert time.monotonic() - start < 8
    assert _files(tmp_path / "out") == ["mjpeg.mp4"]


def test_a_raw_file_that_is_named_is_developed(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rawpy", reason="rawpy (the extra raw) is not installed")
    (folder / "shot.dng").write_bytes(dng_bytes(mosaic_image(60, 80)))
    assert _predict(model, "shot.dng", "--out", tmp_path / "out") == 0
    assert _files(tmp_path / "out") == ["shot.jpg"]
    assert _predict(model, "*.dng") == 0
    assert _predict(model, folder) == 0
    assert "1 RAW file (shot.dng)" in capsys.readouterr().err

    def missing(module: str, extra: str) -> None:
        raise MissingDependencyError(f"{module} is missing: install the extra {extra}")

    monkeypatch.setattr(mosaic, "import_extra", missing)
    assert _predict(model, "shot.dng") == MissingDependencyError.exit_code
    assert "install the extra raw" in capsys.readouterr().err
