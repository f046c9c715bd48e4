"""Result: what it holds, how it is indexed, drawn, saved and converted."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.coco_classes import COCO_CLASSES
from deploykit.errors import MissingDependencyError, NotFoundError, OutputError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.results.coco import coco_category_ids
from deploykit.runtime.results.detection import Result
from deploykit.spec import KeypointSpec

SIZE = (200, 300)
POINTS = KeypointSpec(("left", "right"), skeleton=((0, 1),), flip_pairs=((0, 1),))


def _result(**changes: object) -> Result:
    fields: dict = {
        "boxes": [[10, 20, 60, 90], [100, 50, 200.5, 150.25], [0, 0, 5, 5]],
        "scores": [0.9, 0.8, 0.3],
        "labels": [1, 0, 1],
        "size": SIZE,
        "keypoints": [[[20, 30, 0.9], [50, 80, 0.9]], [[120, 60, 0.9], [190, 140, 0.1]], [[1, 1, 0], [2, 2, 0]]],
        "classes": ("dog", "person"),
        "keypoint_spec": POINTS,
        "name": "people.jpg",
        "timings": {"inference": 12.34567},
    }
    return Result(**{**fields, **changes})


def _grey() -> Array:
    return np.full((*SIZE, 3), 128, np.uint8)


def test_arrays_get_their_types_and_one_object_is_read_by_name() -> None:
    result = _result()
    assert (result.boxes.dtype, result.scores.dtype, result.labels.dtype) == (np.float32, np.float32, np.int64)
    found = result[1]
    assert (found.label, found.name, found.score) == (0, "dog", pytest.approx(0.8))
    assert found.box.tolist() == [100, 50, 200.5, 150.25]
    assert found.keypoints is not None
    assert found.keypoints.shape == (2, 3)
    assert [d.name for d in result] == ["person", "dog", "person"]
    assert result.counts() == {"dog": 1, "person": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boxes": np.zeros((3, 5))}, r"boxes must have shape \(3, 4\), got \(3, 5\)"),
        ({"scores": [0.5]}, r"scores must have shape \(3,\), got \(1,\)"),
        ({"labels": [[1, 0, 1]]}, r"labels must have shape \(3,\), got \(1, 3\)"),
        ({"keypoints": np.zeros((3, 4, 3))}, r"keypoints must have shape \(3, 2, 3\), got \(3, 4, 3\)"),
        ({"keypoints": np.zeros((3, 4, 2)), "keypoint_spec": None}, r"must have shape \(3, 4, 3\), got \(3, 4, 2\)"),
        ({"keypoints": np.zeros(3), "keypoint_spec": None}, r"keypoints must have shape"),
        ({"masks": np.zeros((3, 300, 200), bool)}, r"masks must have shape \(3, 200, 300\)"),
        ({"image": np.zeros((300, 200, 3), np.uint8)}, r"image must have shape \(200, 300, 3\)"),
        ({"scores": [0.9, float("nan"), 0.3]}, "scores must be finite"),
        ({"labels": [0, 1, 2]}, r"labels must lie in 0\.\.1, got 0 to 2"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _result(**changes)


def test_slices_masks_and_lists_give_smaller_results() -> None:
    result = _result()
    assert result[1:].scores.tolist() == pytest.approx([0.8, 0.3])
    assert result[result.labels == 1].boxes[:, 0].tolist() == [10, 0]
    picked = result[[2, 0]]
    assert picked.scores.tolist() == pytest.approx([0.3, 0.9])
    assert picked.keypoints is not None
    assert picked.keypoints[1, 0].tolist() == pytest.approx([20, 30, 0.9])
    assert (picked.name, picked.timings) == (result.name, result.timings)
    assert len(result[result.scores > 2]) == 0
    assert result[-1].box.tolist() == [0, 0, 5, 5]


def test_an_empty_result_works_everywhere() -> None:
    empty = Result(np.zeros((0, 4)), [], [], size=SIZE, classes=("dog",), keypoints=np.zeros((0, 2, 3)))
    assert (len(empty), list(empty), empty.counts(), empty.to_coco(1)) == (0, [], {}, [])
    assert empty.to_dict()["detections"] == []
    assert np.array_equal(empty.draw(_grey()), _grey())


def test_to_dict_is_json_without_digits_that_float32_does_not_have() -> None:
    read = json.loads(json.dumps(_result(frame=7).to_dict()))
    assert read["detections"][0] == {
        "label": 1, "name": "person", "score": 0.9, "box": [10, 20, 60, 90],
        "keypoints": [[20, 30, 0.9], [50, 80, 0.9]],
    }  # fmt: skip
    assert (read["name"], read["frame"], read["size"], read["truncated"]) == ("people.jpg", 7, [200, 300], False)
    assert read["timings_ms"] == {"inference": 12.346}


def test_to_coco_gives_widths_and_flat_keypoints() -> None:
    entries = _result().to_coco(42, category_ids=(18, 1))
    assert entries[1] == {
        "image_id": 42, "category_id": 18, "bbox": [100, 50, 100.5, 100.25], "score": 0.8,
        "keypoints": [120, 60, 0.9, 190, 140, 0.1],
    }  # fmt: skip
    assert _result().to_coco("a")[1]["category_id"] == 1  # counted from 1, because the classes are not COCO's
    assert [e["category_id"] for e in _result().to_coco("a", category_ids=(None, 7))] == [7, 7]


def test_classes_of_coco_have_the_numbers_of_its_annotations() -> None:
    own = coco_category_ids(COCO_CLASSES)
    assert own is not None
    assert (own[:13], own[-1]) == ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14), 90)
    assert coco_category_ids(COCO_CLASSES[::-1]) == own[::-1]  # by name, in any order
    darknet = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "Sofa", "tv": "tvmonitor"}
    assert coco_category_ids([darknet.get(name, name.replace(" ", "_")) for name in COCO_CLASSES]) == own
    for others in ((), ("person",), COCO_CLASSES[:-1], (*COCO_CLASSES, "face"), (*COCO_CLASSES[:-1], "person")):
        assert coco_category_ids(others) is None
    result = Result(np.zeros((2, 4)), np.ones(2), np.array([79, 0]), size=(8, 8), classes=COCO_CLASSES)
    assert [e["category_id"] for e in result.to_coco(1)] == [90, 1]


def test_to_supervision_carries_everything_or_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        _result().to_supervision()


def test_to_supervision_carries_boxes_scores_labels_names_and_keypoints() -> None:
    pytest.importorskip("supervision")
    found = _result().to_supervision()
    assert found.xyxy.tolist() == _result().boxes.tolist()
    assert found.data["class_name"].tolist() == ["person", "dog", "person"]
    assert found[1:2].data["keypoints"].shape == (1, 2, 3)


def test_drawing_marks_boxes_and_leaves_the_image_alone() -> None:
    image = _grey()
    drawn = _result().draw(image)
    changed = (drawn != image).any(axis=2)
    assert (image == 128).all()
    assert changed[20:90, 10].all()  # the left edge of the first box
    assert changed[89:91, 30:40].any()
    assert not changed[160:, :].any()
    assert not changed[95:, :90].any()


def test_only_visible_keypoints_and_limbs_between_them_are_drawn() -> None:
    boxes = [[10, 100, 60, 190], [150, 100, 290, 190]]
    shown = _result(boxes=boxes, scores=[0.9, 0.8], labels=[1, 0], keypoints=None, keypoint_spec=None)
    points = [[[20, 120, 0.9], [50, 180, 0.9]], [[170, 120, 0.9], [280, 180, 0.4]]]
    with_points = _result(boxes=boxes, scores=[0.9, 0.8], labels=[1, 0], keypoints=points)
    extra = (with_points.draw(_grey()) != shown.draw(_grey())).any(axis=2)
    assert extra[150, 35]  # the middle of the limb
    assert extra[120, 170]
    assert not extra[130:, 180:].any()  # neither the hidden point nor a limb to it


def test_sides_of_the_body_have_their_colours() -> None:
    drawn = _result().draw(_grey())
    left, right = drawn[30, 20].astype(int), drawn[80, 50].astype(int)
    assert left[2] > left[0] + 100  # orange
    assert right[0] > right[2] + 100  # blue


def test_far_away_keypoints_and_masks_do_not_stop_the_drawing() -> None:
    points = np.full((3, 2, 3), 1.0)
    points[0, 0, :2], points[0, 1, :2] = (-1e9, 3e9), (20, 50)
    masks = np.zeros((3, *SIZE), bool)
    masks[1, 60:140, 110:190] = True
    drawn = _result(keypoints=points, masks=masks).draw(_grey())
    assert (drawn[100, 150] != 128).any()


def test_a_label_at_the_edge_stays_in_the_image() -> None:
    boxes = [[290, 0, 300, 12], [250, 190, 300, 200], [0, 0, 4, 4]]
    drawn = _result(boxes=boxes, keypoints=None, keypoint_spec=None).draw(_grey())
    assert (drawn[2:30, 230:280] != 128).any()


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(200, 300\).*\(300, 200\)"):
        _result().draw(np.zeros((300, 200, 3), np.uint8))


def test_draw_takes_the_kept_image_or_reads_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "people.png"
    assert np.array_equal(_result(image=_grey()).draw(), _result().draw(_grey()))
    with pytest.raises(NotFoundError):
        _result(name=str(path)).draw()
    cv2.imwrite(str(path), _grey())
    assert np.array_equal(_result(name=str(path)).draw(), _result().draw(_grey()))
    with pytest.raises(UsageError, match="pass it"):
        _result(name="").draw()
    with pytest.raises(UsageError, match="pass it"):
        _result(name="film.mp4", frame=3).draw()


def test_save_writes_the_drawn_image_and_its_folder(tmp_path: Path) -> None:
    path = _result().save(tmp_path / "new" / "drawn.png", _grey())
    assert np.array_equal(cv2.imread(str(path)), _result().draw(_grey()))
    assert [p.name for p in path.parent.iterdir()] == ["drawn.png"]


def test_what_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"drawn\.xyz: choose \.jpg"):
        _result().save(tmp_path / "drawn.xyz", _grey())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        _result().save(tmp_path / "file" / "drawn.png", _grey())


def test_a_full_disk_leaves_the_old_image_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "drawn.png"
    path.write_bytes(b"old")
    code = f"""
import numpy as np, resource
from deploykit.errors import DiskFullError
from deploykit.runtime.results.detection import Result
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, {resource.RLIM_INFINITY}))
noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
try:
    Result(np.zeros((0, 4)), [], [], size=(100, 100)).save({str(path)!r}, noise)
except DiskFullError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("drawn.png", b"old")]


TURNED = [[35, 55, 60, 20, 0.5], [150, 100, 100, 100, 0], [2, 2, 4, 3, 3.0]]


def test_oriented_boxes_are_kept_by_indices_and_written() -> None:
    result = _result(rotated=TURNED, keypoints=None, keypoint_spec=None)
    part = result[[2, 0]]
    assert part.rotated is not None
    assert part.rotated.tolist() == np.float32([TURNED[2], TURNED[0]]).tolist()
    found = result[1]
    assert found.rotated is not None
    assert found.rotated.tolist() == TURNED[1]
    assert found.corners is not None
    assert found.corners.tolist() == [[200, 150], [200, 50], [100, 50], [100, 150]]
    assert result.corners is not None
    assert result.corners.shape == (3, 4, 2)
    assert json.loads(json.dumps(result.to_dict()))["detections"][1]["rotated"] == [150, 100, 100, 100, 0]
    assert result.to_coco(1)[1]["segmentation"] == [[200, 150, 200, 50, 100, 50, 100, 150]]
    assert "rotated" not in _result().to_dict()["detections"][0]
    assert (_result().corners, _result()[0].corners) == (None, None)
    with pytest.raises(UsageError, match=r"rotated must have shape \(3, 5\), got \(3, 4\)"):
        _result(rotated=np.zeros((3, 4)))


def test_an_oriented_box_is_drawn_as_its_polygon() -> None:
    turned = _result(boxes=[[60, 10, 240, 190]], scores=[0.9], labels=[0], keypoints=None, keypoint_spec=None,
                     rotated=[[150, 100, 160, 60, np.pi / 4]])  # fmt: skip
    drawn = turned.draw(_grey())
    assert turned.corners is not None
    corners = turned.corners[0]
    middles = (corners + np.roll(corners, -1, 0)) / 2
    for x, y in np.rint(middles).astype(int):
        assert (drawn[y - 1 : y + 2, x - 1 : x + 2] != 128).any()
    assert (drawn[150:191, 55:65] == 128).all()  # the left side of the upright box, below
