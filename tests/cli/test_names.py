"""File names that standard output, or a terminal, cannot take: escaped in what is printed, right in what is written."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import pytest

from deploykit.cli import main
from deploykit.cli._display import every_text_printable, print_json, printable
from deploykit.errors import ArtefactError
from deploykit.runtime.images.video_writer import Mp4Writer
from tests.cell_model import RED, cell_spec, planted, write_cell_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not text")

LATIN, UMLAUT, LINES, ESCAPE = b"caf\xe9.png", "B\xe4r.png".encode(), b"new\nline.png", b"esc\x1b[31m.png"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images with such names, and another file with one."""
    folder = tmp_path / "images"
    folder.mkdir()
    data = cv2.imencode(".png", planted((1, 2, RED), scale=4))[1].tobytes()
    for name in (LATIN, UMLAUT, LINES, ESCAPE):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/other\xe9.txt")).write_bytes(b"")
    return folder


def _names(folder: Path) -> set[bytes]:
    return {os.fsencode(path.name) for path in folder.iterdir()}


def _run(*words: object, env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "deploykit", *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **env})
    assert b"Traceback" not in done.stderr
    return done


UTF8 = {"PYTHONIOENCODING": "utf-8:strict"}
ASCII = {"PYTHONIOENCODING": "ascii"}
C = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("env", "umlaut"),
    [(UTF8, "B\xe4r.png".encode()), (ASCII, rb"B\xe4r.png"), (C, rb"B\udcc3\udca4r.png")],
    ids=["UTF-8", "ASCII", "LANG=C"],
)
def test_every_image_of_the_folder_is_done(
    env: dict[str, str], umlaut: bytes, model: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = _run("predict", "--model", model, "--source", folder, "--out", out, env=env)
    assert done.returncode == 0
    assert b"4 images: red 4\n" in done.stdout
    for name in (umlaut, rb"caf\udce9.png", rb"new\nline.png", rb"esc\x1b[31m.png"):
        assert name + b": red 1\n" in done.stdout
    assert rb"1 other file (other\udce9.txt)" in done.stderr
    assert _names(out) == {LATIN, UMLAUT, LINES, ESCAPE}
    done = _run("predict", "--model", model, "--source", folder, "--json", env=env)
    found = {os.fsencode(Path(json.loads(line)["name"]).name) for line in done.stdout.splitlines()}
    wanted = {LATIN, UMLAUT, LINES, ESCAPE}
    assert found == wanted if env is not C else len(found) == 4  # there no byte over 127 is text


def test_errors_and_other_commands_escape_too(model: Path, folder: Path, tmp_path: Path) -> None:
    latin = os.fsdecode(os.fsencode(folder) + b"/" + LATIN)
    Path(latin).write_bytes(b"broken")
    done = _run("predict", "--model", model, "--source", folder, env=UTF8)
    assert done.returncode == 20
    assert rb"deploykit: left out: " in done.stderr
    assert rb"caf\udce9.png is not a complete image" in done.stderr
    named = model.rename(os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9.onnx"))
    done = _run("inspect", named, "--json", env=UTF8)
    assert done.returncode == ArtefactError.exit_code
    assert rb"m\udce9.onnx is not: rename it" in done.stderr
    done = _run("bench", "--engine", named, "--source", folder, env=ASCII)
    assert done.returncode in (ArtefactError.exit_code, 20)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_inspect_prints_valid_json_about_a_file_with_such_a_name(
    encoding: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = os.fsdecode(os.fsencode(tmp_path) + b"/c\xe9.pt")
    shutil.copy(checkpoint, named)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, "strict", write_through=True))
    assert main(["inspect", named, "--json"]) == 0
    assert json.loads(written.getvalue())["file"] == named


def test_a_video_with_a_latin_name_does_not_end_the_process(model: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with Mp4Writer(film, 25) as recorder:
        recorder.write(planted((1, 2, RED), scale=4))
    film = film.rename(os.fsdecode(os.fsencode(tmp_path) + b"/f\xe9.mp4"))
    done = _run("predict", "--model", model, "--source", film, "--out", tmp_path / "out", env=UTF8)
    assert done.returncode == 0
    assert rb"f\udce9.mp4 frame 0: red 1" in done.stdout
    assert _names(tmp_path / "out") == {b"f\xe9.mp4"}


def test_printable_escapes_only_what_must_be() -> None:
    plain = "a b\xe4r \u56fe \u3000 \U0001f600"
    assert printable(plain) == plain
    assert printable("a\nb\tc\x1b\x7f\x85\u2028\udce9") == r"a\nb\tc\x1b\x7f\x85\u2028\udce9"


def test_json_is_valid_on_every_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "\udce9\xe4\x1b\n"}
    print_json(value, indent=None)
    assert json.loads(capsys.readouterr().out) == value
    print_json({"name": "\xe4"})
    assert "\xe4" in capsys.readouterr().out


def test_the_streams_are_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout.errors, sys.stderr.errors
    with every_text_printable():
        print("\udce9")
    assert (sys.stdout.errors, sys.stderr.errors) == before
    assert capsys.readouterr().out == "\\udce9\n"
    assert main(["models", "--json"]) == 0
    assert (sys.stdout.errors, sys.stderr.errors) == before
