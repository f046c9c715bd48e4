"""``deploykit predict`` as a person or a script uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import ImageError, NotFoundError, OutputError, SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.video_writer import Mp4Writer
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    _write(folder / "000000000139.png", planted((1, 2, RED), (5, 5, BLUE), scale=4))
    _write(folder / "empty.png", planted(scale=4))
    return folder


def _write(path: Path, image: Array) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def _predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def test_a_folder_is_drawn_and_summed_up(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _predict("--model", model, "--source", folder, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("000000000139.png: red 1, blue 1")
    assert lines[1].endswith("empty.png: nothing found")
    assert lines[2] == "2 images: red 1, blue 1"
    assert lines[3].startswith("mean time per image (without the first): read ")
    assert lines[4] == f"written: {out}"
    assert sorted(p.name for p in out.iterdir()) == ["000000000139.png", "empty.png"]
    plain, drawn = (cv2.imread(str(p / "000000000139.png")) for p in (folder, out))
    changed = (plain != drawn).any(axis=2)
    assert changed[64:96, 32].all()  # the left edge of the red cell
    assert not changed[200:].any()


def test_json_is_the_only_thing_on_standard_output(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"broken")
    assert _predict("--model", model, "--source", folder, "--json") == ImageError.exit_code
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in out.splitlines())
    assert [d["name"] for d in first["detections"]] == ["red", "blue"]
    assert first["detections"][0]["box"] == [32, 64, 64, 96]
    assert second["detections"] == []
    assert "left out: " in err
    assert "2 images: red 1, blue 1\n1 left out, in whole or in part, because they could not be read" in err


def test_a_single_image_that_cannot_be_read_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    assert _predict("--model", model, "--source", tmp_path / "broken.jpg") == ImageError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("deploykit: ")
    assert err.count("\n") == 1


def test_an_image_that_declares_too_many_pixels_is_left_out(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(folder / "large.png", planted(scale=8))  # 512 x 512, the others are 256 x 256
    words = ("--model", model, "--source", folder, "--max-pixels")
    assert _predict(*words, 512 * 512) == 0
    capsys.readouterr()
    assert _predict(*words, 512 * 512 - 1) == ImageError.exit_code
    out, err = capsys.readouterr()
    assert "large.png declares 512x512 pixels (width x height), more than the 262,143 that are allowed" in err
    assert "2 images: red 1, blue 1" in out
    assert _predict(*words, 0) == UsageError.exit_code
    assert "max_pixels must be at least 1, got 0" in capsys.readouterr().err


def test_a_video_that_lacks_frames_is_drawn_as_far_as_it_goes_and_reported(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 12.5) as recorder:
        for column in range(6):
            recorder.write(planted((column, 2, RED), scale=4))
    opened = cv2.VideoCapture

    class Announcing:
        """A film that declares more frames than it has."""

        def __init__(self, source: str) -> None:
            self._film = opened(source)

        def __getattr__(self, name: str) -> object:
            return getattr(self._film, name)

        def get(self, what: int) -> float:
            return 20.0 if what == cv2.CAP_PROP_FRAME_COUNT else self._film.get(what)

    source = str(tmp_path / "film.mp4")
    monkeypatch.setattr(cv2, "VideoCapture", lambda file: Announcing(file) if file == source else opened(file))
    words = ("--model", model, "--source", tmp_path / "film.mp4", "--out", tmp_path / "out")
    assert _predict(*words) == ImageError.exit_code
    out, err = capsys.readouterr()
    assert "6 images: red 6" in out
    assert "film.mp4 declares 20 frames, of which 6 could be decoded: the others are damaged or missing" in err
    film = opened(str(tmp_path / "out" / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    film.release()


def test_one_broken_image_does_not_stop_the_other_sources(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    assert _predict("--model", model, "--source", tmp_path / "broken.jpg", folder) == ImageError.exit_code
    assert "2 images: red 1, blue 1" in capsys.readouterr().out


def test_a_video_becomes_a_drawn_video(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 12.5) as recorder:
        for column in (0, 3, 6):
            recorder.write(planted((column, 2, RED), scale=4))
    out, coco = tmp_path / "out", tmp_path / "coco.json"
    assert _predict("--model", model, "--source", tmp_path / "film.mp4", "--out", out, "--coco", coco) == 0
    assert "3 images: red 3" in capsys.readouterr().out
    assert [e["image_id"] for e in json.loads(coco.read_text())] == [f"film_{i:06d}" for i in range(3)]
    assert [p.name for p in out.iterdir()] == ["film.mp4"]
    video = cv2.VideoCapture(str(out / "film.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 12.5)
    video.release()


def test_every_nth_frame_becomes_a_video_of_the_same_length(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 12) as recorder:
        for column in range(7):
            recorder.write(planted((column, 2, RED), scale=4))
    words = (model, tmp_path / "film.mp4", "--every", 3, "--json", "--out", tmp_path / "out")
    assert _predict(*words) == 0
    assert [json.loads(line)["frame"] for line in capsys.readouterr().out.splitlines()] == [0, 3, 6]
    video = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 4)
    video.release()
    assert _predict(model, _write(tmp_path / "a.png", planted()), "--every", 2) == UsageError.exit_code
    assert "--every is for videos and cameras, and there is none among the sources" in capsys.readouterr().err


def test_classes_are_chosen_by_name_and_a_wrong_one_is_an_error(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _predict(model, folder, "--classes", "blue", "--max-det", 1) == 0
    assert "2 images: blue 1" in capsys.readouterr().out
    assert _predict(model, folder, "--agnostic-nms", "--classes", 0, "BLUE") == 0
    assert "2 images: red 1, blue 1" in capsys.readouterr().out
    assert _predict(model, folder, "--classes", "rde") == UsageError.exit_code
    assert "no class 'rde'; did you mean 'red'? it has 2, 0 to 1: red, blue" in capsys.readouterr().err


class _Camera:
    """A film in the place of camera 0, whose user presses Ctrl-C after three frames."""

    def __init__(self, film: cv2.VideoCapture) -> None:
        self._film = film

    def __getattr__(self, name: str) -> object:
        return getattr(self._film, name)

    def read(self) -> tuple[bool, Array]:
        time.sleep(0.1)
        more, image = self._film.read()
        if not more:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return more, image


def test_ctrl_c_is_how_a_camera_ends(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 25) as recorder:
        for column in (0, 3, 6):
            recorder.write(planted((column, 2, RED), scale=4))
    opened = cv2.VideoCapture
    film = str(tmp_path / "film.mp4")
    monkeypatch.setattr(cv2, "VideoCapture", lambda s: _Camera(opened(film)) if s == 0 else opened(s))
    assert _predict("--model", model, "--source", 0, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "camera 0: 3 frames came, " in out
    assert " red " in out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["camera-0.mp4"]


def test_ctrl_c_leaves_the_frames_of_a_video_that_are_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 25) as recorder:
        for column in range(3):
            recorder.write(planted((column, 2, RED), scale=4))
    opened = cv2.VideoCapture
    source = str(tmp_path / "film.mp4")
    monkeypatch.setattr(cv2, "VideoCapture", lambda s: _Camera(opened(s)) if s == source else opened(s))
    assert _predict(model, source, "--out", tmp_path / "out", "--csv", tmp_path / "r.csv") == 130
    assert "interrupted; 3 of 3 images are done, and what is written is whole\n" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["film.mp4"]
    film = opened(str(tmp_path / "out" / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    film.release()
    assert (tmp_path / "r.csv").read_text().count(",red,") == 3


def test_places_that_cannot_be_written_are_refused(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _predict("--model", model, "--source", folder, "--out", model) == UsageError.exit_code
    assert "must be a folder" in capsys.readouterr().err
    assert _predict("--model", model, "--source", folder, "--out", model / "x") == OutputError.exit_code
    assert _predict("--model", model, "--source", folder, "--coco", model / "x.json") == OutputError.exit_code


def test_thresholds_and_spec_come_from_options(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_cell_model(tmp_path / "bare.onnx")
    assert _predict("--model", bare, "--source", folder) == SpecError.exit_code
    assert "--spec FILE" in capsys.readouterr().err
    (tmp_path / "spec.json").write_text(cell_spec().to_json())
    words = ("--model", bare, "--source", folder, "--spec", tmp_path / "spec.json")
    assert _predict(*words, "--max-det", 1) == 0
    assert "2 images: red 1\n" in capsys.readouterr().out
    assert _predict(*words, "--conf", 1) == 0
    assert "2 images: nothing found" in capsys.readouterr().out
    assert _predict(*words, "--iou", -1) == UsageError.exit_code


def test_a_source_that_is_missing_is_found_out_before_anything_runs(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", model, "--source", folder, tmp_path / "none.png", "--out", tmp_path / "out")
    assert _predict(*words) == NotFoundError.exit_code
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_show_without_a_display_says_so(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert _predict("--model", model, "--source", folder, "--show") == UsageError.exit_code
    assert "needs a display" in capsys.readouterr().err


def test_show_with_a_headless_opencv_says_so(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def headless(*_: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr(cv2, "imshow", headless)
    assert _predict("--model", model, "--source", folder, "--show") == 3
    assert "opencv-python-headless" in capsys.readouterr().err


def test_q_ends_showing(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Array] = []
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q"))
    assert _predict("--model", model, "--source", folder, "--show") == 0
    assert len(shown) == 1
    assert "1 image: red 1, blue 1" in capsys.readouterr().out
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord(" "))
    assert _predict("--model", model, "--source", folder, "--show") == 0
    assert len(shown) == 3


def test_the_command_as_a_process_is_quiet_about_opencv_and_survives_a_closed_pipe(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    command = [sys.executable, "-m", "deploykit", "predict", "--model", str(model), "--source"]
    done = subprocess.run([*command, str(tmp_path / "broken.mp4")], capture_output=True, text=True, check=False)
    assert done.returncode == ImageError.exit_code
    assert done.stderr.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*command, str(folder), "--json"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


def test_drawing_options_change_what_is_drawn(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants: dict[str, tuple[object, ...]] = {
        "full": (), "names": ("--no-conf",), "bare": ("--no-labels",), "thick": ("--no-labels", "--line-width", 9)
    }  # fmt: skip
    drawn = {}
    for name, words in variants.items():
        assert _predict(model, folder, "--out", tmp_path / name, *words) == 0
        drawn[name] = cv2.imread(str(tmp_path / name / "000000000139.png"))
    source = cv2.imread(str(folder / "000000000139.png"))
    changed = {name: int((image != source).any(axis=2).sum()) for name, image in drawn.items()}
    assert changed["bare"] < changed["names"] < changed["full"]
    assert changed["thick"] > changed["bare"]
    capsys.readouterr()
    assert _predict(model, folder, "--out", tmp_path / "no", "--line-width", 0) == UsageError.exit_code
    assert "line_width must be at least 1 pixel, got 0" in capsys.readouterr().err
    assert _predict(model, folder, "--out", tmp_path / "no", "--font", tmp_path / "x.ttf") == NotFoundError.exit_code
    assert not (tmp_path / "no").exists()
