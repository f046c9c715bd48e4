"""AP of oriented boxes, by their own overlap, on YOLO data sets and on COCO's annotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploykit
from deploykit.errors import DataError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.datasets.coco import Category, CocoData, Image
from deploykit.runtime.evaluate.coco_metrics import CocoScores, Detections, coco_scores
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.postprocess.rotated import corners_of, hulls_of, rectangle_around
from deploykit.runtime.postprocess.rotated_nms import overlaps
from tests.foreign_exports import SIDE, ULTRALYTICS, names, rows, write_constant

BOXES = np.array([[40.0, 40, 40, 10, 0.4], [110, 50, 30, 12, 2.2], [60, 120, 24, 24, 0.2], [120, 120, 50, 8, 1.5]])
LABELS = (0, 1, 0, 2)


def write_model(file: Path, boxes: Array = BOXES, scores: Sequence[float] = (0.9, 0.8, 0.7, 0.6)) -> Path:
    """A network of three classes that finds these boxes in any image."""
    found = rows(8)
    found[7, :4] = 0
    found[20 : 20 + len(boxes), :4], found[20 : 20 + len(boxes), 7] = boxes[:, :4], boxes[:, 4]
    found[np.arange(20, 20 + len(boxes)), 4 + np.array(LABELS[: len(boxes)])] = scores[: len(boxes)]
    return write_constant(file, {"output0": found.T[None]}, {**ULTRALYTICS, "task": "obb", "names": names(3)})


def write_data(folder: Path, boxes: Array = BOXES, images: int = 1) -> Path:
    """A YOLO data set of oriented boxes: a class and four corners a line."""
    for part in ("images", "labels"):
        (folder / part).mkdir(exist_ok=True)
    corners = corners_of(boxes).reshape(-1, 8) / SIDE
    lines = [" ".join(map(str, (label, *row))) for label, row in zip(LABELS, corners.round(6), strict=False)]
    for i in range(images):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), np.full((SIDE, SIDE, 3), 128, np.uint8))
        (folder / "labels" / f"{i}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"path: .\nval: images\nnames: {names(3)}\n")
    return folder / "data.yaml"


def evaluated(model: Path, data: Path, **options: Any) -> DetectionEvaluation:
    return deploykit.evaluate(model, data, task="oriented", **options)


def test_where_every_box_is_right_all_is_one(tmp_path: Path) -> None:
    found = evaluated(write_model(tmp_path / "m.onnx"), write_data(tmp_path, images=3), keep_detections=True)
    for name in ("AP", "AP50", "AP75", "APs", "AR100"):
        assert found.metrics[name] == pytest.approx(1.0)
    assert [score.ap for score in found.per_class.values()] == pytest.approx([1.0] * 3)
    assert (found.counts.images, found.counts.objects, found.counts.detections) == (3, 12, 12)
    assert (found.settings.metrics, found.settings.scored) == ("deploykit", 100)
    assert found.details()[1] == ["person", "1.0000", "1.0000", "6", "6"]
    entry = found.detections.entries()[0]
    left, top, right, bottom = hulls_of(BOXES)[0]
    assert entry["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
    assert rectangle_around(np.reshape(entry["segmentation"][0], (4, 2))) == pytest.approx(BOXES[0], abs=1e-3)


@pytest.mark.parametrize("turn", [0.35, math.pi / 2])
def test_where_the_angles_are_wrong_ap_falls_and_that_of_upright_boxes_may_not(tmp_path: Path, turn: float) -> None:
    """A square is the same after a quarter of a turn, and the other boxes are others."""
    turned = BOXES + np.array([0, 0, 0, 0, turn])
    found = evaluated(write_model(tmp_path / "m.onnx", turned), write_data(tmp_path))
    same = np.diag(overlaps(BOXES, turned))
    expected = [np.mean(same[i] >= np.linspace(0.5, 0.95, 10) - 1e-6) for i in (1, 3)]
    by_class = [found.per_class[name].ap for name in ("class1", "class2")]
    assert by_class == pytest.approx(expected)
    assert found.metrics["AP"] < 0.6


def test_worked_out_by_hand(tmp_path: Path) -> None:
    """Moved by 10 along a side of 40, a box overlaps by 1 - sqrt(1 - exp(-10^2 / (8 * 40^2 / 12))) = 0.7008."""
    box = np.array([[60.0, 80, 40, 10, 0.5]])
    moved = box + 10 * np.array([[math.cos(0.5), math.sin(0.5), 0, 0, 0]])
    overlap = 1 - math.sqrt(1 - math.exp(-(10**2) / (8 * 40**2 / 12)))
    assert 0.70 < overlap < 0.71
    found = evaluated(write_model(tmp_path / "m.onnx", moved), write_data(tmp_path, box))
    assert found.metrics["AP"] == pytest.approx(0.5)  # thresholds of 0.5 to 0.7
    assert (found.metrics["AP50"], found.metrics["AP75"]) == (pytest.approx(1.0), 0.0)
    assert found.per_class["person"].ap == pytest.approx(0.5)
    assert found.per_class["class1"].ap == -1


def test_the_same_rectangle_in_other_numbers_is_right(tmp_path: Path) -> None:
    """Half a turn, and a quarter with the sides exchanged."""
    other = BOXES[:, [0, 1, 3, 2, 4]] + np.array([0, 0, 0, 0, math.pi / 2])
    other[::2] = BOXES[::2] - np.array([0, 0, 0, 0, math.pi])
    assert evaluated(write_model(tmp_path / "m.onnx", other), write_data(tmp_path)).metrics["AP"] == pytest.approx(1.0)


def test_a_model_of_upright_boxes_is_refused(tmp_path: Path) -> None:
    output = rows(7)
    output[7, 4] = 0.9
    file = write_constant(
        tmp_path / "m.onnx", {"output0": output.T[None]}, {**ULTRALYTICS, "task": "detect", "names": names(3)}
    )
    with pytest.raises(UsageError, match="the task oriented needs a model with oriented boxes"):
        evaluated(file, write_data(tmp_path))


def scores_of(annotations: Sequence[dict[str, Any]], boxes: Array) -> CocoScores:
    entries = tuple(
        {"id": i + 1, "image_id": 1, "category_id": 1, "area": 1.0, "iscrowd": 0, "bbox": [0.0, 0.0, 1.0, 1.0], **a}
        for i, a in enumerate(annotations)
    )
    data = CocoData(Path("truth.json"), (Image(1, "a.png", None),), (Category(1, "ship"),), entries)
    upright = hulls_of(boxes)
    upright[:, 2:] -= upright[:, :2]
    ones = np.ones(len(boxes), np.int64)
    found = Detections(ones, ones, upright, np.linspace(0.9, 0.5, len(boxes)), rotated=boxes)
    return coco_scores(data, found, kind="oriented", image_ids=[1], category_ids=[1])


def test_annotations_are_outlines_or_boxes() -> None:
    """A box without an outline is upright; an outline of many points has the smallest rectangle around it."""
    circle = [[50 + 20 * math.cos(t), 50 + 20 * math.sin(t)] for t in np.linspace(0, 2 * math.pi, 32, endpoint=False)]
    annotations: list[dict[str, Any]] = [
        {"bbox": [100.0, 100.0, 30.0, 10.0]},
        {"segmentation": [np.array(circle).reshape(-1).tolist()]},
        {"segmentation": {"size": [4, 4], "counts": "run lengths"}, "bbox": [10.0, 200.0, 8.0, 8.0]},
    ]
    boxes = np.array([[115.0, 105, 30, 10, 0.0], [50, 50, 40, 40, 0.6], [14, 204, 8, 8, 0.0]])
    assert scores_of(annotations, boxes).metrics["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("segmentation", [[[1, 2, 3]], ["abc"], [[]], [[None, 1]], [[math.nan, 1, 2, 3]]])
def test_an_outline_that_is_none_is_an_error(segmentation: Any) -> None:
    with pytest.raises(DataError, match=r"annotation 1 of truth.json: a segmentation must be outlines"):
        scores_of([{"segmentation": segmentation}], np.array([[1.0, 1, 1, 1, 0]]))


@given(st.floats(-3000, 30000), st.floats(-3000, 30000), st.floats(2, 500), st.floats(2, 500), st.floats(-7, 7))
def test_the_rectangle_of_four_corners_is_the_box(x: float, y: float, w: float, h: float, angle: float) -> None:
    box = np.array([[x, y, w, h, angle]])
    found = rectangle_around(corners_of(box)[0])
    far = np.abs(corners_of(found[None])[0][:, None] - corners_of(box)[0][None]).max(-1)
    assert (far.min(1) < 1e-2).all()
    assert found[2] >= found[3]
    assert 0 <= found[4] < math.pi
