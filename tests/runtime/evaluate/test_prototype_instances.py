"""Masks of prototypes through predict and eval: their AP on COCO's and YOLO's annotations, label files, run lengths.

The one object has the box 60, 45, 100, 75 in an image of 160 x 160 pixels, and its mask is the left half of that.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from tests.foreign_exports import SIDE, ULTRALYTICS, names, v8, write_constant

pytest.importorskip("hotcoco", reason="the extra eval is not installed")

Corners = list[float]
HALF = [60.0, 45, 80, 45, 80, 75, 60, 75]
WIDER = [60.0, 45, 95, 45, 95, 75, 60, 75]
"""IoU with the mask 20/35, over two of COCO's ten thresholds; with the box 35/40, over eight."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    output = v8(extra=2)
    output[0, -2:, 7] = 2.0, -1.0
    prototypes = np.zeros((1, 2, SIDE // 4, SIDE // 4), np.float32)
    prototypes[0, 0, :, : 80 // 4] = 1.0  # left of 80: 2 - 1 = 1, and -1 right of it
    prototypes[0, 1] = 1.0
    metadata = {**ULTRALYTICS, "task": "segment", "names": names(3)}
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((SIDE, SIDE, 3), 128, np.uint8))
    return write_constant(tmp_path / "m.onnx", {"output0": output, "output1": prototypes}, metadata)


def coco(folder: Path, outline: Corners) -> Path:
    x, y = outline[0::2], outline[1::2]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(("person", "class1", "class2"))],
        "annotations": [{**entry, "segmentation": [outline]}],
    }
    file = folder / "truth.json"
    file.write_text(json.dumps(truth))
    return file


def yolo(folder: Path, outline: Corners) -> Path:
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(f"0 {' '.join(str(v / SIDE) for v in outline)}\n")
    file = folder / "data.yaml"
    file.write_text("path: .\nval: images\nnames: [person, class1, class2]\n")
    return file


@pytest.mark.parametrize("written", [coco, yolo])
@pytest.mark.parametrize(("outline", "masks", "boxes"), [(HALF, 1.0, 0.1), (WIDER, 0.2, 0.8)])
def test_the_ap_is_that_of_masks(written: object, outline: Corners, masks: float, boxes: float, model: Path) -> None:
    assert callable(written)
    data = written(model.parent, outline)
    for task, expected in (("instances", masks), ("detect", boxes)):
        found = deploykit.evaluate(model, data, images=model.parent / "images" if written is coco else None, task=task)
        assert found.metrics["AP"] == pytest.approx(expected)
        assert found.metrics["AP50"] == pytest.approx(1.0)


def test_label_files_and_run_lengths_are_of_the_mask(model: Path) -> None:
    out = model.parent / "out"
    words = ["predict", str(model), str(model.parent / "images"), "--out", str(out), "--save-txt", "--no-draw"]
    assert main([*words, "--coco", str(out / "found.json")]) == 0
    label, *corners = (out / "labels" / "a.txt").read_text().split()
    assert label == "0"
    places = np.array(corners, float).reshape(-1, 2) * SIDE
    assert sorted(map(tuple, np.round(places))) == [(60, 45), (60, 75), (80, 45), (80, 75)]
    (entry,) = json.loads((out / "found.json").read_text())
    assert entry["segmentation"]["size"] == [SIDE, SIDE]
    lengths = entry["segmentation"]["counts"]
    mask = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(SIDE, SIDE).T
    expected = np.zeros((SIDE, SIDE))
    expected[45:75, 60:80] = 1
    assert (mask == expected).all()
