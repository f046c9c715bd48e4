"""KaPao against the published numbers; its files, told apart from those of detectors and of pose models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import yolov5
from deploykit.models.families.kapao import CROWDPOSE_KEYPOINTS, VARIANTS, config_of, from_checkpoint
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.registry import create_model, model_from_checkpoint
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.spec import COCO_KEYPOINTS, PoseFusion, PoseObjectRows

# (parameters, folded, keys of the original's state dict, multiply-adds / 1e9 at 1280 px): confirmed with the original's
# own code.
PUBLISHED = {
    "kapao_s": (12_559_980, 12_545_740, 472, 34.2),
    "kapao_m": (35_755_404, 35_727_996, 652, 103.8),
    "kapao_l": (77_047_852, 77_003_244, 832, 234.1),
}
COCO_NAMES = ("person", *(name.replace(" ", "_") for name in COCO_KEYPOINTS.names))
CROWDPOSE_NAMES = ("person", *(name.replace(" ", "_") for name in CROWDPOSE_KEYPOINTS.names))


@cache
def on_meta(name: str, num_classes: int = 18) -> LayerGraph:
    with torch.device("meta"):
        return build_graph(config_of(name, num_classes))


def file_of(name: str, num_classes: int = 18, *, described: bool = True, **changes: Any) -> Checkpoint:
    """A file of full size, without memory for its weights, as the original writes it: nc counts the coordinates too."""
    config = config_of(name, num_classes)
    yaml = {
        "nc": num_classes + config.num_coords, "depth_multiple": config.depth_multiple,
        "width_multiple": config.width_multiple, "anchors": [list(level) for level in config.anchors],
        "backbone": [list(row) for row in config.rows[:12]], "head": [list(row) for row in config.rows[12:]],
    }  # fmt: skip
    facts: dict[str, Any] = {
        "path": Path("best.pt"), "size": 0, "sha256": "0" * 64, "format": "torch-zip", "entry": "model", "names": None,
        "stride": None, "metadata": {}, "notes": (), "state_dict": on_meta(name, num_classes).state_dict(),
        "yaml": yaml if described else None, "modules": modules_of(num_classes, config.num_coords) if described else (),
    }  # fmt: skip
    return Checkpoint(**{**facts, **changes})


def modules_of(num_classes: Any, num_coords: Any, *, head: Any = None) -> tuple[Module, ...]:
    of_head = {"type": "models.yolo.Detect", "nc": num_classes, "num_coords": num_coords if head is None else head}
    return (
        Module("", "models.yolo.Model", {"num_coords": num_coords}),
        Module("model.33", "models.yolo.Detect", of_head),
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_keys_and_operations_are_the_published_ones(name: str) -> None:
    graph = on_meta(name)
    parameters, folded, keys, operations = PUBLISHED[name]
    assert sum(p.numel() for p in graph.parameters()) == parameters
    norms = [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert parameters - sum(m.num_features for m in norms) == folded
    assert len(graph.state_dict()) == keys
    assert {m.eps for m in norms} == {1e-3}
    total = 0

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += conv.weight[0].numel() * output.numel()

    hooks = [m.register_forward_hook(count) for m in graph.modules() if isinstance(m, nn.Conv2d)]
    rows = graph(torch.empty(1, 3, 1280, 1280, device="meta"))
    for hook in hooks:
        hook.remove()
    assert rows.shape == (1, 102_000, 57)
    assert total / 1e9 == pytest.approx(operations, abs=0.06)


def test_every_variant_has_published_numbers() -> None:
    assert sorted(PUBLISHED) == sorted(VARIANTS)


def test_a_model_finds_persons_and_says_what_its_columns_are() -> None:
    with torch.device("meta"):
        model = create_model("kapao-s")
    assert (model.spec.task, model.spec.classes, model.spec.keypoints) == ("keypoints", ("person",), COCO_KEYPOINTS)
    assert model.spec.output == PoseObjectRows(cls=(5, 23), coords=(23, 57), fusion=PoseFusion(0.2, 0.25, 0.3, 50.0))
    assert (model.spec.input.size, model.stride) == ((1280, 1280), 64)
    assert isinstance(model.module, LayerGraph)
    assert isinstance(model.module.head, PoseObject)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("described", [True, False])
def test_a_file_is_recognised(name: str, described: bool) -> None:
    """By its pickled modules, or without any by its 18 class names."""
    model = model_from_checkpoint(file_of(name, described=described, names=COCO_NAMES))
    assert (model.name, model.family) == (name.replace("_", "-"), "KaPao")
    assert (model.spec.classes, model.spec.keypoints, model.notes) == (("person",), COCO_KEYPOINTS, ())


def test_pickled_modules_are_enough_without_a_description() -> None:
    model = model_from_checkpoint(file_of("kapao_s", described=False, modules=modules_of(18, 34)))
    assert (model.name, model.family) == ("kapao-s", "KaPao")


def test_a_state_dict_without_names_stays_a_detector_that_says_what_it_may_be() -> None:
    model = model_from_checkpoint(file_of("kapao_s", described=False))
    assert (model.name, len(model.spec.classes)) == ("yolov5s6", 52)
    assert any("a KaPao model has the same tensors" in note for note in model.notes)


def test_a_detector_of_52_named_classes_stays_one() -> None:
    """Also one that has been described by the original, which is described in the same words."""
    named = tuple(f"thing {i}" for i in range(52))
    for described in (True, False):
        model = model_from_checkpoint(file_of("kapao_s", described=described, names=named, modules=()))
        assert (model.name, model.spec.classes, model.spec.task) == ("yolov5s6", named, "detect")


def test_a_pose_model_of_rows_as_wide_stays_one() -> None:
    with torch.device("meta"):
        state = build_graph(yolov5.config_of("yolov5s6_pose", 1)).state_dict()
    checkpoint = file_of("kapao_s", described=False, names=("person",), state_dict=state)
    assert from_checkpoint(checkpoint) is None
    assert model_from_checkpoint(checkpoint).name == "yolov5s6-pose"


def test_crowdposes_keypoints_are_known_and_others_are_called_as_the_file_does() -> None:
    model = model_from_checkpoint(file_of("kapao_s", 15, names=CROWDPOSE_NAMES))
    assert (model.name, model.spec.keypoints) == ("kapao-s", CROWDPOSE_KEYPOINTS)
    assert model.spec.output == PoseObjectRows(cls=(5, 20), coords=(20, 48))
    model = model_from_checkpoint(file_of("kapao_s", 3, names=("dog", "left_ear", "tail")))
    assert model.spec.classes == ("dog",)
    assert model.spec.keypoints is not None
    assert model.spec.keypoints.names == ("left ear", "tail")
    model = model_from_checkpoint(file_of("kapao_s", 3, names=("dog",)))
    assert model.spec.keypoints is not None
    assert model.spec.keypoints.names == ("keypoint 0", "keypoint 1")
    assert model.notes == ("it names 1 classes and has 3: its keypoints are numbered instead",)


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        (modules_of(18, 32), "32 coordinates in 52 columns.*one for each keypoint"),
        (modules_of(18, "x"), "'x' coordinates in 52 columns"),
        (
            modules_of(18, 34, head=32),
            "contradict each other: model.33 has num_coords 32 and nc 18, expected 34 and 18",
        ),
        (modules_of(52, 34), "contradict each other: model.33 has num_coords 34 and nc 52, expected 34 and 18"),
    ],
)
def test_modules_that_contradict_each_other_are_refused(modules: tuple[Module, ...], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        from_checkpoint(file_of("kapao_s", modules=modules))


def test_another_description_has_another_name() -> None:
    file = file_of("kapao_s")
    assert file.yaml is not None
    deeper = {**file.yaml, "depth_multiple": 0.5}
    assert file.state_dict.keys() < build(deeper).keys()
    model = from_checkpoint(file_of("kapao_s", yaml=deeper, state_dict=build(deeper)))
    assert model is not None
    assert model.name == "kapao-depth-0.5-width-0.5"
    head = [*deeper["head"][:-1], [[23, 26], 1, "Detect", ["nc", "anchors"]]]
    fewer = {**file.yaml, "head": head, "anchors": deeper["anchors"][:2]}
    model = from_checkpoint(file_of("kapao_s", yaml=fewer, state_dict=build(fewer)))
    assert model is not None
    assert (model.name, model.family) == ("kapao-custom", "KaPao")


def build(yaml: dict[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        config = replace(GraphConfig.from_yaml(yaml), num_classes=18, num_coords=34)
        return dict(build_graph(config).state_dict())


def test_one_class_leaves_no_keypoint() -> None:
    with pytest.raises(UsageError, match="kapao-s has a person and at least 1 keypoint as classes, got 1"):
        create_model("kapao-s", num_classes=1)


def test_folding_keeps_the_numbers_and_images_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    graph = build_graph(config_of("kapao_s", 4, width=0.125))
    randomise(graph)
    images = torch.rand(2, 3, 64, 128)
    with torch.no_grad():
        together, folded = graph(images), fuse_model(graph)(images)
        torch.testing.assert_close(folded, together, rtol=1e-4, atol=1e-3)
        for i in (0, 1):
            torch.testing.assert_close(together[i : i + 1], graph(images[i : i + 1]), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(together[0], together[1], rtol=1e-4, atol=1e-3)
