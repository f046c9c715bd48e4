"""The programs of examples/ run as they are, and their output is what they say.

Each has a process of its own once; where a test runs one again, it does so in this process.
"""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

import deploykit

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "deploykit" / "assets"
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(folder: Path, name: str, *words: str, code: int = 0) -> tuple[str, str]:
    """Run a program in a folder; return what it printed, and its errors."""
    command = [sys.executable, str(ROOT / "examples" / name), *words]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-1500:]
    assert code or not done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a program in this process, in the test's folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        assert ended.value.code == code
        out, err = capsys.readouterr()
        assert not err
        return out

    return run


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return cv2.imread(str(ASSETS / "markers.jpg"))


@pytest.fixture
def video(image: np.ndarray, tmp_path: Path) -> Path:
    """Six frames of the image that ships, each a little further right, at 10 frames per second."""
    file = tmp_path / "desk.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 10, (600, 400))
    small = cv2.resize(image, (600, 400), interpolation=cv2.INTER_AREA)
    for shift in range(6):
        writer.write(np.roll(small, 4 * shift, 1))
    writer.release()
    return file


def test_there_are_programs_to_test() -> None:
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    assert {program.name for program in PROGRAMS} <= tested


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_a_program_is_small_uses_public_names_and_says_how_to_call_it(program: Path) -> None:
    text = program.read_text()
    assert 20 <= len(text.splitlines()) <= 70
    assert f"python examples/{program.name}" in text.split('"""')[1]
    assert not re.findall(r"from deploykit|import deploykit\.", text)
    assert set(re.findall(r"\bdeploykit\.(\w+)", text)) <= {*deploykit.__all__, "__file__"}


def test_detect_prints_and_draws_what_the_model_finds(tmp_path: Path, image: np.ndarray) -> None:
    out, _ = run(tmp_path, "detect.py")
    lines = out.splitlines()
    assert lines[0] == "markers.jpg: qr code 4, aruco marker 4"
    found = [re.fullmatch(r"(qr code|aruco marker) (0\.\d\d) at (\d+),(\d+) to (\d+),(\d+)", x) for x in lines[1:9]]
    assert all(found)
    assert lines[9:] == ["drawn: drawn.jpg"]
    drawn = cv2.imread(str(tmp_path / "drawn.jpg"))
    assert drawn.shape == image.shape
    assert np.abs(drawn.astype(int) - image).max() > 100


def test_detect_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    _, err = run(tmp_path, "detect.py", "absent.jpg", code=1)
    assert err.startswith("detect.py: ")
    assert "absent.jpg" in err
    assert err.count("\n") == 1


def test_a_video_is_drawn_frame_by_frame(tmp_path: Path, video: Path) -> None:
    out, _ = run(tmp_path, "pose_on_video.py", str(video))
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [f"frame {i}" for i in range(6)]
    assert all(re.search(r"qr code \d.*, \d+ keypoints$", line) for line in lines[:-1])
    assert lines[-1] == "drawn.mp4: 6 frames at 10 fps; 0 between them were not drawn"
    drawn, source = cv2.VideoCapture(str(tmp_path / "drawn.mp4")), cv2.VideoCapture(str(video))
    assert drawn.get(cv2.CAP_PROP_FPS) == 10
    for _ in range(6):
        (there, frame), (_, plain) = drawn.read(), source.read()
        assert there
        assert frame.shape == (400, 600, 3)
        assert np.abs(frame.astype(int) - plain).max() > 100
    assert not drawn.read()[0]


def test_a_video_that_lacks_frames_is_drawn_as_far_as_it_goes_and_reported(tmp_path: Path, video: Path) -> None:
    data = video.read_bytes()
    begin = data.index(b"mdat") + 4
    samples = data.index(b"moov") - begin
    half = begin + samples // 2
    video.write_bytes(data[:half] + bytes(begin + samples - half) + data[begin + samples :])
    out, err = run(tmp_path, "pose_on_video.py", str(video), "--fps", "5", code=1)
    drawn = int(re.search(r"drawn\.mp4: (\d+) frames at 5 fps", out)[1])
    assert 0 < drawn < 6
    assert f"declares 6 frames, of which {drawn} could be decoded" in err


def test_a_stream_of_frames_ends_where_it_is_told_to(tmp_path: Path, video: Path) -> None:
    out, _ = run(tmp_path, "pose_on_video.py", str(video), "--frames", "2", "--out", "two.mp4")
    assert out.endswith("two.mp4: 2 frames at 10 fps; 0 between them were not drawn\n")


@pytest.fixture
def folder(image: np.ndarray, tmp_path: Path) -> Path:
    """Images in a folder and a sub-folder: one with objects, one without, and one that is damaged."""
    (tmp_path / "images" / "in, side").mkdir(parents=True)
    small = cv2.resize(image, (600, 400), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "images" / "b.png"), small)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((400, 600, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "images" / "in, side" / "c.png"), small[:, ::-1])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_becomes_a_table(folder: Path) -> None:
    out, _ = run(folder, "folder_to_csv.py", "images")
    assert out == "3 images in images, 0 of them in results.csv already\n"
    rows = rows_of(folder / "results.csv")
    names = [row["image"] for row in rows]
    assert names == sorted(names)
    assert names.count("images/a.png") == 1
    assert rows[0] == {**dict.fromkeys(rows[0], ""), "image": "images/a.png"}
    with deploykit.load(ASSETS / "markers.onnx", task="keypoints") as model:
        for name in ("images/b.png", "images/in, side/c.png"):
            result = model(str(folder / name))
            mine = [row for row in rows if row["image"] == name]
            assert len(mine) == len(result) > 3
            assert [row["name"] for row in mine] == [found.name for found in result]
            np.testing.assert_allclose([float(row["x1"]) for row in mine], result.boxes[:, 0], atol=0.01)


def test_a_table_goes_on_where_it_stopped(folder: Path, run_here: Callable[..., str]) -> None:
    run_here("folder_to_csv.py", "images")
    table = folder / "results.csv"
    whole = table.read_bytes()
    line = whole.index(b"images/b.png")
    for kept in (0, line - 5, line + 5, whole.index(b"\n", line) + 1, whole.index(b"in, side") - 3, len(whole) - 4):
        table.write_bytes(whole[:kept])
        out = run_here("folder_to_csv.py", "images")
        assert table.read_bytes() == whole
    assert "2 of them in results.csv already" in out


def test_a_table_of_another_model_is_refused_and_stays(folder: Path) -> None:
    (folder / "results.csv").write_text("image,class\nimages/a.png,cat\nimages/b.png,cat\n")
    _, err = run(folder, "folder_to_csv.py", "images", code=1)
    assert "other columns" in err
    assert (folder / "results.csv").read_text() == "image,class\nimages/a.png,cat\n"


def test_an_image_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "images" / "broken.jpg").write_bytes((ASSETS / "markers.jpg").read_bytes()[:3000])
    _, err = run(folder, "folder_to_csv.py", "images", code=1)
    assert "broken.jpg" in err
    assert {row["image"] for row in rows_of(folder / "results.csv")} == {
        "images/a.png",
        "images/b.png",
        "images/in, side/c.png",
    }


def other_weights(file: Path) -> None:
    """The model that ships, with one weight of its first convolution changed."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(ASSETS / "markers.onnx"))
    first = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(first).copy()
    values[0, 0, 0, 0] += 0.5
    first.CopyFrom(onnx.numpy_helper.from_array(values, first.name))
    onnx.save(model, str(file))


def test_exports_are_compared_with_a_junit_file(tmp_path: Path, run_here: Callable[..., str]) -> None:
    shutil.copy(ASSETS / "markers.onnx", tmp_path / "same.onnx")
    same = (str(ASSETS / "markers.onnx"), "same.onnx")
    out = run_here("compare_exports.py", *same)
    assert out.endswith("same.onnx is verified against markers.onnx\n")
    assert "FAILED" not in out
    suite = next(ElementTree.parse(tmp_path / "verify.xml").getroot().iter("testsuite"))
    assert int(suite.attrib["tests"]) == out.count("passed: ")
    other_weights(tmp_path / "other.onnx")
    out = run_here("compare_exports.py", same[0], "other.onnx", "--junit", "other.xml", code=1)
    assert out.endswith("other.onnx is not verified against markers.onnx\n")
    suite = next(ElementTree.parse(tmp_path / "other.xml").getroot().iter("testsuite"))
    assert int(suite.attrib["failures"]) == out.count("FAILED: ") > 0


def test_the_model_that_ships_is_compared_with_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out, _ = run(tmp_path, "compare_exports.py")
    assert out.endswith("markers.onnx is verified against markers.pt\n")
    assert "detections of markers.onnx against markers.pt on markers.jpg: 8 of 8 expected" in out


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "examples" / "serve_minimal.py"), "--port", "0"]
    errors = tmp_path / "errors"
    with errors.open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(str(ASSETS)), errors.read_text()
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    assert "Traceback" not in errors.read_text()


def asked(address: str, data: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, data, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.load(e)


def test_a_server_answers_with_results(server: str) -> None:
    status, told = asked(server, (ASSETS / "markers.jpg").read_bytes())
    assert status == 200
    assert len(told["detections"]) == 8
    assert told["size"] == [800, 1200]
    status, told = asked(server, b"no image")
    assert status == 400
    assert "error" in told


def test_a_server_reads_no_more_than_its_limit(server: str) -> None:
    host, port = server.removeprefix("http://").strip("/").split(":")
    import http.client

    for headers, status in (({"Content-Length": str(2**40)}, 413), ({"Content-Length": "-1"}, 411)):
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.putrequest("POST", "/")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()
