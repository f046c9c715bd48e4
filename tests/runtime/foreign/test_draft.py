"""Files of other projects: what they tell is taken, what is usual is noted, what has to be known is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import deploykit
from deploykit.errors import BackendError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.foreign.draft import FILL_IN, SpecDraft, draft_spec
from deploykit.runtime.session import open_session
from deploykit.spec import ModelSpec
from tests.foreign_exports import CELLS, SIDE, ULTRALYTICS, names, v5, v8, write_constant

CORNERS = [60.0, 45.0, 100.0, 75.0]
IMAGE = np.full((SIDE, SIDE, 3), 128, np.uint8)
DETECT = {**ULTRALYTICS, "task": "detect", "names": names(3)}
YOLOV5 = {"stride": "32", "names": "['person', 'dog', 'fox']"}


def found_in(file: Path, **options: Any) -> list[tuple[str, float, list[float]]]:
    """Class, score and box of each object."""
    with deploykit.load(file, task=None, **options) as predictor:
        result: Any = predictor(IMAGE)
    return [(o.name, round(o.score, 4), [round(float(v), 2) for v in o.box]) for o in result]


def draft_of(file: Path) -> SpecDraft:
    with open_session(file) as session:
        return draft_spec(session, file.name)


def head(level: int, *, packed: bool = False) -> Array:
    """A level's maps before the sigmoid; the person is at cell (10, 7) of the finest, with the second anchor."""
    side = SIDE // (8 << level)
    found = np.full((1, 3, side, side, 8), -9.0, np.float32)
    if level == 0:  # 2 s - 0.5 + cell = centre / 8; (2 s)^2 anchor = side
        share = np.array([(80 / 8 - 10 + 0.5) / 2, (60 / 8 - 7 + 0.5) / 2, np.sqrt(40 / 20) / 2, np.sqrt(30 / 30) / 2])
        found[0, 1, 7, 10, :4] = np.log(share / (1 - share))
        found[0, 1, 7, 10, 4:6] = np.log(9), 20.0
    return found.transpose(0, 1, 4, 2, 3).reshape(1, 24, side, side) if packed else found


ANCHORS = "[[10, 10, 20, 30, 40, 40], [50, 50, 60, 60, 70, 70], [80, 80, 90, 90, 99, 99]]"


def four(batch: int = 1) -> dict[str, Array]:
    boxes, scores, labels = (np.zeros((batch, 20, n), np.float32) for n in (4, 1, 1))
    boxes[:, 0], scores[:, 0], labels[:, 0] = CORNERS, 0.9, 2
    return {
        "num_dets": np.full((batch, 1), 1, np.int32),
        "det_boxes": boxes,
        "det_scores": scores[..., 0],
        "det_classes": labels[..., 0].astype(np.int32),
    }


def chosen(columns: int = 6) -> Array:
    found = np.zeros((1, 300, columns), np.float32)
    found[0, 3, :6] = [*CORNERS, 0.9, 0]
    found[0, 3, 6:] = np.arange(columns - 6) % 3 * 0.25
    return found


RUNS: dict[str, tuple[dict[str, Array], dict[str, str], str]] = {
    "columns first": ({"output0": v8()}, DETECT, "person"),
    "names with keys of text": ({"output0": v8()}, {**DETECT, "names": '{"0": "person", "1": "b", "2": "c"}'},
                                "person"),
    "rows of YOLOv5": ({"output0": v5()}, YOLOV5, "person"),
    "rows of YOLOv5 and its maps": ({"output0": v5(), **{f"m{i}": head(i) for i in range(3)}}, YOLOV5, "person"),
    "rows without metadata": ({"output": v5()}, {}, "0"),
    "columns first without metadata": ({"output0": v8()}, {}, "0"),
    "maps with anchors": ({f"m{i}": head(i) for i in range(3)}, {**YOLOV5, "anchors": ANCHORS}, "person"),
    "packed maps": ({f"m{i}": head(i, packed=True) for i in range(3)}, {**YOLOV5, "anchors": ANCHORS}, "person"),
    "maps, coarsest first": ({f"m{i}": head(i) for i in (2, 1, 0)}, {**YOLOV5, "anchors": ANCHORS}, "person"),
    "count, boxes, scores, labels": (four(), {}, "2"),
    "a list of the batch": ({"output": np.array([[0, *CORNERS, 1, 0.9]], np.float32)}, {}, "1"),
    "end to end": ({"output0": chosen()}, {**DETECT, "end2end": "True"}, "person"),
    "with NMS inside": ({"output0": chosen()}, {**DETECT, "args": "{'nms': True, 'batch': 1}"}, "person"),
    "end to end without metadata": ({"output0": chosen()}, {}, "0"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_one_person_is_found(name: str, tmp_path: Path) -> None:
    outputs, metadata, called = RUNS[name]
    ((label, score, box),) = found_in(write_constant(tmp_path / "m.onnx", outputs, metadata))
    assert (label, score) == (called, pytest.approx(0.9, abs=2e-4))
    assert box == pytest.approx(CORNERS, abs=0.02)


def test_an_image_of_a_list_is_its_column(tmp_path: Path) -> None:
    listed = np.array([[0, *CORNERS, 1, 0.9], [1, *CORNERS, 2, 0.8], [1, 1, 1, 9, 9, 0, 0.7]], np.float32)
    file = write_constant(tmp_path / "m.onnx", {"output": listed}, {}, batch=2)
    with deploykit.load(file) as predictor:
        results: Any = predictor([IMAGE, IMAGE])
    assert [[d.label for d in result] for result in results] == [[1], [2, 0]]


@pytest.mark.parametrize("dims", [2, 3])
def test_poses_have_the_keypoints_of_the_metadata(dims: int, tmp_path: Path) -> None:
    metadata = {**ULTRALYTICS, "task": "pose", "names": "{0: 'person'}", "kpt_shape": f"[17, {dims}]"}
    for name, output in {"m": v8(1, 17 * dims), "e": chosen(6 + 17 * dims)}.items():
        told = {**metadata, "end2end": "True"} if name == "e" else metadata
        file = write_constant(tmp_path / f"{name}.onnx", {"output0": output}, told)
        with deploykit.load(file, task="keypoints") as predictor:
            result = predictor(IMAGE)
        assert result.keypoints is not None
        expected = (np.arange(17 * dims) % 3 * 0.25).reshape(17, dims)
        np.testing.assert_allclose(result.keypoints[0, :, :dims], expected, atol=1e-5)
        assert predictor.spec.keypoints is not None
        assert predictor.spec.keypoints.names[0] == "nose"
        assert any("COCO" in text for text in predictor.spec.assumptions)


def test_names_of_keypoints_are_taken_from_the_metadata(tmp_path: Path) -> None:
    metadata = {**ULTRALYTICS, "task": "pose", "names": "{0: 'hand'}", "kpt_shape": "[2, 3]"}
    output = {"output0": v8(1, 6)}
    named = draft_of(write_constant(tmp_path / "a.onnx", output, {**metadata, "kpt_names": "{0: ['tip', 'root']}"}))
    assert named.spec("a").keypoints.names == ("tip", "root")  # type: ignore[union-attr]
    nameless = draft_of(write_constant(tmp_path / "b.onnx", output, metadata)).spec("b")
    assert "the file has no names of its 2 keypoints" in nameless.assumptions


def test_names_that_begin_at_one_are_noted(tmp_path: Path) -> None:
    file = write_constant(tmp_path / "m.onnx", {"output0": v8()}, {**DETECT, "names": "{1: 'a', 2: 'b', 3: 'c'}"})
    draft = draft_of(file)
    assert draft.data["classes"] == ["a", "b", "c"]
    assert draft.notes == ("its class names are numbered from 1: the first is class 0 here",)


@pytest.mark.parametrize("text", ["{0: 'a', 2: 'b'}", "{'x': 'a'}", "(" * 5000, "nonsense", "7"])
def test_names_that_make_no_sense_are_left_out(text: str, tmp_path: Path) -> None:
    spec = draft_of(write_constant(tmp_path / "m.onnx", {"output0": v8()}, {**DETECT, "names": text}))
    assert "classes" not in spec.data


def test_nothing_in_the_metadata_is_executed(tmp_path: Path) -> None:
    text = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    draft_of(write_constant(tmp_path / "m.onnx", {"output0": v8()}, {**DETECT, "names": text, "args": text}))
    assert not (tmp_path / "made").exists()


def test_maps_without_anchors_are_refused_and_run_once_they_are_filled_in(tmp_path: Path) -> None:
    file = write_constant(tmp_path / "m.onnx", {f"m{i}": head(i) for i in range(3)}, YOLOV5)
    with pytest.raises(SpecError, match=r"does not tell output\.anchors: .* --draft-spec"):
        deploykit.load(file)
    text = draft_of(file).to_json()
    with pytest.raises(SpecError, match=r"spec\.output\.anchors must be a list"):
        ModelSpec.from_json(text)
    data = json.loads(text)
    assert FILL_IN in data["output"]["anchors"]
    data["output"]["anchors"] = json.loads(ANCHORS)
    (tmp_path / "spec.json").write_text(json.dumps(data))
    ((label, score, box),) = found_in(file, spec=tmp_path / "spec.json")
    assert (label, score) == ("person", pytest.approx(0.9, abs=2e-4))
    assert box == pytest.approx(CORNERS, abs=0.02)


def test_columns_that_are_no_probabilities_are_not_taken_for_classes(tmp_path: Path) -> None:
    output = v5(16)
    output[0, :, 6:] *= 0
    output[0, :, 6:21] = 77.0  # pixels of keypoints
    draft = draft_of(write_constant(tmp_path / "m.onnx", {"output": output}))
    assert set(draft.unknown) == {"classes", "output.cls"}


def test_more_columns_than_the_metadata_explains_are_refused(tmp_path: Path) -> None:
    draft = draft_of(write_constant(tmp_path / "m.onnx", {"output0": v8(5)}, DETECT))
    assert set(draft.unknown) == {"task", "output"}
    assert "output0 float32 (1, 9, 525)" in draft.unknown["output"]


def test_yolox_and_yolov6_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    yolov6 = v5(count=CELLS)
    yolov6[0, :, 4] = 1.0
    spec = draft_of(write_constant(tmp_path / "6.onnx", {"outputs": yolov6})).spec("6")
    assert (spec.input.colour, spec.input.scale, spec.output.num_classes(spec)) == ("rgb", pytest.approx(1 / 255), 3)
    raw = v5(count=CELLS)
    raw[0, :, 2:4] = -1.0
    spec = draft_of(write_constant(tmp_path / "x.onnx", {"output": raw})).spec("x")
    assert (spec.input.colour, spec.input.scale, spec.input.fit.anchor) == ("bgr", 1.0, "top-left")
    assert json.loads(spec.to_json())["output"]["decode"] == "yolox"
    open_ = draft_of(write_constant(tmp_path / "o.onnx", {"output": v5(count=CELLS)}))
    assert set(open_.unknown) == {"input.colour"}


@pytest.mark.parametrize(("version", "mean"), [("8.3.0", (0.0, 0.0, 0.0)), ("8.0.100", (0.485, 0.456, 0.406))])
def test_a_classifier_of_ultralytics_gives_its_probabilities(
    version: str, mean: tuple[float, ...], tmp_path: Path
) -> None:
    metadata = {**ULTRALYTICS, "task": "classify", "names": names(3), "version": version}
    file = write_constant(tmp_path / "m.onnx", {"output0": np.array([[0.2, 0.7, 0.1]], np.float32)}, metadata)
    with deploykit.load(file, task="classify") as predictor:
        found = predictor(IMAGE)
    assert (predictor.spec.input.mean, predictor.spec.input.fit.crop_share) == (mean, 1.0)
    assert predictor.spec.input.fit.crop_first == (version == "8.0.100")
    assert found.labels.tolist() == [1, 0, 2]
    np.testing.assert_allclose(found.scores, [0.7, 0.2, 0.1], atol=1e-6)


def test_a_classifier_without_metadata_asks_how_it_wants_its_images(tmp_path: Path) -> None:
    draft = draft_of(write_constant(tmp_path / "m.onnx", {"output0": np.zeros((1, 1000), np.float32)}))
    assert set(draft.unknown) == {"input.mean", "input.std", "input.fit.crop_share"}


def test_thresholds_of_others_can_be_lowered(tmp_path: Path) -> None:
    output = chosen()
    output[0, 5, :6] = [1, 1, 20, 20, 0.1, 1]
    file = write_constant(tmp_path / "m.onnx", {"output0": output}, {**DETECT, "end2end": "True"})
    assert [len(found_in(file, conf=conf)) for conf in (0.95, 0.25, 0.05)] == [0, 1, 2]


def test_what_was_understood_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deploykit.load(write_constant(tmp_path / "m.onnx", {"output0": v8()}, DETECT))
    assert "m.onnx carries no deploykit spec; understood as: 0-3: cx cy w h; 4-6: 3 classes" in caplog.text
    assert "assumed: images are prepared as ultralytics does: RGB, divided by 255, letterboxed" in caplog.text


def test_a_network_that_takes_no_images_is_refused(tmp_path: Path) -> None:
    float32 = onnx.TensorProto.FLOAT
    value = [helper.make_tensor_value_info(name, float32, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "v.onnx")
    with pytest.raises(SpecError, match=r"only networks with one input of images.*x float32 \(1, 4\)"):
        draft_of(tmp_path / "v.onnx")


SEGMENT = {**ULTRALYTICS, "task": "segment", "names": names(3)}
MASKS = {
    "columns first": ({"output0": v8(extra=2)}, SEGMENT),
    "rows of YOLOv5": ({"output0": v5(extra=2)}, YOLOV5),
    "end to end": ({"output0": chosen(8)}, {**SEGMENT, "end2end": "True"}),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_assembled_from_prototypes_and_cropped_to_the_box(name: str, tmp_path: Path) -> None:
    outputs, metadata = MASKS[name]
    shape = outputs["output0"].shape
    person = (0, 3) if shape[1] == 300 else (0, slice(None), 7) if shape[2] == CELLS else (0, 7)
    row = outputs["output0"][person].copy()
    row[-2:] = 2.0, -1.0
    output = outputs["output0"].copy()
    output[person] = row
    prototypes = np.zeros((1, 2, SIDE // 4, SIDE // 4), np.float32)
    prototypes[0, 0, :, : 80 // 4] = 1.0  # left of 80: 2 * 1 - 1 = 1
    prototypes[0, 1] = 1.0  # right of it: -1
    file = write_constant(tmp_path / "m.onnx", {"output0": output, "output1": prototypes}, metadata)
    with deploykit.load(file, task="instances") as predictor:
        large = predictor(np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8))
    assert large.masks is not None
    assert large.masks.shape == (1, 2 * SIDE, 2 * SIDE)
    expected = np.zeros((2 * SIDE, 2 * SIDE), np.bool_)
    expected[90:150, 120:160] = True  # the left half of the box, in pixels of the image
    assert (large.masks[0] != expected).sum() == 0


def test_as_many_prototypes_as_coefficients(tmp_path: Path) -> None:
    outputs = {"output0": v8(extra=3), "output1": np.zeros((1, 2, 40, 40), np.float32)}
    draft = draft_of(write_constant(tmp_path / "m.onnx", outputs, SEGMENT))
    assert set(draft.unknown) == {"task", "output"}


OBB = {**ULTRALYTICS, "task": "obb", "names": names(3)}


def oriented(*, end_to_end: bool) -> Array:
    """The person twice, turned by 0.5, the second time as the same box with its sides exchanged, and a weaker one."""
    placed = [
        (80, 60, 40, 30, 0.5, 0.9, 0),
        (80, 60, 30, 40, 0.5 + np.pi / 2, 0.6, 0),
        (30, 100, 10, 50, -0.25, 0.5, 2),
    ]
    if end_to_end:
        found = np.zeros((1, 300, 7), np.float32)
        found[0, :2] = [(*row[:4], row[5], row[6], row[4]) for row in (placed[0], placed[2])]
        return found
    columns = v8(extra=1)
    columns[0, 4:] = 0
    for place, row in zip((7, 9, 300), placed, strict=True):
        columns[0, [0, 1, 2, 3, 7, 4 + row[6]], place] = row[:6]
    return columns


@pytest.mark.parametrize("end_to_end", [False, True])
def test_oriented_boxes_are_found_with_their_angles(end_to_end: bool, tmp_path: Path) -> None:
    metadata = {**OBB, "end2end": str(end_to_end)}
    file = write_constant(tmp_path / "m.onnx", {"output0": oriented(end_to_end=end_to_end)}, metadata)
    with deploykit.load(file, task="oriented") as predictor:
        result = predictor(np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8))  # at half its size
    assert [d.name for d in result] == ["person", "class2"]
    assert result.rotated is not None
    expected = [[160, 120, 80, 60, 0.5], [60, 200, 100, 20, np.pi / 2 - 0.25]]
    np.testing.assert_allclose(result.rotated, expected, atol=1e-4)
    assert result.corners is not None
    hulls = np.concatenate((result.corners.min(1), result.corners.max(1)), 1)
    np.testing.assert_allclose(result.boxes, hulls, atol=1e-3)
    assert predictor.spec.thresholds.iou == (1.0 if end_to_end else 0.7)


def test_oriented_boxes_that_leave_the_image_are_not_clipped_but_the_boxes_around_them_are(tmp_path: Path) -> None:
    output = np.zeros((1, 300, 7), np.float32)
    output[0, 0] = 0, 80, 100, 20, 0.9, 0, 0
    file = write_constant(tmp_path / "m.onnx", {"output0": output}, {**OBB, "end2end": "True"})
    with deploykit.load(file, task="oriented") as predictor:
        result = predictor(IMAGE)
    np.testing.assert_allclose(result.rotated, [[0, 80, 100, 20, 0]], atol=1e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.boxes, [[0, 70, 50, 90]], atol=1e-4)


def test_an_angle_needs_a_column(tmp_path: Path) -> None:
    draft = draft_of(write_constant(tmp_path / "m.onnx", {"output0": v8()}, OBB))
    assert set(draft.unknown) == {"task", "output"}
    assert "the task 'obb'" in draft.unknown["task"]


@pytest.mark.parametrize("classes", [1, 3])
def test_the_score_of_one_class_is_an_assumption(classes: int, tmp_path: Path) -> None:
    rows = draft_of(write_constant(tmp_path / "r.onnx", {"output": v5(classes)}))
    told = [text for text in rows.data["assumptions"] if "cls_counts: false" in text]
    assert len(told) == (classes == 1)


def test_a_network_without_outputs_is_described_and_refused(tmp_path: Path) -> None:
    model = onnx.load(write_constant(tmp_path / "m.onnx", {"output": v8()}, {}))
    del model.graph.output[:]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises((SpecError, BackendError), match=r"m\.onnx|task and output"):
        draft_of(tmp_path / "m.onnx").spec("m.onnx")


def test_an_output_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    model = onnx.load(str(write_constant(tmp_path / "m.onnx", {"out": np.zeros((1, 7, 9), np.float32)})))
    model.graph.node.append(helper.make_node("SplitToSequence", ["out"], ["parts"]))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    model.graph.output.append(helper.make_value_info("parts", kind))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with (
        open_session(tmp_path / "m.onnx") as session,
        pytest.raises(BackendError, match=r"'parts' of the network is no tensor \(seq\(tensor\(float\)\)\)"),
    ):
        draft_spec(session, "m.onnx")


def test_outputs_of_other_shapes_than_are_declared_are_refused(tmp_path: Path) -> None:
    """Of a shape that is computed ONNX Runtime only learns when it runs."""
    model = onnx.load(write_constant(tmp_path / "m.onnx", {"output": chosen()}, {}))
    graph = model.graph
    graph.node[-1].output[0] = "values"
    graph.initializer.append(helper.make_tensor("sides", onnx.TensorProto.FLOAT, [3], [1, -1, 3]))
    graph.node.append(helper.make_node("Add", ["sides", "nothing"], ["real"]))
    graph.node.append(helper.make_node("Cast", ["real"], ["shape"], to=onnx.TensorProto.INT64))
    graph.node.append(helper.make_node("Reshape", ["values", "shape"], ["output"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"declares its output 'output' as .* but gave \(1, 600, 3\)"):
        draft_of(tmp_path / "m.onnx")


def test_boxes_of_another_rank_are_not_those_of_efficient_nms(tmp_path: Path) -> None:
    outputs = {**four(), "det_boxes": four()["det_boxes"].reshape(-1)}
    file = write_constant(tmp_path / "m.onnx", outputs, DETECT)
    assert "output" in draft_of(file).unknown


@pytest.mark.parametrize(
    ("sides", "told"),
    [
        ([1, 2**47, 160, 160], "the input's channels must lie in 1..1,048,576"),
        ([2**62, 3, 160, 160], "the input's batch must lie in"),
        ([1, 3, 2**20, 2**20], r"an input of 1 x 3 x 1048576 x 1048576 takes 12,288\.0 GiB"),
    ],
)
def test_an_input_that_no_memory_holds_is_refused_before_noise_is_made(
    sides: list[int], told: str, tmp_path: Path
) -> None:
    file = write_constant(tmp_path / "m.onnx", {"output": chosen()}, {})
    model = onnx.load(file)
    for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim, sides, strict=True):
        dim.dim_value = side
    onnx.save(model, file)
    with pytest.raises(SpecError, match=told):
        draft_of(file)
