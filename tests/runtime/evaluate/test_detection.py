"""Evaluation from images to metrics, with a real network whose every answer is known."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.errors import DataError, ImageError, ImageSizeError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.evaluate.coco_metrics import BOX_KEYS, KEYPOINT_KEYS
from deploykit.runtime.evaluate.evaluate import evaluate_session
from deploykit.runtime.evaluate.report import DetectionEvaluation
from deploykit.runtime.native.library import nms_arrays
from deploykit.runtime.options import EvalOptions
from deploykit.spec import EndToEndRows, KeypointSpec, ModelSpec, NmsOutputs, RawDetections, Thresholds
from tests.cell_model import BLUE, RED, SIDE, cell_spec, write_cell_model
from tests.coco_folder import BLUE_ID, RED_ID, Folder, pose_spec, write_folder
from tests.heard import Heard

pytest.importorskip("hotcoco", reason="the extra eval is not installed")
ENGINES = [
    "hotcoco",
    pytest.param(
        "pycocotools",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("pycocotools") is None, reason="pycocotools (extra dev) is not installed"
        ),
    ),
]
BOTH_COLOURS = (255, 0, 255)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return write_folder(tmp_path / "cells")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=pose_spec())


def _evaluated(model: Path, folder: Folder, **options: Any) -> DetectionEvaluation:
    return deploykit.evaluate(model, folder.data, images=folder.images, **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_that_finds_everything_scores_one(model: Path, folder: Folder, engine: str) -> None:
    boxes = _evaluated(model, folder, task="detect", metrics=engine)
    assert tuple(boxes.metrics) == BOX_KEYS
    assert [boxes.metrics[key] for key in ("AP", "AP50", "AP75", "APm", "AR10", "AR100")] == pytest.approx([1] * 6)
    assert (boxes.metrics["APs"], boxes.metrics["APl"], boxes.metrics["ARl"]) == (-1, -1, -1)  # cells of 64 x 64
    assert boxes.per_class["red"].ap == boxes.per_class["Blue"].ap == pytest.approx(1)
    assert (boxes.per_class["red"].objects, boxes.per_class["Blue"].detections) == (3, 3)
    points = _evaluated(model, folder, metrics=engine)
    assert points.task == "keypoints"
    assert tuple(points.metrics) == KEYPOINT_KEYS
    assert [points.metrics[key] for key in ("AP", "AP50", "AP75", "AR")] == pytest.approx([1] * 4)
    assert points.settings.sigmas == (0.1,)
    assert any("not those of COCO's 17" in note for note in points.notes)


def test_what_the_numbers_depend_on_is_in_the_result(model: Path, folder: Folder) -> None:
    folder.coco["annotations"][0]["iscrowd"] = 1
    found = _evaluated(model, folder.save(), task="detect")
    counts, used = found.counts, found.settings
    assert (counts.images, counts.listed, counts.missing, counts.left_out) == (4, 4, 0, 0)
    assert (counts.categories, counts.objects, counts.crowd, counts.detections) == (2, 5, 1, 6)
    assert (counts.full, counts.truncated) == (0, 0)
    assert (used.conf, used.iou, used.max_det, used.pre_nms_topk) == (0.001, 0.65, 300, 30_000)
    assert (used.multi_label, used.nms, used.size, used.rectangles) == (True, "runtime", (64, 64), False)
    assert (used.batch, used.providers, used.scored) == (1, ("CPUExecutionProvider",), 100)
    assert (used.matched_by, used.metrics, used.sigmas) == ("name", "hotcoco", ())
    assert list(found.timings) == ["read", "letterbox", "inference", "postprocess"]
    assert found.versions["hotcoco"]
    assert found.notes == ()
    data = found.to_dict()
    assert data["metrics"] == found.metrics
    assert data["per_class"]["red"] == {"AP": pytest.approx(1), "AP50": pytest.approx(1), "objects": 2, "detections": 3}
    assert data["counts"]["crowd"] == 1


def test_boxes_are_in_source_pixels_with_every_digit(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", [((2, 3, RED),)], scale=3)
    found = _evaluated(model, folder, task="detect").detections
    assert found.boxes.dtype == np.float64
    np.testing.assert_allclose(found.boxes, [[48, 72, 24, 24]], atol=1e-4)
    (entry,) = found.entries()
    assert (entry["image_id"], entry["category_id"]) == (1000, RED_ID)
    assert entry["bbox"] == found.boxes[0].tolist()


def test_an_object_without_a_labelled_keypoint_does_not_count_for_keypoints(model: Path, folder: Folder) -> None:
    first, second, *_ = folder.coco["annotations"]
    first["keypoints"] = [0, 0, 0]
    del second["keypoints"]
    points = _evaluated(model, folder.save())
    assert (points.counts.objects, points.per_class["red"].objects, points.per_class["Blue"].objects) == (4, 1, 3)
    assert points.metrics["AP"] == pytest.approx(1)  # what is found of them is ignored as well
    assert _evaluated(model, folder, task="detect").counts.objects == 6


@pytest.mark.parametrize("engine", ENGINES)
def test_numbers_from_zero_are_as_good_as_others(model: Path, folder: Folder, engine: str) -> None:
    for image, number in zip(folder.coco["images"], range(4), strict=True):
        image["id"] = number
    for category, number in zip(folder.coco["categories"], range(2), strict=True):
        category["id"] = number
    for annotation in folder.coco["annotations"]:
        annotation["image_id"] = 1000 - annotation["image_id"]
        annotation["category_id"] = int(annotation["category_id"] == RED_ID)
    for task in ("detect", "keypoints"):
        found = _evaluated(model, folder.save(), metrics=engine, task=task)
        assert found.metrics["AP"] == pytest.approx(1)
        assert (found.counts.objects, found.counts.detections) == (6, 6)


def test_nothing_found_scores_zero(model: Path, folder: Folder, tmp_path: Path) -> None:
    black = write_folder(tmp_path / "black", [(), (), (), ()])
    for task, keys in (("detect", BOX_KEYS), ("keypoints", KEYPOINT_KEYS)):
        found = deploykit.evaluate(model, folder.data, images=black.images, task=task)
        assert {found.metrics[key] for key in keys} <= {0, -1}
        assert found.metrics["AP"] == 0
        assert found.counts.detections == 0


def test_without_a_single_object_there_is_nothing_to_measure(model: Path, folder: Folder) -> None:
    folder.coco["annotations"] = []
    found = _evaluated(model, folder.save(), task="detect")
    assert set(found.metrics.values()) == {-1}
    assert found.counts.objects == 0


def test_wrong_labels_score_zero(model: Path, folder: Folder) -> None:
    for annotation in folder.coco["annotations"]:
        annotation["category_id"] = BLUE_ID if annotation["category_id"] == RED_ID else RED_ID
    found = _evaluated(model, folder.save(), task="detect")
    assert found.metrics["AP"] == 0
    assert found.counts.detections == 6


def test_a_box_counts_once_for_each_of_its_classes(model: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "both", [((1, 1, BOTH_COLOURS),)])
    (one,) = folder.coco["annotations"]
    folder.coco["annotations"] = [one, {**one, "category_id": RED_ID}]
    found = _evaluated(model, folder.save(), task="detect")
    assert sorted(found.detections.category_ids.tolist()) == [BLUE_ID, RED_ID]
    assert found.metrics["AP"] == pytest.approx(1)
    with deploykit.load(model) as predictor:
        assert len(predictor(folder.images / "000000000000.png")) == 1  # in use, the best class alone


def test_classes_that_only_one_side_has_are_left_out_and_reported(model: Path, folder: Folder) -> None:
    folder.coco["categories"] = [c for c in folder.coco["categories"] if c["id"] == RED_ID]
    folder.coco["annotations"] = [a for a in folder.coco["annotations"] if a["category_id"] == RED_ID]
    found = _evaluated(model, folder.save(), task="detect")
    assert found.metrics["AP"] == pytest.approx(1)
    assert (found.counts.categories, found.counts.detections) == (1, 3)
    assert "what the model finds of blue does not count" in found.notes[0]
    folder.coco["categories"][0]["name"] = "crimson"
    with pytest.raises(DataError, match=r"the model has 2 .red, blue., the annotations 1 .crimson."):
        _evaluated(model, folder.save())


def test_listed_images_that_are_missing_are_an_error_unless_that_is_allowed(model: Path, folder: Folder) -> None:
    (folder.images / "000000000000.png").unlink()
    with pytest.raises(NotFoundError, match=r"1 of 4 listed images are not in .*000000000000.png\): pass .*--allow-"):
        _evaluated(model, folder)
    allowed = _evaluated(model, folder, allow_missing=True, task="detect")
    assert (allowed.counts.images, allowed.counts.missing, allowed.counts.objects) == (3, 1, 3)
    assert allowed.metrics["AP"] == pytest.approx(1)
    assert "they were left out" in allowed.notes[0]
    limited = _evaluated(model, folder, limit=2, task="detect")
    assert (limited.counts.images, limited.counts.missing, limited.counts.left_out) == (2, 1, 1)
    assert limited.counts.objects == 2
    assert "only the first 2 of 3 images" in limited.notes[1]
    for file in folder.images.iterdir():
        file.unlink()
    for more in ({}, {"allow_missing": True}, {"limit": 1}):
        with pytest.raises(NotFoundError, match="4 of 4 listed images are not in"):
            _evaluated(model, folder, **more)


def test_images_beside_the_listed_ones_are_not_looked_at(model: Path, folder: Folder) -> None:
    (folder.images / "other.png").write_bytes(b"not an image")
    assert _evaluated(model, folder).counts.images == 4


def test_a_listed_image_that_cannot_be_read_is_an_error(model: Path, folder: Folder) -> None:
    (folder.images / "000000000001.png").write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"000000000001.png is not a complete image"):
        _evaluated(model, folder, allow_missing=True)


def test_an_image_whose_size_differs_from_the_annotations_is_an_error(model: Path, folder: Folder) -> None:
    folder.coco["images"][2]["width"] = 511
    with pytest.raises(DataError, match=r"is 512x512 .*, but the annotations say 511x512"):
        _evaluated(model, folder.save())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit must be at least 1 image, got 0"),
        ({"task": "segment"}, "cannot be scored for 'segment', only for detect, instances, keypoints"),
        ({"conf": 2}, "conf must lie in 0..1"),
        ({"batch": 3}, "a fixed batch of 1, got 3"),
        ({"metrics": "coco"}, "must be hotcoco or pycocotools, got 'coco'"),
        ({"img": 128}, "takes only images of 64x64 .*, not 128x128"),
        ({"rectangles": True}, "takes only images of 64x64 .*, not rectangles"),
    ],
)
def test_options_that_do_not_fit_are_refused(model: Path, folder: Folder, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _evaluated(model, folder, **options)


def test_the_folder_must_be_one(model: Path, folder: Folder) -> None:
    with pytest.raises(NotFoundError, match="expected a folder of images at"):
        deploykit.evaluate(model, folder.data, images=folder.path / "none")
    with pytest.raises(UsageError, match=r"must be in a folder, but .* is a file"):
        deploykit.evaluate(model, folder.data, images=folder.data)


def test_thresholds_that_lower_the_numbers_are_reported(model: Path, folder: Folder) -> None:
    found = _evaluated(model, folder, conf=0.3, max_det=2, task="detect")
    assert "conf 0.3 leaves out weak detections" in found.notes[0]
    assert "max_det 2 is below the 100 per image" in found.notes[1]
    assert found.counts.full == 2
    assert found.counts.detections == 5


def test_a_batch_gives_the_same_numbers(tmp_path: Path, folder: Folder) -> None:
    model = write_cell_model(tmp_path / "n.onnx", batch="n", spec=pose_spec(dynamic=True))
    heard = Heard()
    one, three = (_evaluated(model, folder, batch=n, progress=heard).to_dict() for n in (1, 3))
    assert (one["metrics"], one["counts"]) == (three["metrics"], three["counts"])
    assert (one["settings"]["batch"], three["settings"]["batch"]) == (1, 3)
    assert [share for _, share in heard.shares] == [1 / 4, 2 / 4, 3 / 4, 4 / 4] * 2


def test_keypoints_need_a_model_and_annotations_with_the_same(tmp_path: Path, folder: Folder) -> None:
    boxes = replace(cell_spec(), task="detect", keypoints=None, output=RawDetections(cls=(5, 7)))
    with pytest.raises(UsageError, match="needs a model with keypoints"):
        _evaluated(write_cell_model(tmp_path / "boxes.onnx", spec=boxes), folder, task="keypoints")
    bare = write_cell_model(tmp_path / "bare.onnx", spec=cell_spec())
    with pytest.raises(UsageError, match="OKS for 1 keypoints needs 1 sigmas"):
        _evaluated(bare, folder)
    assert _evaluated(bare, folder, spec=pose_spec()).metrics["AP"] == pytest.approx(1)
    folder.coco["annotations"][0]["keypoints"] *= 2
    with pytest.raises(DataError, match=r"the model has 1 keypoints, the annotations in .* have 1 or 2"):
        _evaluated(bare, folder.save(), spec=pose_spec())


def _pose_of_17(names: tuple[str, ...], sigmas: tuple[float, ...]) -> tuple[FakeSession, ModelSpec]:
    """A network that finds one person at (32, 32), whose keypoint i lies at (i, i)."""
    row = np.zeros((1, 1, 57), np.float32)
    row[0, 0, :6] = 32, 32, 40, 40, 1, 1
    row[0, 0, 6::3] = row[0, 0, 7::3] = np.arange(17)
    base = cell_spec()
    points = KeypointSpec(names, sigmas=sigmas)
    spec = replace(base, output=RawDetections(keypoints=(6, 57)), classes=("person",), keypoints=points)
    return FakeSession(lambda _: {"output": row}, spec=spec), spec


def test_keypoints_are_put_into_the_annotations_order_with_their_sigmas(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "people", [((1, 1, RED),)], scale=1)
    names = [f"point {i}" for i in range(17)]
    folder.coco["categories"] = [{"id": 1, "name": "person", "keypoints": names[::-1]}]
    theirs = [v for i in reversed(range(17)) for v in (i, i, 2)]
    folder.coco["annotations"][0].update(category_id=1, keypoints=theirs, bbox=[12, 12, 40, 40], area=1600)
    sigmas = tuple(np.linspace(0.02, 0.1, 17).tolist())
    session, spec = _pose_of_17(tuple(names), sigmas)
    found = evaluate_session(session, spec, folder.save().data, folder.images)
    assert found.metrics["AP"] == pytest.approx(1)
    assert found.settings.sigmas == sigmas[::-1]
    assert any("in another order" in note for note in found.notes)
    session, spec = _pose_of_17(tuple(f"keypoint {i}" for i in range(17)), ())
    unnamed = evaluate_session(session, spec, folder.data, folder.images)
    assert unnamed.metrics["AP"] < 0.5  # by position, which here is the wrong way round
    assert any("by position" in note for note in unnamed.notes)
    assert any("those of COCO's 17 keypoints are used" in note for note in unnamed.notes)


def _with_nms_inside(classes: tuple[str, ...] = ("red", "blue")) -> tuple[FakeSession, ModelSpec]:
    """A network that finds one red cell at (1, 2), with NMS and thresholds of its own inside."""
    found = nms_arrays(1, 5, 0)
    found["num_dets"][0] = found["num_candidates"][0] = 1
    found["boxes"][0, 0], found["scores"][0, 0] = (8, 16, 16, 24), 0.9
    own = Thresholds(conf=0.25, iou=0.45, max_det=5)
    spec = replace(cell_spec(), task="detect", keypoints=None, classes=classes, output=NmsOutputs(), thresholds=own)
    return FakeSession(lambda _: found, spec=spec), spec


def test_nms_inside_a_network_keeps_its_thresholds_and_that_is_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", [((1, 2, RED),)], scale=1)
    session, spec = _with_nms_inside()
    found = evaluate_session(session, spec, folder.data, folder.images)
    assert found.metrics["AP"] == pytest.approx(1)
    used = found.settings
    assert (used.nms, used.conf, used.iou, used.max_det, used.multi_label) == ("graph", 0.25, 0.45, 5, False)
    assert "NMS is inside this network: conf 0.25, iou 0.45, max_det 5, pre_nms_topk 1000 and one class" in (
        " ".join(found.notes)
    )
    with pytest.raises(UsageError, match=r"NMS is inside this network with conf 0.25, so 0.001 has no effect"):
        evaluate_session(session, spec, folder.data, folder.images, EvalOptions(conf=0.001))
    session, spec = _with_nms_inside(())
    with pytest.raises(DataError, match="does not name its classes"):
        evaluate_session(session, spec, folder.data, folder.images)


def test_weak_detections_of_a_network_that_chooses_itself_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", [((1, 2, RED),)], scale=1)
    rows = np.array([[[40, 40, 48, 48, 0.9, 1], [8, 16, 16, 24, 0.1, 0], [0, 0, 0, 0, 0, 0]]], np.float32)
    own = Thresholds(conf=0.25, iou=0.7, max_det=300)
    classes = ("red", "blue")
    spec = replace(cell_spec(), task="detect", keypoints=None, classes=classes, output=EndToEndRows(), thresholds=own)
    session = FakeSession(lambda _: {"output": rows}, spec=spec)
    found = evaluate_session(session, spec, folder.data, folder.images)
    assert found.metrics["AP"] == pytest.approx(1)
    assert (found.settings.nms, found.settings.conf, found.counts.detections) == ("none", 0.001, 2)
    assert ("thresholds", "conf 0.001, max_det 300; the network chooses its detections itself") in [*found.facts()]
    assert not any("NMS is inside" in note for note in found.notes)
    strict = evaluate_session(session, spec, folder.data, folder.images, EvalOptions(conf=0.25))
    assert strict.metrics["AP"] == 0
    with pytest.raises(UsageError, match=r"chooses its detections itself: leave out the IoU of NMS, 0.5"):
        evaluate_session(session, spec, folder.data, folder.images, EvalOptions(iou=0.5))


def test_classes_without_names_are_matched_by_position(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", [((1, 2, RED),)], scale=1)
    rows = np.array([[[32, 32, 8, 8, 1, 0.5, 0.9]]], np.float32)
    spec = replace(cell_spec(), task="detect", keypoints=None, classes=(), output=RawDetections(cls=(5, 7)))
    found = evaluate_session(FakeSession(lambda _: {"output": rows}, spec=spec), spec, folder.data, folder.images)
    assert sorted(found.detections.category_ids.tolist()) == [BLUE_ID, RED_ID]  # without names: by position
    assert found.settings.matched_by == "position"


def test_more_candidates_than_nms_considers_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    folder = write_folder(tmp_path / "many", [[(i, j, RED) for i in range(8) for j in range(4)]], scale=1)
    monkeypatch.setattr("deploykit.runtime.evaluate.detection.TOPK", 10)
    found = _evaluated(model, folder, task="detect")
    assert (found.counts.truncated, found.counts.detections) == (1, 10)
    assert "more candidates than NMS considers (10) in 1 of 1 images" in found.notes[0]


def test_every_image_gets_the_whole_canvas_unless_rectangles_are_wanted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "wide", [((1, 1, RED),), ((2, 0, BLUE),)], wide=2)
    shapes: list[tuple[int, ...]] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        shapes.append(inputs["images"].shape)
        return {"output": np.zeros((len(inputs["images"]), 1, 7), np.float32)}

    base = replace(cell_spec(), task="detect", keypoints=None, output=RawDetections(cls=(5, 7)))
    moving = replace(base.input, dynamic="shape", fit=replace(base.input.fit, auto=True))
    spec = replace(base, input=moving)
    session = FakeSession(answer, spec=spec)

    def seen(**options: Any) -> set[tuple[int, ...]]:
        shapes.clear()
        evaluate_session(session, spec, folder.data, folder.images, EvalOptions(**options))
        return set(shapes)

    assert seen() == {(1, 3, SIDE, SIDE)}
    assert seen(rectangles=True) == {(1, 3, SIDE // 2, SIDE)}
    assert seen(img=32, batch=2) == {(2, 3, 32, 32)}
    assert seen(img=(32, 128)) == {(1, 3, 32, 128)}
    with pytest.raises(ImageSizeError, match="multiples of the stride 8, got 60x64"):
        seen(img=(60, 64))
