"""The contracts that files and other programs rely on: they change with a version, or not at all."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import SpecError
from deploykit.spec import (
    COCO_KEYPOINTS,
    METADATA_KEY,
    SPEC_VERSION,
    DenseOutput,
    Fit,
    InputSpec,
    KeypointSpec,
    ModelSpec,
    NmsOutputs,
    PoseFusion,
    PoseObjectRows,
    RawDetections,
    Source,
    Thresholds,
)

POSE = ModelSpec(
    task="keypoints",
    input=InputSpec(size=(960, 960), fit=Fit(stride=64)),
    output=RawDetections(cls=(5, 6), keypoints=(6, 57)),
    classes=("person",),
    keypoints=COCO_KEYPOINTS,
)


def test_the_key_and_the_version_of_a_spec() -> None:
    assert (METADATA_KEY, SPEC_VERSION) == ("deploykit", 1)


def test_defaults_are_those_of_the_yolov7_family() -> None:
    assert POSE.input.name == "images"
    assert POSE.output.name == "output"
    assert POSE.output.columns == 57
    assert (POSE.input.colour, POSE.input.scale) == ("rgb", 1 / 255)
    assert dataclasses.astuple(Fit()) == (
        "letterbox",
        32,
        False,
        114,
        "centre",
        True,
        "round",
        "linear",
        0.0,
        0.875,
        1,
        "opencv",
        None,
        False,
        1,
    )
    assert dataclasses.astuple(Thresholds()) == (0.25, 0.45, 300, 1000, 0.5)
    assert [f.default for f in dataclasses.fields(NmsOutputs)][1:] == [
        "num_dets", "boxes", "scores", "labels", None, "num_candidates", None, None, None, None,
    ]  # fmt: skip


def test_a_pose_spec_as_written_today_can_always_be_read() -> None:
    written = (
        '{"classes":["person"],"input":{"batch":1,"channels":3,"colour":"rgb","dynamic":"none","fit":{"anchor":'
        '"centre","auto":false,"kind":"letterbox","pad_value":114,"rounding":"round","scale_up":true,"stride":64},'
        '"mean":[0.0,0.0,0.0],"name":"images","scale":0.00392156862745098,"size":[960,960],"std":[1.0,1.0,1.0]},'
        '"keypoints":{"flip_pairs":[[0,1]],"names":["a","b"],"sigmas":[],"skeleton":[[0,1]]},"opset":18,"output":'
        '{"box":[0,4],"cls":[5,6],"keypoints":[6,12],"kind":"rows","kpt_dims":3,"name":"output","obj":[4,5]},'
        '"precision":"fp32","source":{"deploykit":"0.1.0","model":"m","sha256":"00"},"task":"keypoints","thresholds":'
        '{"conf":0.25,"iou":0.65,"keypoint":0.5,"max_det":300,"pre_nms_topk":1000},"version":1}'
    )
    spec = ModelSpec.from_json(written)
    assert spec.to_json() == written
    assert spec.keypoints == KeypointSpec(("a", "b"), ((0, 1),), ((0, 1),))


def test_a_spec_of_pose_objects_as_written_today_can_always_be_read() -> None:
    written = (
        '{"classes":["person"],"input":{"batch":1,"channels":3,"colour":"rgb","dynamic":"none","fit":{"anchor":'
        '"centre","auto":false,"kind":"letterbox","pad_value":114,"rounding":"round","scale_up":true,"stride":64},'
        '"mean":[0.0,0.0,0.0],"name":"images","scale":0.00392156862745098,"size":[1280,1280],"std":[1.0,1.0,1.0]},'
        '"keypoints":{"flip_pairs":[[0,1]],"names":["a","b"],"sigmas":[],"skeleton":[[0,1]]},"opset":18,"output":'
        '{"box":[0,4],"cls":[5,8],"coords":[8,12],"fusion":{"conf":0.2,"iou":0.25,"person":0.3,"tolerance":50.0},'
        '"kind":"pose-objects","name":"output","obj":[4,5]},"precision":"fp32","source":{"deploykit":"0.1.0","model":'
        '"m","sha256":"00"},"task":"keypoints","thresholds":{"conf":0.25,"iou":0.65,"keypoint":0.0,"max_det":300,'
        '"pre_nms_topk":30000},"version":1}'
    )
    spec = ModelSpec.from_json(written)
    assert spec.to_json() == written
    assert spec.output == PoseObjectRows(cls=(5, 8), coords=(8, 12))
    assert (spec.output.columns, spec.output.num_keypoints) == (12, 2)
    assert spec.output.as_rows() == RawDetections(cls=(5, 8), keypoints=(8, 12), kpt_dims=2)


def test_a_pose_object_is_a_person_or_a_coco_keypoint_by_default() -> None:
    assert PoseObjectRows() == PoseObjectRows(
        "pose-objects", "output", (0, 4), (4, 5), (5, 23), (23, 57), PoseFusion(0.2, 0.25, 0.3, 50.0)
    )
    assert POSE.output.as_rows() is POSE.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["person", "nose"]}, "of one class, the person; its keypoints are no classes: got 2"),
        ({"keypoints": None}, "pose objects of 17 keypoints need as many keypoint names"),
        ({"keypoints": {"names": ["a"]}}, "pose objects of 17 keypoints need as many keypoint names"),
        ({"output": {"kind": "pose-objects", "coords": [23, 56]}}, "33 coordinate columns are not x, y of 17"),
        (
            {"output": {"kind": "pose-objects", "cls": [5, 6], "coords": [6, 6]}},
            "0 coordinate columns are not x, y of 0",
        ),
        ({"output": {"kind": "pose-objects", "fusion": {"iou": 2}}}, "the fusion's iou must lie in 0..1, got 2"),
        (
            {"output": {"kind": "pose-objects", "fusion": {"tolerance": -1}}},
            "tolerance must be at least 0 pixels, got -1",
        ),
    ],
)
def test_a_wrong_spec_of_pose_objects_is_refused(change: dict[str, object], message: str) -> None:
    spec = dataclasses.replace(POSE, output=PoseObjectRows())
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(json.dumps({**json.loads(spec.to_json()), **change}))


def test_rows_that_the_runtime_decodes_as_written_today_can_always_be_read() -> None:
    written = (
        '{"box":[0,4],"cls":[5,85],"decode":"yolox","keypoints":null,"kind":"rows","kpt_dims":3,"name":"output",'
        '"obj":[4,5],"strides":[8,16,32]}'
    )
    head = '{"task":"detect","input":{"size":[416,416],"colour":"bgr","scale":1.0},"output":'
    spec = ModelSpec.from_json(head + written + "}")
    assert spec.output == RawDetections(cls=(5, 85), decode="yolox", strides=(8, 16, 32))
    assert written in spec.to_json()


def test_a_field_that_came_later_is_written_only_where_it_says_something() -> None:
    """So that what an older deploykit understands it can still read."""
    assert "decode" not in POSE.to_json()
    assert "strides" not in POSE.to_json()
    assert "cls_counts" not in POSE.to_json()
    assert "columns_first" not in POSE.to_json()
    assert POSE.version == 1
    later = {f.name for f in dataclasses.fields(RawDetections) if f.metadata.get("later")}
    assert later == {"decode", "strides", "cls_counts", "columns_first", "coefficients", "prototypes", "angle"}


def test_detections_with_coefficients_as_written_today_can_always_be_read() -> None:
    written = (
        '{"boxes":"boxes","coefficients":"coefficients","keypoints":null,"kind":"nms","labels":"labels","num_candidates":'
        '"num_candidates","num_dets":"num_dets","prototypes":"output1","scores":"scores"}'
    )
    head = '{"task":"instances","input":{"size":[640,640]},"classes":["ship"],"output":'
    spec = ModelSpec.from_json(head + written + "}")
    assert written in spec.to_json()
    assert spec.output == NmsOutputs(coefficients="coefficients", prototypes="output1")
    assert not spec.output.two_stages
    assert spec.output_names == (
        "num_dets", "boxes", "scores", "labels", "coefficients", "num_candidates", "output1",
    )  # fmt: skip
    assert "coefficients" not in ModelSpec("detect", InputSpec(), NmsOutputs(), ("a",)).to_json()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ('{"kind":"nms","coefficients":"c"}', "an output of coefficients and one of prototypes, or neither"),
        ('{"kind":"nms","coefficients":"c","prototypes":"p","masks":"m"}', "masks, or coefficients and prototypes"),
        ('{"kind":"nms"}', "masks, or coefficients and prototypes"),
    ],
)
def test_instances_have_masks_of_one_kind(output: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json('{"task":"instances","input":{},"classes":["a"],"output":' + output + "}")


def test_oriented_boxes_as_written_today_can_always_be_read() -> None:
    written = (
        '{"angle":[6,7],"box":[0,4],"cls":[4,6],"columns_first":true,"keypoints":null,"kind":"rows","kpt_dims":3,"name":'
        '"output0","obj":null}'
    )
    head = '{"task":"oriented","input":{"size":[640,640]},"classes":["ship","plane"],"output":'
    spec = ModelSpec.from_json(head + written + "}")
    assert written in spec.to_json()
    assert spec.output == RawDetections("rows", "output0", obj=None, cls=(4, 6), columns_first=True, angle=(6, 7))
    assert (spec.output.columns, spec.output.oriented) == (7, True)
    assert spec.output.describe(spec) == (
        "0-3: cx cy w h; 4-5: 2 classes; 6: angle in radians; in network pixels, before NMS (columns first)"
    )


@pytest.mark.parametrize(
    ("task", "output", "message"),
    [
        ("detect", '"kind":"rows","angle":[6,7]', "the task oriented has angles, and no other has"),
        ("oriented", '"kind":"rows"', "the task oriented has angles, and no other has"),
        ("oriented", '"kind":"end-to-end"', "the task oriented has angles, and no other has"),
        ("detect", '"kind":"end-to-end","angle":6', "the task oriented has angles, and no other has"),
        ("oriented", '"kind":"end-to-end","angle":5', "the columns of label .* and angle .* must not overlap"),
        ("oriented", '"kind":"rows","angle":[5,6]', "the columns of cls .* and angle .* must not overlap"),
        ("oriented", '"kind":"rows","angle":[6,8]', "angle must have 1 column, got 2"),
        ("oriented", '"kind":"rows","angle":[6,7],"decode":"yolox","strides":[8]', "rows with angles must be decoded"),
    ],
)
def test_angles_are_of_oriented_boxes_alone(task: str, output: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(f'{{"task":"{task}","input":{{}},"output":{{{output}}}}}')


def test_nms_outputs_of_oriented_boxes_as_written_today_can_always_be_read() -> None:
    written = (
        '{"angles":"angles","boxes":"boxes","keypoints":null,"kind":"nms","labels":"labels","num_candidates":'
        '"num_candidates","num_dets":"num_dets","scores":"scores"}'
    )
    spec = ModelSpec.from_json(f'{{"task":"oriented","input":{{}},"classes":["ship"],"output":{written}}}')
    assert written in spec.to_json()
    assert spec.output == NmsOutputs(angles="angles")
    assert spec.output.oriented
    assert [t.name for t in spec.output_tensors][-2:] == ["angles", "num_candidates"]
    assert "angles" not in json.dumps(
        json.loads(dataclasses.replace(POSE, output=NmsOutputs(keypoints="k")).to_json())["output"]
    )
    for task, output in (("oriented", '"kind":"nms"'), ("detect", '"kind":"nms","angles":"a"')):
        with pytest.raises(SpecError, match="the task oriented has angles, and no other has"):
            ModelSpec.from_json(f'{{"task":"{task}","input":{{}},"output":{{{output}}}}}')


def test_a_score_is_one_of_three_things_and_said_once() -> None:
    product, alone, objectness = RawDetections(), RawDetections(obj=None, cls=(4, 7)), RawDetections(cls_counts=False)
    assert [rows.score for rows in (product, alone, objectness)] == ["obj*cls", "cls", "obj"]
    assert product.score_spans == ((4, 5), (5, 6))
    assert alone.score_spans == (None, (4, 7))
    assert objectness.score_spans == (None, (4, 5))
    assert PoseObjectRows().as_rows().score == "obj*cls"


def test_a_score_without_the_class_as_written_today_can_always_be_read() -> None:
    written = (
        '{"box":[0,4],"cls":[5,6],"cls_counts":false,"keypoints":null,"kind":"rows","kpt_dims":3,"name":"output",'
        '"obj":[4,5]}'
    )
    head = '{"task":"detect","input":{"size":[320,320]},"classes":["hand"],"output":'
    spec = ModelSpec.from_json(head + written + "}")
    assert spec.output == RawDetections(cls_counts=False)
    assert written in spec.to_json()
    assert spec.output.describe(spec) == (
        "0-3: cx cy w h; 4: objectness, which is the score; 5: 1 class, which does not count; in network pixels, "
        "before NMS"
    )


PRINTED = st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"))


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    classes = draw(st.lists(st.text(PRINTED, max_size=8), min_size=1, max_size=4))
    points = draw(st.integers(0, 3))
    dims = draw(st.sampled_from((2, 3)))
    stop = 5 + len(classes)
    strides = draw(st.lists(st.integers(1, 64), max_size=3)) if not points else []
    rows = RawDetections(
        cls_counts=len(classes) > 1 or draw(st.booleans()),
        cls=(5, stop),
        keypoints=(stop, stop + points * dims) if points else None,
        kpt_dims=dims,
        decode="yolox" if strides else "none",
        strides=tuple(strides),
    )
    poses = PoseObjectRows(cls=(5, 6 + points), coords=(6 + points, 6 + 3 * points)) if points else rows
    output = draw(st.sampled_from((rows, poses, NmsOutputs(), DenseOutput())))
    keyed = points if output in (rows, poses) else 0
    classes = classes[:1] if isinstance(output, PoseObjectRows) else classes
    return ModelSpec(
        task=draw(st.sampled_from([task for task in output.tasks if task not in ("instances", "oriented")])),
        input=InputSpec(
            size=draw(st.tuples(st.integers(1, 4000), st.integers(1, 4000))),
            dynamic=draw(st.sampled_from(("none", "batch", "shape"))),
            mean=draw(st.tuples(*[st.floats(0, 255)] * 3)),
        ),
        output=output,
        classes=tuple(classes),
        keypoints=KeypointSpec.unnamed(keyed) if keyed else None,
        thresholds=Thresholds(conf=draw(st.floats(0, 1)), max_det=draw(st.integers(1, 5000))),
        source=Source(model=draw(st.text(PRINTED, max_size=10))),
    )


def test_assumptions_are_written_where_there_are_any() -> None:
    assert "assumptions" not in json.loads(POSE.to_json())
    spec = replace(POSE, assumptions=("SiLU: no tensor tells",))
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec.assumption_notes == ("assumed: SiLU: no tensor tells",)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(specs())
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "reads up to 1: update deploykit"),
        ({"task": "dance"}, "spec.task must be one of detect, keypoints"),
        ({"colour": "rgb"}, "spec has no field 'colour'; it has task, input"),
        ({"input": {"size": [640]}}, "spec.input.size must have 2 entries, got 1"),
        ({"input": {"size": [640, "x"]}}, r"spec.input.size\[1\] must be of type int, got 'x'"),
        ({"input": {"batch": True}}, "spec.input.batch must be of type int, got True"),
        (
            {"output": {"kind": "soup"}},
            "spec.output.kind must be one of rows, anchor-heads, pose-objects, nms, end-to-end, tensor, got 'soup'",
        ),
        ({"output": {"kind": "rows", "decode": "yolox"}}, "decoded by strides, or not at all; got decode 'yolox'"),
        ({"output": {"kind": "rows", "strides": [8]}}, r"or not at all; got decode 'none', \(8,\)"),
        ({"output": {"kind": "rows", "decode": "yolo"}}, "spec.output.decode must be one of none, yolox, got 'yolo'"),
        ({"output": {"kind": "rows", "decode": "yolox", "strides": [8, 0]}}, "at least 1 pixel, got"),
        (
            {"output": {"kind": "rows", "decode": "yolox", "strides": [8], "keypoints": [6, 57]}},
            "'yolox' is of boxes; rows with keypoints must be decoded by the network",
        ),
        (
            {"output": {"kind": "rows", "cls": [5, 7], "cls_counts": False}},
            "cls_counts: false. needs one class column and an objectness; got 2 class columns and an objectness",
        ),
        (
            {"output": {"kind": "rows", "obj": None, "cls": [4, 5], "cls_counts": False}},
            "got 1 class columns and no objectness",
        ),
        ({"classes": ["a", "b"]}, "2 class names for 1 class columns"),
        ({"thresholds": {"conf": 2}}, r"conf must lie in 0..1, got 2"),
        ({"keypoints": None}, "keypoint names and keypoint columns, or neither"),
        ({"keypoints": {"names": ["a"]}}, "51 keypoint columns do not hold 1 x 3 values"),
        ({"keypoints": {"names": ["a"], "skeleton": [[0, 1]]}}, "skeleton names keypoint 1, but there are 1"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_place(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_json(json.dumps({**json.loads(POSE.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"task": "detect"}', "null", "\x00"])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        ModelSpec.from_json(text)


def test_the_coco_skeleton_is_whole() -> None:
    assert len(COCO_KEYPOINTS.names) == len(COCO_KEYPOINTS.sigmas) == 17
    assert len(COCO_KEYPOINTS.skeleton) == 19
    for left, right in COCO_KEYPOINTS.flip_pairs:
        assert COCO_KEYPOINTS.names[left].replace("left", "right") == COCO_KEYPOINTS.names[right]
