"""Whole networks in torch against the numpy interpreter of their rows, unfolded and folded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deploykit.models.create.random_weights import randomise
from deploykit.models.families import yolov5
from deploykit.models.families.yolov7 import VARIANTS, config_of
from deploykit.models.fuse import fuse_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from tests.reference.graphs import run
from tests.reference.layers import hardswish

ANCHORS = ((12.0, 16.0, 19.0, 36.0, 40.0, 28.0),)
HEADS = {
    "detect": [[-1], 1, "Detect", ["nc", "anchors"]],
    "keypoints": [[-1], 1, "IKeypoint", ["nc", "anchors", "nkpt"]],
}

ELAN = (
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Conv", [8]],
    [-2, 1, "Conv", [8, 1, 1]],
    [-1, 1, "Conv", [8, 3, 1]],
    [-1, 1, "Conv", [8, 3, 1]],
    [[-1, -2, -3, -4], 1, "Concat", [1]],
    [-1, 1, "Conv", [24, 1, 1]],
)
SPARSE = (
    [-1, 1, "Conv", [16, 3, 2, "None", 1, "nn.LeakyReLU(0.1)"]],
    [-1, 1, "Conv", [8, 1, 1]],
    [-2, 1, "Conv", [8, 1, 1]],
    *([-1, 1, "Conv", [8, 3, 1]] for _ in range(4)),
    [[-1, -3, -5, -6], 1, "Concat", [1]],
    [-1, 1, "Conv", [16, 1, 1]],
    [-9, 1, "Conv", [16, 1, 1]],
    [[-1, -2], 1, "Shortcut", [1]],
)
DOWN = (
    [-1, 1, "ReOrg", []],
    [-1, 1, "Conv", [16, 3, 1]],
    [-1, 1, "MP", []],
    [-1, 1, "Conv", [8, 1, 1]],
    [-3, 1, "Conv", [8, 1, 1]],
    [-1, 1, "Conv", [8, 3, 2]],
    [[-1, -3], 1, "Concat", [1]],
    [-1, 1, "DownC", [24]],
    [-1, 1, "SPPCSPC", [16]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [6, 1, "RepConv", [16, 3, 1]],
    [[-1, -2], 1, "Concat", [1]],
    [-1, 2, "Conv", [32, 3, 1]],
    [-1, 1, "RepConv", [32, 3, 1]],
)
LITE = (
    [-1, 1, "StemBlock", [16, 3, 2]],
    [-1, 1, "Shuffle_Block", [24, 2]],
    [-1, 2, "Shuffle_Block", [24, 1]],
    [-1, 1, "DWConvblock", [24, 3, 1]],
    [[-1, -2], 1, "ADD", [1]],
    [[-1, 1], 1, "ADD", [0.5]],
    [-1, 1, "SPPF", [16, 5]],
)
POOLED = (
    [-1, 1, "conv_bn_relu_maxpool", [16]],
    [-1, 1, "SP", [5]],
    [-1, 1, "Conv", [16, 3, 2, "None", 1, "nn.ReLU()"]],
)
GHOST = (
    [-1, 1, "Focus", [16, 3]],
    [-1, 1, "GhostConv", [16, 3, 2]],
    [-1, 2, "C3Ghost", [16]],
    [-1, 1, "DWConv", [24, 3, 1]],
    [-1, 1, "SPP", [16, [3, 5]]],
)
CSP = (
    [-1, 1, "ConvFocus", [16, 3]],
    [-1, 2, "BottleneckCSP", [16]],
    [-1, 3, "C3", [16, False]],
    [-1, 1, "SPPF", [16, 5]],
)


def prepared(config: GraphConfig, seed: int = 0) -> LayerGraph:
    torch.manual_seed(seed)
    graph = build_graph(config)
    randomise(graph)
    return graph


def assert_agree(graph: LayerGraph, config: GraphConfig, images: torch.Tensor) -> None:
    """Within 1e-3 px and 1e-5 of a probability, both forms of the graph; and the rows depend on the image."""
    weights = {key: t.double().numpy() for key, t in graph.state_dict().items()}
    act = {"": None, "nn.Hardswish()": hardswish}[config.activation]
    expected = run(config.rows, weights, images.double().numpy(), config.anchors, config.num_classes, act)
    columns = np.arange(expected.shape[-1])
    after = columns - 5 - config.num_classes
    probability = ((columns >= 4) & (after < 0)) | ((after >= 0) & (after % 3 == 2))
    assert np.ptp(expected[..., ~probability], axis=0).max() > 0.1
    for form in (graph, fuse_model(graph)):
        with torch.no_grad():
            error = np.abs(form(images).numpy() - expected)
        assert error[..., probability].max() <= 1e-5
        assert (error[..., ~probability] <= 1e-3 + 1e-5 * np.abs(expected[..., ~probability])).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "rows",
    [ELAN, SPARSE, DOWN, LITE, POOLED, GHOST, CSP],
    ids=["elan", "sparse", "down", "lite", "pooled", "ghost", "csp"],
)
def test_a_small_graph_computes_what_its_rows_say(rows: tuple[list[object], ...], head: str) -> None:
    config = GraphConfig(rows=(*rows, HEADS[head]), num_classes=2, anchors=ANCHORS, num_keypoints=4)
    assert_agree(prepared(config), config, torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("training", [False, True], ids=["deploy", "training"])
def test_narrow_tiny_computes_what_its_rows_say(training: bool) -> None:
    config = config_of("yolov7_tiny", 3, width=0.25, training=training)
    assert_agree(prepared(config), config, torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(7)))


def test_narrow_w6_pose_computes_what_its_rows_say() -> None:
    config = config_of("yolov7_w6_pose", 1, width=0.125)
    assert_agree(prepared(config), config, torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("yolov7_tiny", "yolov7_w6_pose")])
def test_every_other_narrow_variant_computes_what_its_rows_say(name: str) -> None:
    config = config_of(name, 3, width=0.0625, training=True)
    assert_agree(prepared(config), config, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("generation", yolov5.GENERATIONS)
@pytest.mark.parametrize("name", ["yolov5m", "yolov5s6"])
def test_every_narrow_generation_of_yolov5_computes_what_its_rows_say(name: str, generation: int) -> None:
    config = yolov5.config_of(name, 3, width=0.0625, generation=generation)
    assert_agree(prepared(config), config, torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(10)))


def test_narrow_yolo_pose_computes_what_its_rows_say() -> None:
    config = yolov5.config_of("yolov5s6_pose", 1, width=0.0625)
    assert_agree(prepared(config), config, torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(11)))


def test_the_comparison_notices_one_wrong_tap() -> None:
    """The check of the check: the same weights under rows that differ in one concatenation's order."""
    config = config_of("yolov7_tiny", 3, width=0.25)
    graph = prepared(config)
    rows = [list(row) for row in config.rows]
    index = next(i for i, row in enumerate(rows) if row[2] == "Concat")
    rows[index][0] = rows[index][0][::-1]
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(7))
    with pytest.raises(AssertionError):
        assert_agree(graph, replace(config, rows=tuple(rows)), images)
