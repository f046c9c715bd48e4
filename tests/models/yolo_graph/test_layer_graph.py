"""Networks from layer rows: what builds, what is refused, and that nothing of a description runs."""

from __future__ import annotations

import re
import resource
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deploykit.errors import CheckpointError, DeployError, UnknownLayerError
from deploykit.models.families.yolov7 import config_of
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Keypoint
from deploykit.models.layers.conv import Conv
from deploykit.models.yolo_graph.description import MAX_ROWS, GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.models.yolo_graph.layer_table import ACTIVATIONS, KNOWN, activation

INF, NAN = float("inf"), float("nan")
ANCHORS = ((12.0, 16.0, 19.0, 36.0, 40.0, 28.0),)
DETECT = [[-1], 1, "Detect", ["nc", "anchors"]]
SECONDS, MEGABYTES = 5.0, 200.0


def config(*rows: Any, **changes: Any) -> GraphConfig:
    return replace(GraphConfig(rows=(*rows, DETECT), num_classes=2, anchors=ANCHORS), **changes)


def first(row: Any) -> GraphConfig:
    """A description that begins with ``row`` and would be right otherwise."""
    return config(row, [-1, 1, "Conv", [8, 3, 2]])


def build(description: GraphConfig) -> LayerGraph:
    with torch.device("meta"):
        return build_graph(description)


def assert_refused(make: Any, match: str, kind: type[DeployError] = CheckpointError) -> None:
    """With our own error, in one short line, quickly and without much memory."""
    start, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=match) as caught:
        make()
    assert time.thread_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600


# What builds


@settings(max_examples=25)
@given(
    num_classes=st.integers(1, 7), num_keypoints=st.integers(1, 6), anchors=st.integers(1, 4), repeats=st.integers(1, 3)
)
def test_any_number_of_classes_keypoints_and_anchors_gives_its_columns(
    num_classes: int, num_keypoints: int, anchors: int, repeats: int
) -> None:
    rows = ([-1, 1, "Conv", [8, 3, 2]], [-1, repeats, "Conv", [8, 3, 1]])
    pose = [[-1], 1, "IKeypoint", ["nc", "anchors", "nkpt"]]
    facts = {"num_classes": num_classes, "anchors": ((10.0, 20.0) * anchors,)}
    boxes = build_graph(config(*rows, **facts))
    keypoints = build_graph(GraphConfig(rows=(*rows, pose), num_keypoints=num_keypoints, **facts))
    with torch.no_grad():
        images = torch.rand(2, 3, 16, 24)
        assert boxes(images).shape == (2, anchors * 8 * 12, 5 + num_classes)
        assert keypoints(images).shape == (2, anchors * 8 * 12, 5 + num_classes + 3 * num_keypoints)
    assert (boxes.head.columns, keypoints.head.columns) == (5 + num_classes, 5 + num_classes + 3 * num_keypoints)


@pytest.mark.parametrize(("depth", "count"), [(0.33, 3), (1.0, 9), (1.33, 12), (2.0, 18), (0.01, 1)])
def test_depth_multiple_scales_repeats_and_leaves_single_layers(depth: float, count: int) -> None:
    graph = build(config([-1, 1, "Conv", [8, 3, 2]], [-1, 9, "Conv", [8, 3, 1]], depth_multiple=depth))
    assert isinstance(graph.model[0], Conv)
    block = graph.model[1]
    assert (len(block) if isinstance(block, nn.Sequential) else 1) == count
    assert f"model.1.{count - 1}.conv.weight" in graph.state_dict() or count == 1


@pytest.mark.parametrize(("width", "channels"), [(0.25, 16), (0.5, 24), (1.0, 48), (1.25, 64)])
def test_width_multiple_scales_channels_to_the_next_eight(width: float, channels: int) -> None:
    graph = build(config([-1, 1, "Conv", [48, 3, 2]], width_multiple=width))
    assert graph.state_dict()["model.0.conv.weight"].shape[0] == channels


def test_width_multiple_leaves_a_convolution_of_the_heads_width() -> None:
    graph = build(config([-1, 1, "Conv", [21, 3, 2]], width_multiple=0.25))
    assert graph.state_dict()["model.0.conv.weight"].shape[0] == 3 * (2 + 5)


@pytest.mark.parametrize("kind", ["C3", "BottleneckCSP", "C3Ghost"])
@pytest.mark.parametrize(("depth", "count"), [(0.33, 3), (1.0, 9), (0.01, 1)])
def test_the_repeats_of_a_cross_stage_block_are_its_bottlenecks(kind: str, depth: float, count: int) -> None:
    block = build(config([-1, 9, kind, [8]], depth_multiple=depth)).model[0]
    assert not isinstance(block, nn.Sequential)
    assert len(block.m) == count


def test_an_activation_for_all_reaches_the_convolutions_that_name_none() -> None:
    rows = [-1, 1, "Conv", [8, 3, 2, "None", 1, "nn.ReLU()"]], [-1, 1, "C3", [8]], [-1, 1, "BottleneckCSP", [8]]
    model = build(config(*rows, activation="nn.LeakyReLU(0.3)")).model
    assert type(model[0].act) is nn.ReLU
    slopes = [[m.negative_slope for m in block.modules() if isinstance(m, nn.LeakyReLU)] for block in model[1:3]]
    assert slopes == [[0.3] * 5, [0.3, 0.3, 0.1, 0.3, 0.3]], "the shared one of a BottleneckCSP is its own"


def test_a_head_called_detect_has_keypoints_where_its_row_says_so() -> None:
    rows = [-1, 1, "Conv", [8, 3, 2]], [[-1], 1, "Detect", ["nc", "anchors", "nkpt"]]
    head = build(GraphConfig(rows=rows, num_classes=2, anchors=ANCHORS, num_keypoints=3)).head
    assert type(head) is Keypoint
    assert head.columns == 5 + 2 + 9
    assert_refused(lambda: build(GraphConfig(rows=rows, num_classes=2, anchors=ANCHORS)), "needs nkpt")


def test_strides_are_how_far_each_level_is_scaled_down() -> None:
    rows = (
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "MP", []],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [-1, 1, "ReOrg", []],
    )
    head = [[0, 1, 2, 3], 1, "Detect", ["nc", "anchors"]]
    graph = build_graph(GraphConfig(rows=(*rows, head), num_classes=2, anchors=ANCHORS * 4))
    assert graph.head.stride == (2, 4, 2, 4)
    expected = [[a / s for a in ANCHORS[0]] for s in graph.head.stride]
    torch.testing.assert_close(graph.head.anchors.flatten(1), torch.tensor(expected))


def test_a_graph_is_built_in_eval_mode_on_any_number_of_input_channels() -> None:
    graph = build_graph(config([-1, 1, "Conv", [8, 3, 2]], channels=4))
    assert not any(m.training for m in graph.modules())
    assert graph(torch.rand(1, 4, 16, 16)).shape == (1, 3 * 64, 7)


def test_a_feature_is_kept_until_its_last_use_and_no_longer() -> None:
    """Layer 0 feeds 1, 2 (twice) and the head; layer 1 feeds the head only; nothing uses layer 3."""
    rows = (
        [-1, 1, "Conv", [8, 3, 2]],
        [0, 1, "Conv", [8, 3, 2]],
        [[0, 0], 1, "Concat", [1]],
        [2, 1, "Conv", [8, 1, 1]],
        [2, 1, "MP", []],
    )
    head = [[4, 1, 0], 1, "Detect", ["nc", "anchors"]]
    graph = build_graph(GraphConfig(rows=(*rows, head), num_classes=2, anchors=ANCHORS * 3))
    assert graph.last_use == {-1: 0, 0: 5, 1: 5, 2: 4, 4: 5}
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        layers = list(graph.model)
        zero = layers[0](images)
        one = layers[1](zero)
        four = layers[4](torch.cat((zero, zero), 1))
        expected = layers[5](four, one, zero)
        assert torch.equal(graph(images), expected)
    fused = fuse_model(graph)
    assert isinstance(fused, LayerGraph)
    assert len(fused.model) == len(graph.model) - 1, "the layer that feeds nothing is dropped"
    with torch.no_grad():
        torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=1e-4)


def test_memory_does_not_hold_features_that_are_done() -> None:
    graph = build_graph(config([-1, 1, "Conv", [8, 3, 2]], *([-1, 1, "Conv", [8, 3, 1]] for _ in range(6))))
    alive: list[int] = []
    seen: list[Any] = []

    def count(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        seen.append(weakref.ref(output))
        alive.append(sum(r() is not None for r in seen))

    for layer in list(graph.model)[:-1]:
        layer.register_forward_hook(count)
    with torch.no_grad():
        graph(torch.rand(1, 3, 16, 16))
    assert max(alive) == 2, "a layer's input and its output"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_read_by_name(name: str) -> None:
    assert type(activation(f"nn.{name}()")) is ACTIVATIONS[name]


def test_an_activations_number_is_read() -> None:
    assert activation("nn.LeakyReLU(0.1)").negative_slope == 0.1
    assert activation("nn.LeakyReLU(1e-2, inplace=True)").negative_slope == 0.01
    assert isinstance(activation("nn.SiLU(inplace=True)"), nn.SiLU)


# What is refused

ROWS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "layer 0 .* None, cannot be built"),
    "a number": (5, "layer 0 .* 5, cannot be built"),
    "four letters": ("Conv", "layer 0 .* 'Conv', cannot be built"),
    "too short": ([-1, 1, "Conv"], "layer 0 .*expected 4, got 3"),
    "arguments missing": ([-1, 1, "Conv", None], r"expected \[from, repeats, layer, arguments\]"),
    "arguments a dictionary": ([-1, 1, "Conv", {0: 8}], r"expected \[from, repeats, layer, arguments\]"),
    "a million arguments": ([-1, 1, "Conv", [8] * 10**6], "up to 32 arguments"),
    "nested arguments": ([-1, 1, "Conv", [8, [[3]]]], "neither one value nor a short list"),
    "a layer that is a list": ([-1, 1, ["Conv"], [8]], r"expected \[from, repeats, layer, arguments\]"),
    "repeated a billion times": ([-1, 10**9, "Conv", [8, 3, 2]], "more than 1000 layers"),
    "repeated infinitely": ([-1, INF, "Conv", [8, 3, 2]], "cannot convert float infinity"),
    "repeated NaN times": ([-1, NAN, "Conv", [8, 3, 2]], "cannot convert float NaN"),
    "repeated never": ([-1, 0, "Conv", [8, 3, 2]], "repeated 0 times, expected at least 1"),
    "a billion channels": ([-1, 1, "Conv", [10**9, 3, 2]], "gives 1000000000 channels, expected 1 to 65536"),
    "a number of 600 digits": ([-1, 1, "Conv", [10**600, 3, 2]], "too large"),
    "infinite channels": ([-1, 1, "Conv", [INF, 3, 2]], "cannot convert float infinity"),
    "no channels": ([-1, 1, "Conv", [0, 3, 2]], "gives 0 channels"),
    "negative channels": ([-1, 1, "Conv", [-8, 3, 2]], "gives -8 channels"),
    "a negative kernel": ([-1, 1, "Conv", [8, -3, 2]], "negative dimension"),
    "a billion wide kernel": ([-1, 1, "Conv", [8, 10**9, 2]], "layer 0 .* cannot be built"),
    "stride 0": ([-1, 1, "Conv", [8, 3, 0]], "layer 0 .* cannot be built"),
    "no groups": ([-1, 1, "Conv", [8, 3, 2, "None", 0]], "groups must be a positive integer"),
    "fed by a later layer": ([1, 1, "Conv", [8, 3, 2]], "fed by 1, which is not an earlier layer"),
    "fed by itself": ([0, 1, "Conv", [8, 3, 2]], "fed by 0, which is not an earlier layer"),
    "fed by a layer before the image": ([-2, 1, "Conv", [8, 3, 2]], "fed by -2, which is not an earlier layer"),
    "fed by nothing": ([[], 1, "Conv", [8, 3, 2]], r"fed by \[\], which is not an earlier layer"),
    "fed by half a layer": ([[-1.0], 1, "Conv", [8, 3, 2]], r"fed by \[-1.0\], which is not an earlier layer"),
    "fed by a name": (["image", 1, "Conv", [8, 3, 2]], "layer 0 .* cannot be built"),
    "fed a million times": ([[-1] * 10**6, 1, "Concat", [1]], "which is not an earlier layer"),
    "fed twice": ([[-1, -1], 1, "Conv", [8, 3, 2]], "layer 0 .* cannot be built"),
    "code as channels": ([-1, 1, "Conv", ["__import__('os')", 3, 2]], "layer 0 .* cannot be built"),
    "code as an activation": (
        [-1, 1, "Conv", [8, 3, 2, "None", 1, "__import__('os').system('true')"]],
        "neither a number nor an activation",
    ),
    "concatenated along a word": ([[-1, -1], 1, "Concat", ["x"]], "layer 0 .* cannot be built"),
    "concatenated along axis 7": ([[-1, -1], 1, "Concat", [7]], "Dimension out of range"),
    "upsampled a billion times": ([-1, 1, "nn.Upsample", ["None", 10**9, "nearest"]], "layer 0 .* cannot be built"),
    "upsampled a thousand times": ([-1, 1, "nn.Upsample", ["None", 1000, "nearest"]], "gives 196,608,000,000 values"),
    "upsampled by code": ([-1, 1, "nn.Upsample", ["None", "exit()", "nearest"]], "could not convert"),
    "a sum of one": ([-1, 1, "Shortcut", [1]], "layer 0 .* cannot be built"),
    "pooled to nothing": ([-1, 1, "MP", [10**9]], "too small"),
    "an endless pyramid": ([-1, 1, "SPPCSPC", [8, 1, False, 1, 1e308]], "layer 0 .* cannot be built"),
    "RepConv 5x5": ([-1, 1, "RepConv", [8, 5, 1]], "RepConv is a 3x3 convolution"),
    "a shuffle block that changes its channels": ([-1, 1, "Shuffle_Block", [8, 1]], "stride 1 shuffle block keeps"),
    "a billion bottlenecks": ([-1, 10**9, "C3", [8]], "more than 1000 layers"),
    "bottlenecks without end": ([-1, INF, "BottleneckCSP", [8]], "cannot convert float infinity"),
    "bottlenecks said twice": ([-1, 1, "C3Ghost", [8, 10**9, False, 1, 0.5, 0.5]], "positional arguments"),
    "endless bottlenecks": ([-1, 1, "C3", [8, True, 1, 1e308]], "cannot convert float infinity"),
    "pools without end": ([-1, 1, "SPP", [8, [3] * 33]], "neither one value nor a short list"),
    "a pool of a word": ([-1, 1, "SPP", [8, ["x"]]], "layer 0 .* cannot be built"),
    "a Focus on half a pixel": ([-1, 1, "Focus", [8, 3, 0.5]], "layer 0 .* cannot be built"),
    "a head in the middle": ([[-1, -1], 1, "Detect", ["nc", "anchors"]], "by 2 layers, its 1 levels of anchors need 1"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "match"), ROWS.values(), ids=ROWS)
def test_a_hostile_row_is_refused_by_name(row: Any, match: str) -> None:
    assert_refused(lambda: build(first(row)), match)


@pytest.mark.parametrize("name", ["C2f", "Pose", "nn.Conv2d", "eval", "__import__('os')", "", "deploykit", "Conv\n"])
def test_an_unknown_layer_is_named_with_its_index_and_what_there_is(name: str) -> None:
    rows = [-1, 1, "Conv", [8, 3, 2]], [-1, 1, name, [8]]
    for make in (lambda: config(*rows), lambda: GraphConfig.from_yaml(yaml_of(*rows))):
        match = f"layer 1 .* {re.escape(repr(name))}, .*it has ADD, .*Concat, Conv"
        assert_refused(lambda make=make: build(make()), match, UnknownLayerError)


@pytest.mark.parametrize(
    "text",
    [
        "nn.__import__('os')",
        "nn.Conv2d(3, 8)",
        "nn.SiLU",
        "nn.LeakyReLU(0.1.2)",
        "nn.LeakyReLU(0.1); import os",
        "nn.ReLU().__class__",
        "nn.ReLU()\n",
        "nn.ReLU(" + " " * 10**6,
        "nn." + "A" * 10**6 + "()",
    ],
    ids=lambda text: text[:32].strip(),
)
def test_an_unknown_activation_is_not_evaluated(text: str) -> None:
    assert_refused(lambda: build(first([-1, 1, "Conv", [8, 3, 2, "None", 1, text]])), "nn.SiLU", UnknownLayerError)


NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "no rows": ({"rows": ()}, "1 to 1000 layers, this one has 0"),
    "a million rows": ({"rows": (DETECT,) * 10**6}, "1 to 1000 layers, this one has 1000000"),
    "no anchors": ({"anchors": ()}, "anchors are a list w, h"),
    "an empty level": ({"anchors": ((),)}, "anchors are a list w, h"),
    "half an anchor": ({"anchors": ((1.0, 2.0, 3.0),)}, "anchors are a list w, h"),
    "unequal levels": ({"anchors": ((1.0, 2.0), (1.0, 2.0, 3.0, 4.0))}, "all of one length"),
    "a million anchors": ({"anchors": ((1.0,) * 10**6,)}, "anchors are a list w, h"),
    "a million levels": ({"anchors": ((1.0, 2.0),) * 10**6}, "anchors are a list w, h"),
    "more levels than features": ({"anchors": ANCHORS * 2}, "fed by 1 layers, its 2 levels of anchors need 2"),
    "no classes": ({"num_classes": 0}, "num_classes is 1 to 65536, its description says 0"),
    "a billion classes": ({"num_classes": 10**9}, "num_classes is 1 to 65536"),
    "negative keypoints": ({"num_keypoints": -1}, "num_keypoints is 0 to 65536"),
    "no input channels": ({"channels": 0}, "channels is 1 to 65536"),
    "a billion input channels": ({"channels": 10**9}, "channels is 1 to 65536"),
    "endless depth": ({"depth_multiple": INF}, "depth_multiple is over 0 and up to 32"),
    "depth that is no number": ({"depth_multiple": NAN}, "depth_multiple is over 0"),
    "width 0": ({"width_multiple": 0.0}, "width_multiple is over 0"),
    "width of a billion": ({"width_multiple": 1e9}, "width_multiple is over 0 and up to 32"),
}


@pytest.mark.parametrize(("changes", "match"), NUMBERS.values(), ids=NUMBERS)
def test_a_hostile_number_is_refused_by_name(changes: dict[str, Any], match: str) -> None:
    assert_refused(lambda: build(config([-1, 1, "Conv", [8, 3, 2]], **changes)), match)


def test_many_rows_of_many_repeats_are_refused_in_sum() -> None:
    rows = [[-1, 30, "Conv", [512]] for _ in range(MAX_ROWS - 1)]
    assert_refused(lambda: build(config(*rows)), "with its repeats the model has more than 1000 layers")


@pytest.mark.parametrize("kind", ["C3", "C3Ghost", "BottleneckCSP", "SPPCSPC"])
def test_many_rows_of_large_layers_are_refused_in_sum(kind: str) -> None:
    rows = [[-1, 1, kind, [8]] for _ in range(MAX_ROWS - 1)]
    assert_refused(lambda: build(config(*rows)), "with what is inside of its layers the model has more than 4000 mod")


def test_a_level_that_is_larger_than_the_image_is_refused() -> None:
    up = [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]
    assert_refused(lambda: build(config([-1, 1, "Conv", [8, 1, 1]], up)), "larger than the image")


def test_a_description_without_a_head_is_refused() -> None:
    assert_refused(lambda: build(replace(config(), rows=([-1, 1, "Conv", [8]],))), "ends with a head")


def test_features_that_do_not_fit_are_refused_at_their_layer() -> None:
    rows = [list(row) for row in config_of("yolov7_tiny", 3).rows]
    rows[41] = [[-1, 8], 1, "Concat", [1]]  # another size than the layer before
    broken = replace(config_of("yolov7_tiny", 3, width=0.125), rows=tuple(rows), strides=())
    assert_refused(
        lambda: build(broken), r"layer 41 .*\[\[-1, 8\], 1, 'Concat', \[1\]\], cannot be built: Sizes of tensors"
    )


# The dictionary of a checkpoint


def yaml_of(*rows: Any, **changes: Any) -> dict[str, Any]:
    return {"nc": 2, "anchors": [list(ANCHORS[0])], "backbone": list(rows), "head": [DETECT], **changes}


def test_a_description_is_read() -> None:
    found = GraphConfig.from_yaml(
        yaml_of([-1, 1, "Conv", [8, 3, 2]], nkpt=5, dw_conv_kpt=True, ch=1, width_multiple=0.5)
    )
    assert (found.num_classes, found.num_keypoints, found.depthwise_keypoints, found.channels) == (2, 5, True, 1)
    assert (found.depth_multiple, found.width_multiple) == (1.0, 0.5)
    assert build(found).state_dict()["model.0.conv.weight"].shape == (8, 1, 3, 3)


def test_anchors_may_be_no_more_than_how_many_there_are() -> None:
    """They were found while training then, and are among the weights."""
    rows = [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]
    head = [[[0, 1], 1, "Detect", ["nc", "anchors"]]]
    found = GraphConfig.from_yaml(yaml_of(*rows, anchors=4, head=head))
    assert [len(level) for level in found.anchors] == [8, 8]


@pytest.mark.parametrize(
    ("said", "meant"), [({}, ""), ({"activation": "nn.ReLU6()"}, "nn.ReLU6()"), ({"act": "ReLU"}, "nn.ReLU()")]
)
def test_an_activation_for_all_is_read(said: dict[str, str], meant: str) -> None:
    assert GraphConfig.from_yaml(yaml_of([-1, 1, "Conv", [8, 3, 2]], **said)).activation == meant


@pytest.mark.parametrize("missing", ["backbone", "head", "nc", "anchors"])
def test_a_missing_part_is_named(missing: str) -> None:
    yaml = yaml_of([-1, 1, "Conv", [8, 3, 2]])
    del yaml[missing]
    assert_refused(
        lambda: GraphConfig.from_yaml(yaml), f"has no '{missing}': .*YOLOv5 and YOLOv7 .*backbone, head, nc, anchors"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": 5},
        {"backbone": "abcd"},
        {"backbone": {"a": 1}},
        {"backbone": [None]},
        {"backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 10**6},
        {"head": None},
        {"nc": "many"},
        {"nc": None},
        {"nc": INF},
        {"nc": 10**600},
        {"nc": [1]},
        {"anchors": 0},
        {"anchors": -3},
        {"anchors": True},
        {"anchors": 10**600},
        {"anchors": 3, "head": [None]},
        {"activation": "nn.X()"},
        {"activation": "exit()"},
        {"activation": 7},
        {"activation": "nn.ReLU(" + " " * 10**6},
        {"act": ["ReLU"]},
        {"act": "A" * 10**6},
        {"anchors": [[1, "exit()"]]},
        {"anchors": [[10**600, 1]]},
        {"anchors": "12"},
        {"nkpt": "x"},
        {"depth_multiple": "deep"},
        {"width_multiple": None},
        {"ch": -3},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_hostile_description_is_refused(changes: Mapping[str, Any]) -> None:
    yaml = yaml_of([-1, 1, "Conv", [8, 3, 2]], **changes)
    assert_refused(lambda: build(GraphConfig.from_yaml(yaml)), ".")


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.sampled_from([10**9, -(10**9), 10**30, INF, NAN, 0.5, 1e308]),
        st.sampled_from(["None", "nc", "anchors", "nkpt", "nearest", "nn.ReLU()", "nn.X()", "exit()", "", "True"]),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
LAYERS = st.sampled_from(KNOWN)


@settings(max_examples=300)
@given(
    rows=st.lists(
        st.one_of(
            JUNK, st.tuples(st.one_of(st.integers(-2, 2), JUNK), st.one_of(st.just(1), JUNK), LAYERS, st.lists(JUNK))
        ),
        max_size=4,
    ),
    nc=st.one_of(st.integers(1, 3), JUNK),
    nkpt=JUNK,
)
def test_whatever_a_description_says_it_builds_or_is_refused(rows: list[Any], nc: Any, nkpt: Any) -> None:
    try:
        graph = build(GraphConfig.from_yaml(yaml_of(*rows, nc=nc, nkpt=nkpt)))
    except CheckpointError:
        return
    assert min(graph.head.stride) >= 1
