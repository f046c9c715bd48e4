"""Files about objects that ``deploykit predict`` writes: YOLO labels, LabelMe documents, crops and tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.results.detection import Result
from tests.cell_model import BLUE, RED, cell_spec, planted, write_cell_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    _write(folder / "both.png", planted((1, 2, RED), (5, 5, BLUE), scale=4))
    _write(folder / "empty.png", planted(scale=4))
    return folder


def _write(path: Path, image: Array) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def _predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def _found(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_labels_documents_and_crops_of_images(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--out", out, "--save-txt", "--labelme", "--crops", "--no-draw")
    assert _predict(model, folder, *words) == 0
    assert _found(out) == ["crops/blue/both-2.jpg", "crops/red/both-1.jpg", "labelme/both.json", "labelme/empty.json",
                           "labels/both.txt", "labels/empty.txt"]  # fmt: skip
    assert (out / "labels" / "both.txt").read_text().splitlines()[0] == "0 0.1875 0.3125 0.125 0.125 0.1875 0.3125 2"
    assert (out / "labels" / "empty.txt").read_text() == ""
    document = json.loads((out / "labelme" / "both.json").read_text())
    assert (out / "labelme" / document["imagePath"]).resolve() == (folder / "both.png").resolve()
    assert [s["label"] for s in document["shapes"]] == ["red", "centre", "blue", "centre"]
    crop = cv2.imread(str(out / "crops" / "red" / "both-1.jpg"))
    assert crop is not None
    assert crop.shape == (32, 32, 3)
    assert crop.reshape(-1, 3).mean(0) == pytest.approx((0, 0, 255), abs=4)
    assert _predict(model, folder, "--out", tmp_path / "conf", "--save-txt", "--save-conf") == 0
    assert (tmp_path / "conf" / "labels" / "both.txt").read_text().splitlines()[0].endswith(" 2 1")
    assert (tmp_path / "conf" / "both.png").exists()  # drawn as well


def test_names_that_are_shared_are_numbered_in_every_folder(model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    _write(tmp_path / "more" / "both.bmp", planted((0, 0, BLUE), scale=4))
    assert _predict(model, folder, tmp_path / "more", "--out", tmp_path / "out", "--save-txt", "--no-draw") == 0
    assert _found(tmp_path / "out") == ["labels/both-2.txt", "labels/both.txt", "labels/empty.txt"]
    assert (tmp_path / "out" / "labels" / "both-2.txt").read_text().startswith("1 0.0625 ")


def test_sub_folders_are_kept(model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    _write(folder / "sub" / "both.png", planted((0, 0, BLUE), scale=4))
    words = ("--recursive", "--out", tmp_path / "out", "--save-txt", "--crops", "--no-draw")
    assert _predict(model, folder, *words) == 0
    assert _found(tmp_path / "out") == ["crops/blue/both-2.jpg", "crops/blue/sub/both-1.jpg", "crops/red/both-1.jpg",
                                        "labels/both.txt", "labels/empty.txt", "labels/sub/both.txt"]  # fmt: skip


def test_frames_of_a_video_have_a_folder_and_their_numbers(model: Path, tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "film.mp4", 12) as recorder:
        for column in range(3):
            recorder.write(planted((column, 2, RED), scale=4))
    out = tmp_path / "out"
    words = ("--out", out, "--save-txt", "--crops", "--every", 2, "--csv", tmp_path / "r.csv")
    assert _predict(model, tmp_path / "film.mp4", *words) == 0
    assert _found(out) == ["crops/red/film/000000-1.jpg", "crops/red/film/000002-1.jpg", "film.mp4",
                           "labels/film/000000.txt", "labels/film/000002.txt"]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [(row["frame"], row["name"]) for row in rows] == [("0", "red"), ("2", "red")]
    assert _predict(model, tmp_path / "film.mp4", "--out", out, "--labelme") == UsageError.exit_code


def test_a_table_has_one_header_and_the_rows_of_all_images(model: Path, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    assert _predict(model, folder, "--csv", file) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(Path(row["image"]).name, row["name"], row["centre_x"]) for row in rows] == [
        ("both.png", "red", "48.0"), ("both.png", "blue", "176.0")
    ]  # fmt: skip
    assert _predict(model, folder / "empty.png", "--csv", file) == 0
    assert file.read_text().splitlines() == ["image,frame,label,name,score,x1,y1,x2,y2,centre_x,centre_y,centre_v"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--save-txt"], "--save-txt needs --out DIR, the folder to write to [deploykit help 2]"),
        (["--save-conf", "--out", "o"], "--save-conf needs --save-txt"),
        (["--no-draw"], "--no-draw needs --out, and drawn results"),
        (["--resume"], "--resume needs --out, --coco, --csv or --dota"),
        (["--csv", "r.csv", "--coco", "r.csv"], "--csv r.csv would replace a file that is read or written here"),
    ],
)
def test_options_that_need_others_say_so(
    model: Path, folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _predict(model, folder, *words) == UsageError.exit_code
    assert said in capsys.readouterr().err


def test_an_oriented_box_is_cut_out_upright() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    for angle in (0.0, 0.5, 2.0, 3.0):
        result = Result(
            [[0, 0, 200, 100]], [0.9], [0], size=(100, 200), rotated=[[100, 50, 60, 20, angle]], image=image
        )
        assert result.corners is not None
        image[:] = 0
        cv2.fillPoly(image, [np.rint(result.corners[0]).astype(np.int32)], (0, 255, 0))
        end = np.array([100, 50]) + 28 * np.array([np.cos(angle), np.sin(angle)])
        cv2.circle(image, np.rint(end).astype(int).tolist(), 5, (255, 0, 0), -1)
        (crop,) = result.crops()
        assert crop.shape == (20, 60, 3)
        assert crop[2:-2, 10:50].reshape(-1, 3).mean(0) == pytest.approx((0, 255, 0), abs=3)
        assert crop[10, 3 if angle > np.pi / 2 else 56, 0] > 200, angle  # turned by a quarter at most


def test_a_crop_holds_every_pixel_that_its_box_touches() -> None:
    image = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(10, 12, 3)
    result = Result([[1.5, 2, 4.2, 5], [12, 10, 12, 10]], [0.9, 0.8], [0, 0], size=(10, 12), image=image)
    inner, corner = result.crops()
    assert np.array_equal(inner, image[2:5, 1:5])
    assert np.array_equal(corner, image[9:, 11:])
