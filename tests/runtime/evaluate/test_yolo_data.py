"""A YOLO data set scores as the same annotations in COCO's format do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.errors import DataError, UsageError
from deploykit.runtime.datasets.coco import read_coco
from deploykit.runtime.datasets.labels import read_labels
from deploykit.runtime.datasets.yolo import read_yolo
from deploykit.runtime.evaluate.folders import split_folder
from deploykit.runtime.evaluate.yolo_data import coco_from_yolo
from tests.cell_model import BLUE, RED, write_cell_model
from tests.coco_folder import BLUE_ID, Folder, pose_spec, write_folder

pytest.importorskip("hotcoco", reason="the extra eval is not installed")

IMAGES = (((1, 2, RED), (4, 3, RED), (6, 1, BLUE)), ((0, 0, BLUE), (7, 3, BLUE)), (), ((3, 1, RED),))
Form = Callable[[dict, float, float], list[float]]


def box(annotation: dict, width: float, height: float) -> list[float]:
    x, y, w, h = annotation["bbox"]
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def pose(annotation: dict, width: float, height: float) -> list[float]:
    points = np.reshape(annotation["keypoints"], (-1, 3)) / [width, height, 1]
    return [*box(annotation, width, height), *points.reshape(-1)]


def outline(annotation: dict, width: float, height: float) -> list[float]:
    x, y, w, h = annotation["bbox"]
    corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]) / [width, height]
    return [*corners.reshape(-1)]


def as_yolo(folder: Folder, form: Form, more: str = "") -> Path:
    """Write the annotations of a folder as labels, with the classes in the order of the model."""
    for image in folder.coco["images"]:
        lines = [
            " ".join(map(str, [int(a["category_id"] == BLUE_ID), *form(a, image["width"], image["height"])]))
            for a in folder.coco["annotations"]
            if a["image_id"] == image["id"]
        ]
        labels = folder.path / "labels" / Path(image["file_name"]).with_suffix(".txt")
        labels.parent.mkdir(exist_ok=True)
        if lines:  # one image has none
            labels.write_text("\n".join(lines))
    file = folder.path / "data.yaml"
    file.write_text(f"path: .\nval: images\nnames: [red, Blue]\n{more}")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_folder(tmp_path / "cells", IMAGES, scale=8, wide=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=pose_spec())


@pytest.mark.parametrize(
    ("task", "form", "more"),
    [
        ("detect", box, ""),
        ("detect", outline, ""),
        ("keypoints", pose, "kpt_shape: [1, 3]\nkpt_names: {0: [centre]}\n"),
    ],
)
def test_the_metrics_are_those_of_the_same_annotations(
    model: Path, folder: Folder, task: str, form: Form, more: str
) -> None:
    coco = deploykit.evaluate(model, folder.data, images=folder.images, task=task)
    yolo = deploykit.evaluate(model, as_yolo(folder, form, more), task=task)
    assert yolo.metrics == pytest.approx(coco.metrics, abs=1e-9)
    assert yolo.metrics["AP"] > 0.2
    assert replace(yolo.counts, listed=0) == replace(coco.counts, listed=0)
    assert any("split val" in note for note in yolo.notes)
    assert any("1 of 4 images have no label file" in note for note in yolo.notes)


def test_the_converted_file_is_cocos_and_scores_the_same(
    model: Path, folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = as_yolo(folder, pose, "kpt_shape: [1, 3]\nkpt_names: {0: [centre], 1: [centre]}\n")
    out = tmp_path / "val.json"
    assert main(["data", "convert", str(data), "--out", str(out)]) == 0
    assert "4 images, 6 objects of 2 categories (6 with keypoints, 0 with outlines)" in capsys.readouterr().out
    assert main(["data", "convert", str(data.parent), "--out", str(out), "--json", "--split", "val"]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == 6
    converted = read_coco(out)
    assert [c.keypoints for c in converted.categories] == [("centre",)] * 2
    assert converted.images == coco_from_yolo(read_yolo(data), "val").images
    theirs = {(a["bbox"][0], a["bbox"][1]) for a in folder.coco["annotations"]}
    assert {tuple(np.round(a["bbox"][:2], 6)) for a in converted.annotations} == theirs
    for task in ("detect", "keypoints"):
        once = deploykit.evaluate(model, out, images=folder.path, task=task)
        assert once.metrics == pytest.approx(deploykit.evaluate(model, data, task=task).metrics, abs=1e-9)


def test_an_outline_has_its_own_area_and_its_extent_as_box(folder: Folder) -> None:
    data = as_yolo(folder, lambda *_: [0.1, 0.1, 0.5, 0.1, 0.1, 0.5])
    found = coco_from_yolo(read_yolo(data)).annotations[0]
    height, width = coco_from_yolo(read_yolo(data)).images[0].size or (0, 0)
    assert found["bbox"] == pytest.approx([0.1 * width, 0.1 * height, 0.4 * width, 0.4 * height])
    assert found["area"] == pytest.approx(0.08 * width * height)
    assert len(found["segmentation"][0]) == 6


def test_labels_lie_over_the_upright_image(folder: Folder) -> None:
    image = folder.images / folder.coco["images"][0]["file_name"]
    turned = cv2.imencode(".jpg", np.zeros((32, 64, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    image.with_suffix(".jpg").write_bytes(turned[:2] + segment + turned[2:])
    image.unlink()
    found = coco_from_yolo(read_yolo(as_yolo(folder, box)))
    assert found.images[0].size == (64, 32)


def test_options_that_do_not_go_together_are_refused(model: Path, folder: Folder) -> None:
    data = as_yolo(folder, box)
    with pytest.raises(UsageError, match="leave --images out"):
        deploykit.evaluate(model, data, images=folder.images)
    with pytest.raises(UsageError, match="--split is for a YOLO data set"):
        deploykit.evaluate(model, folder.data, images=folder.images, split="val")
    with pytest.raises(UsageError, match="--images is missing"):
        deploykit.evaluate(model, folder.data)
    with pytest.raises(UsageError, match="a split is one of train, val, test, got 'vall'"):
        deploykit.evaluate(model, data, split="vall")
    for labels in (folder.path / "labels").iterdir():
        labels.unlink()
    with pytest.raises(DataError, match=r"no image of the split val has labels: expected .*labels"):
        deploykit.evaluate(model, data, task="detect")


def test_sigmas_are_given_or_missed_in_words(folder: Folder, tmp_path: Path) -> None:
    data = as_yolo(folder, pose, "kpt_shape: [1, 3]\n")
    spec = pose_spec()
    assert spec.keypoints is not None
    bare = write_cell_model(tmp_path / "bare.onnx", spec=replace(spec, keypoints=replace(spec.keypoints, sigmas=())))
    with pytest.raises(UsageError, match="pass --sigmas"):
        deploykit.evaluate(bare, data)
    found = deploykit.evaluate(bare, data, sigmas=(0.1,))
    assert found.settings.sigmas == (0.1,)
    own = write_cell_model(tmp_path / "own.onnx", spec=spec)
    assert found.metrics == pytest.approx(deploykit.evaluate(own, data).metrics)
    with pytest.raises(UsageError, match="one for each of 1 keypoints"):
        deploykit.evaluate(bare, data, sigmas=(0.1, 0.2))


def test_objects_without_a_labelled_keypoint_are_counted(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = as_yolo(folder, pose, "kpt_shape: [1, 3]\n")
    first = next(file for file in sorted((folder.path / "labels").iterdir()) if file.read_text())
    line = first.read_text().splitlines()[0].split()
    first.write_text("\n".join([" ".join([*line[:5], "0", "0", "0"]), *first.read_text().splitlines()[1:]]))
    assert main(["data", "convert", str(data), "--out", str(tmp_path / "val.json")]) == 0
    out, err = capsys.readouterr()
    assert "6 objects of 2 categories (5 with keypoints, 0 with outlines)" in out
    assert "1 of 6 objects have no labelled keypoint: they count for boxes only" in err


@pytest.mark.parametrize("keypoints", [4, 5])  # an even number of values could be an outline
def test_keypoints_without_kpt_shape_lead_to_it(tmp_path: Path, keypoints: int) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"0 0.5 0.5 0.2 0.2 {'0.5 0.5 2 ' * keypoints}")
    with pytest.raises(DataError, match=rf"add kpt_shape: \[{keypoints}, 3\] to data.yaml"):
        read_labels(file, 1)


def test_an_outline_is_not_taken_for_keypoints(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("0 0 0 1 0 1 1 0 1 0 1")  # five corners, as many values as a box and two keypoints
    (label,) = read_labels(file, 1)
    assert label.outline is not None
    assert label.outline.shape == (5, 2)


def test_a_folder_of_splits_is_known_by_its_names(tmp_path: Path) -> None:
    for name in ("train/cat", "valid/cat", "test/cat"):
        (tmp_path / name).mkdir(parents=True)
    assert split_folder(tmp_path, None) == (tmp_path / "valid", (f"the split valid of {tmp_path} was taken",))
    assert split_folder(tmp_path, "test") == (tmp_path / "test", ())
    assert split_folder(tmp_path / "test", None) == (tmp_path / "test", ())
    (tmp_path / "cat").mkdir()  # now train, valid and test are classes too
    assert split_folder(tmp_path, None) == (tmp_path, ())
    with pytest.raises(UsageError, match="has no split 'val', and no others"):
        split_folder(tmp_path, "val")
