"""The registry: every model by its name, what is known of it, and what is said when there is none."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from deploykit.errors import NotFoundError, UsageError
from deploykit.models import registry
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.families.yolox.model import Yolox
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.registry import ReferenceModel, create_model, list_models, register_model
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.spec import (
    COCO_KEYPOINTS,
    DenseOutput,
    EndToEndRows,
    KeypointSpec,
    ModelSpec,
    NmsOutputs,
    PoseObjectRows,
    RawDetections,
)
from tests.meta_model import meta_model
from tests.narrow_free import group_of, groups

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT / "deploykit" / "assets" / "models.json"
CHECKED = [name for name in list_models() if group_of().get(name, name) == name]
"""All, but for networks of the ultralytics package: one size of each list of layers."""
EVERY = pytest.mark.parametrize("name", CHECKED)
LISTED = {entry["name"]: entry["task"] for entry in json.loads(FACTS.read_text())}
"""A test holds them against the models."""
TASKS = {name: task for name, task in LISTED.items() if name in CHECKED}
DENSE = [name for name, task in TASKS.items() if task in ("classify", "segment", "restore")]
FREE = [name for name in groups() if name not in DENSE]
INSTANCES = [name for name, task in TASKS.items() if task == "instances" and not name.startswith("yolo")]
DETECTORS = [name for name in TASKS if name not in (*DENSE, *INSTANCES, *FREE)]
SIZES = {
    "yolov8": "nsmlx", "yolo11": "nsmlx", "yolo12": "nsmlx", "yolo26": "nsmlx", "yolov10": "nsmlxb", "yolov9": "tsmce"
}  # fmt: skip
FORMS = {
    "yolov8": ("", "-seg", "-pose", "-obb", "-cls", "-p2", "-p6", "-seg-p6", "-pose-p6"),
    "yolo26": ("", "-seg", "-pose", "-obb", "-cls", "-p2", "-p6"),
    **dict.fromkeys(("yolo11", "yolo12"), ("", "-seg", "-pose", "-obb", "-cls")),
    **dict.fromkeys(("yolov10", "yolov9"), ("",)),
}
OF_THE_PACKAGE = {
    *(f"{family}{size}{form}" for family, sizes in SIZES.items() for size in sizes for form in FORMS[family]),
    *(f"yolov5{size}{p6}u" for size in "nsmlx" for p6 in ("", "6")),
    *("yolov9c-seg", "yolov9e-seg", "yolov3u", "yolov3-sppu", "yolov3-tinyu"),
}
"""The networks of the ultralytics package."""
SUFFIXES = {"-seg": "instances", "-pose": "keypoints", "-obb": "oriented"}


def test_the_variants_are_listed_as_they_are_typed() -> None:
    assert list_models() == sorted(LISTED)
    assert set(group_of()) == OF_THE_PACKAGE < set(LISTED)
    assert [name for name in LISTED if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_the_family_of_every_model_has_tests_of_its_own_and_a_page() -> None:
    modules = {
        registry.builder_of(name).__module__.removeprefix("deploykit.models.families.") for name in list_models()
    }
    for family in sorted(module.partition(".")[0] for module in modules):
        check_family(family)


def check_family(family: str) -> None:
    tests = ROOT / "tests" / "models" / "families"
    assert (tests / f"test_{family}.py").is_file() or (tests / family).is_dir(), f"{family} has no tests of its own"
    page = f"models/{family}.md"
    assert (ROOT / "docs" / page).is_file(), f"docs/{page} is the page of what models/families/{family} has"
    assert f"({page})" in (ROOT / "docs" / "models.md").read_text(), f"docs/models.md has a row that links to {page}"


@EVERY
def test_a_model_is_called_what_its_builder_is_called(name: str) -> None:
    model = meta_model(name)
    assert model.name == name
    builder = registry._BUILDERS[name.replace("-", "_")]
    assert builder.__name__ == name.replace("-", "_")
    assert inspect.getdoc(builder)
    assert registry.builder_of(name.replace("-", "_")) is registry.builder_of(name) is builder


@pytest.mark.parametrize("name", DENSE)
def test_a_dense_spec_says_what_its_network_gives(name: str) -> None:
    spec = meta_model(name).spec
    canvas = spec.input
    assert isinstance(spec.output, DenseOutput)
    assert spec.output.name == ("image" if spec.task == "restore" else "logits")
    assert canvas.channels == len(canvas.mean) == len(canvas.std)
    assert all(side % canvas.fit.stride == 0 for side in canvas.size)
    assert spec.keypoints is None
    assert bool(spec.classes) == (spec.task != "restore")


@pytest.mark.parametrize("name", DETECTORS)
def test_a_spec_says_what_its_head_does(name: str) -> None:
    model = meta_model(name)
    head, spec = model.module.head, model.spec
    points = 17 if isinstance(head, PoseObject) else getattr(head, "num_keypoints", 0)
    assert isinstance(spec.output, (RawDetections, PoseObjectRows))
    assert spec.output.columns == head.columns
    assert spec.output.cls == (5, 5 + head.num_classes)
    assert len(spec.classes) == (1 if isinstance(head, PoseObject) else head.num_classes)
    masks = getattr(head, "num_masks", 0)
    assert spec.task == ("keypoints" if points else "instances" if masks else "detect")
    assert model.stride == spec.input.fit.stride == max(head.stride)
    assert all(side % model.stride == 0 for side in spec.input.size)
    assert spec.input.fit.kind == "letterbox"
    raw_pixels = isinstance(model.module, Yolox)
    assert (spec.input.colour, spec.input.scale) == (("bgr", 1.0) if raw_pixels else ("rgb", 1 / 255))
    if points:
        assert spec.keypoints == COCO_KEYPOINTS
        assert spec.output.as_rows().keypoints == ((23, 57) if isinstance(head, PoseObject) else (6, 57))
    else:
        assert spec.keypoints is None
        assert spec.classes == COCO_CLASSES


@pytest.mark.parametrize("name", FREE)
def test_a_spec_without_anchors_says_what_its_head_does(name: str) -> None:
    model = meta_model(name)
    head, spec = model.module.head, model.spec
    output = spec.output
    one2one = head.branch == "one2one"
    assert isinstance(output, EndToEndRows if one2one else RawDetections)
    assert one2one == name.startswith(("yolo26", "yolov10"))
    if isinstance(output, RawDetections):
        assert (output.obj, output.cls, output.columns) == (None, (4, 4 + head.num_classes), head.columns)
    task = next((t for end, t in SUFFIXES.items() if end in name), "detect")
    assert (spec.task, len(spec.classes)) == (task, head.num_classes)
    assert spec.classes[0] == ("plane" if task == "oriented" else "person")
    assert spec.keypoints == (COCO_KEYPOINTS if task == "keypoints" else None)
    assert (spec.input.colour, spec.input.scale, spec.input.fit.kind) == ("rgb", 1 / 255, "letterbox")
    assert model.stride == max(32, *head.stride)
    assert spec.input.size == (
        (1024,) * 2 if task == "oriented" else (1280,) * 2 if max(head.stride) > 32 else (640,) * 2
    )
    assert (spec.thresholds.conf, spec.thresholds.iou) == (0.25, 0.7)


@pytest.mark.parametrize("name", INSTANCES)
def test_a_spec_of_instances_has_masks(name: str) -> None:
    spec = meta_model(name).spec
    assert isinstance(spec.output, NmsOutputs)
    assert spec.output.masks == "masks"
    assert spec.classes == COCO_CLASSES
    assert (spec.input.size, spec.input.colour, spec.input.fit.anchor) == ((1024, 1024), "rgb", "top-left")
    border = np.full((1, 1, 3), spec.input.fit.pad_colour, np.uint8)
    assert np.abs(to_nchw([border], spec.input)).max() < 0.01  # what the originals have is 0


@EVERY
def test_a_model_is_in_eval_mode_without_notes_and_its_spec_survives_json(name: str) -> None:
    model = meta_model(name)
    assert not any(m.training for m in model.module.modules())
    assert model.notes == ()
    assert ModelSpec.from_json(model.spec.to_json()) == model.spec


def one_of_each_builder() -> list[str]:
    """One model of each family and task, which has the specs of the others."""
    first: dict[tuple[str, str], str] = {}
    for name, task in TASKS.items():
        first.setdefault((registry.builder_of(name).__module__, task), name)
    return list(first.values())


@pytest.mark.parametrize("name", [name for name in one_of_each_builder() if TASKS[name] != "restore"])
def test_another_number_of_classes_has_unnamed_classes(name: str) -> None:
    spec = meta_model(name, num_classes=3).spec
    if isinstance(spec.output, PoseObjectRows):  # the person, and its keypoints
        assert spec.classes == ("person",)
        assert spec.keypoints == KeypointSpec(("keypoint 0", "keypoint 1"))
        return
    assert spec.classes == ("class 0", "class 1", "class 2")


def test_one_class_is_a_person_only_where_keypoints_are_those_of_persons() -> None:
    assert meta_model("yolov7-tiny", num_classes=1).spec.classes == ("class 0",)
    assert meta_model("yolov7-w6-pose", num_classes=1).spec.classes == ("person",)


@pytest.mark.parametrize("num_classes", [0, -1, -(10**9)])
def test_fewer_classes_than_one_are_refused(num_classes: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1 class, got {num_classes}"):
        create_model("yolov7-tiny", num_classes=num_classes)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("yolov7-tinny", "yolov7-tiny"),
        ("yolov7_w6pose", "yolov7-w6-pose"),
        ("yolo7", "yolov7"),
        ("yolov7-x", "yolov7x"),
        ("yolov7-w6-pose.pt", "yolov7-w6-pose"),
        ("nafnet-w32", "nafnet-w32-gopro or nafnet-w32-raw or nafnet-w32-sidd"),
    ],
)
def test_an_unknown_name_brings_the_closest_one(typed: str, meant: str) -> None:
    with pytest.raises(NotFoundError, match=f"there is no model '{typed}': did you mean {meant}\\?"):
        create_model(typed)


@pytest.mark.parametrize("typed", ["mobile-sam", "", "__class__"])
def test_a_name_that_is_like_none_brings_all(typed: str) -> None:
    with pytest.raises(NotFoundError, match=f"there are {', '.join(list_models())}"):
        create_model(typed)


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    def a_model(*, num_classes: int | None = None) -> ReferenceModel:
        return ReferenceModel("a-model", "test", nn.Identity(), meta_model("yolov7-tiny").spec)

    assert register_model(a_model) is a_model
    assert "a-model" in list_models()
    assert create_model("a-model").family == "test"
    with pytest.raises(ValueError, match="'a_model' is registered twice"):
        register_model(a_model)


def test_the_registry_is_not_left_changed_by_tests() -> None:
    assert "a-model" not in list_models()


def test_classes_have_imagenets_names_where_there_are_a_thousand() -> None:
    names = meta_model("resnet18").spec.classes
    assert (len(names), len(set(names))) == (1000, 1000)
    assert (names[0], names[281], names[340], names[999]) == ("tench", "tabby", "zebra", "toilet tissue")
    assert meta_model("resnet18", 3).spec.classes == ("class 0", "class 1", "class 2")
