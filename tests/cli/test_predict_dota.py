"""The files of DOTA's evaluation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.runtime.postprocess.rotated import corners_of
from tests.foreign_exports import SIDE, ULTRALYTICS, rows, write_constant

BOXES = np.array([[40.0, 40, 40, 10, 0.4], [110, 50, 30, 12, 2.2], [158, 120, 24, 24, 0.2]])
NAMES = str({0: "small vehicle", 1: "ship", 2: "plane"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two small vehicles, one of them partly outside, and a ship, in any image."""
    found = rows(8)
    found[7, :4] = 0
    found[20:23, :4], found[20:23, 7] = BOXES[:, :4], BOXES[:, 4]
    found[[20, 21, 22], [4, 5, 4]] = 0.9, 0.8, 0.7
    return write_constant(
        tmp_path / "m.onnx", {"output0": found.T[None]}, {**ULTRALYTICS, "task": "obb", "names": NAMES}
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("P0007.png", "P0003.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.full((SIDE, SIDE, 3), 128, np.uint8))
    return tmp_path / "images"


def test_a_file_per_class_with_a_line_per_object(model: Path, images: Path, tmp_path: Path) -> None:
    assert main(["predict", str(model), str(images), "--dota", str(tmp_path / "dota")]) == 0
    files = {file.name: file.read_text().splitlines() for file in (tmp_path / "dota").iterdir()}
    assert {name: len(lines) for name, lines in files.items()} == {
        "Task1_small-vehicle.txt": 4, "Task1_ship.txt": 2, "Task1_plane.txt": 0,
    }  # fmt: skip
    words = [line.split() for line in files["Task1_small-vehicle.txt"]]
    assert [(row[0], float(row[1])) for row in words] == [
        ("P0003", pytest.approx(0.9)), ("P0003", pytest.approx(0.7)), ("P0007", pytest.approx(0.9)),
        ("P0007", pytest.approx(0.7)),
    ]  # fmt: skip
    for row, box in zip(words, (BOXES[0], BOXES[2], BOXES[0], BOXES[2]), strict=True):
        corners = np.array(row[2:], float).reshape(4, 2)
        far = np.abs(corners[:, None] - corners_of(box[None])[0][None]).max(-1)
        assert (far.min(1) < 1e-2).all()
        assert (far.min(0) < 1e-2).all()
    assert max(float(value) for row in words for value in row[2:]) > SIDE  # not clipped


def test_a_run_that_is_resumed_writes_the_same(model: Path, images: Path, tmp_path: Path) -> None:
    words = ["predict", str(model), str(images), "--dota", str(tmp_path / "dota"), "--resume"]
    assert main([*words]) == 0
    first = {file.name: file.read_bytes() for file in (tmp_path / "dota").iterdir()}
    for file in (tmp_path / "dota").iterdir():
        file.unlink()
    assert main([*words]) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "dota").iterdir()} == first


def test_what_cannot_be(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: object) -> str:
        assert main(["predict", *map(str, words)]) == 2
        return capsys.readouterr().err

    place = tmp_path / "dota"
    upright = rows(7)
    upright[7, 4] = 0.9
    other = write_constant(
        tmp_path / "u.onnx", {"output0": upright.T[None]}, {**ULTRALYTICS, "task": "detect", "names": NAMES}
    )
    assert "--dota needs a model that finds oriented boxes; this model's task is detect" in refused(
        other, images, "--dota", place
    )
    (tmp_path / "more").mkdir()
    for name in ("P0003.png", "two words.png"):
        cv2.imwrite(str(tmp_path / "more" / name), np.zeros((8, 8, 3), np.uint8))
    more = tmp_path / "more"
    assert "P0003.png are the same" in refused(model, images, more / "P0003.png", "--dota", place)
    assert "there is one in" in refused(model, more / "two words.png", "--dota", place)
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 5, (SIDE, SIDE))
    writer.write(np.zeros((SIDE, SIDE, 3), np.uint8))
    writer.release()
    assert "--dota is for images, but" in refused(model, film, "--dota", place)
    assert "--dota must be a folder, but" in refused(model, images, "--dota", model)
    assert not place.exists()
