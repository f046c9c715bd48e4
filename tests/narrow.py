"""Narrow detectors with seeded weights, as models and as checkpoints on the disk, for tests that export them.

A checkpoint is a pickled module tree with the model's own description in it, as the YOLOv7 project saves one, because
without a description only the published widths are recognised. :func:`few_layers` is a network of a dozen layers, one
of each kind: the quickest, where a test is about what happens around a network.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families import kapao, yolov3, yolov5, yolov7
from deploykit.models.families.yolov6 import model as yolov6
from deploykit.models.families.yolov6.config import Stage, YOLOv6Config
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolox import model as yolox
from deploykit.models.layers.anchor_head import Detect, Keypoint
from deploykit.models.layers.conv import Conv
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.family import reference_of
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph

CLASSES = ("cat", "dog", "fox")
SEED = 0


def few_layers(*, num_classes: int = 2, num_keypoints: int = 0) -> GraphConfig:
    """A description with stride 16 and two levels of anchors; with keypoints, if there are any."""
    head = ["IKeypoint", ["nc", "anchors", "nkpt"]] if num_keypoints else ["IDetect", ["nc", "anchors"]]
    return GraphConfig(
        rows=(
            [-1, 1, "ReOrg", []],
            [-1, 1, "Conv", [16, 3, 1]],
            [-1, 1, "DownC", [32]],
            [-1, 1, "RepConv", [32, 3, 1]],
            [-1, 1, "Conv", [32, 3, 2]],
            [-1, 1, "Conv", [32, 1, 1, "None", 1, "nn.LeakyReLU(0.1)"]],
            [-1, 1, "MP", []],
            [-1, 1, "SPPCSPC", [16]],
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 5], 1, "Concat", [1]],
            [-1, 1, "Conv", [16, 3, 1]],
            [[10, 7], 1, *head],
        ),
        num_classes=num_classes,
        num_keypoints=num_keypoints,
        depthwise_keypoints=True,
        anchors=((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146)),
    )


def older_layers(*, num_classes: int = 2, num_keypoints: int = 3) -> GraphConfig:
    """The same of the layers that YOLOv5 had before 6.0, with ghost blocks and a keypoint head without implicits."""
    return GraphConfig(
        rows=(
            [-1, 1, "Focus", [16, 3]],
            [-1, 2, "BottleneckCSP", [16]],
            [-1, 1, "GhostConv", [32, 3, 2]],
            [-1, 1, "GhostBottleneck", [32, 3, 2]],
            [-1, 1, "C3Ghost", [32]],
            [-1, 1, "SPP", [32, [3, 5]]],
            [-1, 1, "C3", [16, False]],
            [-1, 1, "DWConv", [32, 3, 2]],
            [[6, 7], 1, "Detect", ["nc", "anchors", "nkpt"]],
        ),
        num_classes=num_classes,
        num_keypoints=num_keypoints,
        activation="nn.Hardswish()",
        anchors=((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146)),
    )


def pose_objects(*, num_classes: int = 3, num_keypoints: int = 0) -> GraphConfig:
    """The few layers with KaPao's head: a person, and two keypoints as classes."""
    config = few_layers(num_classes=num_classes)
    head = [config.rows[-1][0], 1, "Detect", ["nc", "anchors"]]
    return replace(config, rows=(*config.rows[:-1], head), num_coords=2 * (num_classes - 1))


def narrow(
    name: str, num_classes: int = 3, *, width: float = 0.125, num_keypoints: int = 4, training: bool = False
) -> GraphConfig:
    """A registered variant with fewer channels."""
    if name.startswith("kapao"):
        return kapao.config_of(name, num_classes, width=width)
    if name.startswith("yolov3"):
        return yolov3.config_of(name, num_classes, width=width, depth=0.1)
    if name.startswith("yolov5"):
        return yolov5.config_of(name, num_classes, width=width, num_keypoints=num_keypoints)
    return yolov7.config_of(name, num_classes, width=width, num_keypoints=num_keypoints, training=training)


def graph_of(config: GraphConfig, *, seed: int = SEED, objectness: float | None = None) -> LayerGraph:
    """The network with seeded weights; ``objectness`` sets every anchor's bias, to make it detect a lot (3) or less."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = build_graph(config)
        randomise(graph)
    if objectness is not None:
        for head in (m for m in graph.modules() if isinstance(m, Detect)):
            _set_objectness(head, objectness)
    return graph.requires_grad_(False)


def _set_objectness(head: Detect, value: float) -> None:
    """The bias of column 4 of every anchor; one anchor's columns may lie in two convolutions, laid side by side."""
    for level, conv in enumerate(head.m):
        branch = head.m_kpt[level] if isinstance(head, Keypoint) else None
        branches = [conv] if branch is None else [conv, branch[-1] if isinstance(branch, nn.Sequential) else branch]
        biases = [cast(Tensor, b.bias).data for b in branches]
        cells = torch.cat(biases).view(head.num_anchors, -1)
        cells[:, 4] = value
        for bias, part in zip(biases, torch.split(cells.flatten(), [len(b) for b in biases]), strict=True):
            bias.copy_(part)


def yolov6_config(name: str, num_classes: int, *, width: float | None = None) -> YOLOv6Config:
    """A YOLOv6 variant's network for any number of classes; ``width`` replaces its multiple."""
    scale = yolov6.VARIANTS[name]
    return (scale if width is None else replace(scale, width=width)).config(num_classes)


def shallow(name: str, num_classes: int = 3, *, width: float = 0.0625, depth: int = 1) -> YOLOv6Config:
    """A YOLOv6 variant with fewer channels, and with no more than ``depth`` blocks a stage."""
    layout = yolov6_config(name, num_classes, width=width)
    parts: dict[str, Any] = {
        part: tuple(Stage(s.width, min(s.depth, depth), s.hidden) for s in getattr(layout, part))
        for part in ("stages", "down", "up")
    }
    return replace(layout, **parts)


def free_network_of(layout: YOLOv6Config, *, seed: int = SEED, score: float | None = None) -> YOLOv6:
    """A YOLOv6 network with seeded weights; ``score`` is the bias of every class, to make it detect a lot (0)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = YOLOv6(layout)
        randomise(network)
    if score is not None:
        for conv in network.head.cls_preds:
            nn.init.constant_(conv.bias, score)  # type: ignore[arg-type]
    return network.requires_grad_(False)


def _free_model_of(name: str, *, seed: int, score: float | None = None, **options: Any) -> ReferenceModel:
    network = free_network_of(shallow(name, **options), seed=seed, score=score)
    model = yolov6.reference_of(network, name, CLASSES[: network.head.num_classes])
    return replace(model, spec=replace(model.spec, input=replace(model.spec.input, size=(64, 64))))


class FewStrides(nn.Module):
    """Features at strides 8, 16 and 32 by one convolution each, where a test is about what happens behind them."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        self.layers = nn.ModuleList([Conv(3, first, 8, 8, 0), Conv(first, second, 3, 2), Conv(second, third, 3, 2)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return tuple(features)


def yolox_network(
    name: str,
    num_classes: int = 3,
    *,
    width: float = 0.125,
    num_keypoints: int = 4,
    seed: int = SEED,
    objectness: float | None = None,
) -> yolox.Yolox:
    """A registered YOLOX with fewer channels and seeded weights; ``few-yolox`` and ``few-yolox-pose``: a head only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        variant = yolox.VARIANTS[{"few-yolox": "yolox_s", "few-yolox-pose": "yolox_s_pose"}.get(name, name)]
        network = yolox.build_yolox(variant.config(num_classes, num_keypoints=num_keypoints, width=width))
        if name.startswith("few"):
            stems = [cast(Conv, stem).conv.in_channels for stem in network.head.stems]
            network.backbone = FewStrides((stems[0], stems[1], stems[2])).eval()  # type: ignore[assignment]
        randomise(network)
    if objectness is not None:
        for last in network.head.obj_preds:
            nn.init.constant_(cast(Tensor, last.bias), objectness)
    return network.requires_grad_(False)


def write_yolox(path: Path, name: str, num_classes: int = 3, **options: Any) -> Path:
    """Save a narrow YOLOX as its project does: a state dict in float32 under ``model``."""
    torch.save({"model": yolox_network(name, num_classes, **options).state_dict(), "start_epoch": 300}, path)
    return path


@cache
def model_of(config_key: str, /, *, seed: int = SEED, **options: Any) -> ReferenceModel:
    """``few``, ``older``, ``pose objects`` (the functions above) or a variant's name, with its options; one object a
    combination."""
    if config_key.startswith("yolov6"):
        return _free_model_of(config_key, seed=seed, **options)
    if "yolox" in config_key:
        network = yolox_network(config_key, seed=seed, **options)
        return yolox.reference_of(network, config_key, CLASSES[: network.head.num_classes], 64)
    objectness = options.pop("objectness", None)
    small = {"few": few_layers, "older": older_layers, "pose objects": pose_objects}
    config = small[config_key](**options) if config_key in small else narrow(config_key, **options)
    graph = graph_of(config, seed=seed, objectness=objectness)
    classes = None if config.num_coords else CLASSES[: config.num_classes]
    model = reference_of(graph, config_key, "narrow", classes, 64)
    side = max(64, model.stride)
    return replace(model, spec=replace(model.spec, input=replace(model.spec.input, size=(side, side))))


def write_checkpoint(
    path: Path,
    config: GraphConfig,
    *,
    seed: int = SEED,
    objectness: float | None = None,
    described: GraphConfig | None = None,
) -> Path:
    """Save a network as the YOLOv7 project does: in half precision, pickled, its description inside.

    ``described`` puts another description than the network's own into the file.
    """
    graph: Any = graph_of(config, seed=seed, objectness=objectness).half()
    said = described or config
    graph.yaml = {
        "nc": said.num_classes,
        "nkpt": said.num_keypoints,
        "dw_conv_kpt": said.depthwise_keypoints,
        "depth_multiple": said.depth_multiple,
        "width_multiple": said.width_multiple,
        "anchors": [list(level) for level in said.anchors],
        "backbone": [list(row) for row in said.rows[:-1]],
        "head": [list(said.rows[-1])],
    }
    graph.names = list(CLASSES[: config.num_classes])
    torch.save({"epoch": -1, "model": graph}, path)
    return path


def with_layer(config: GraphConfig, kind: str) -> GraphConfig:
    """The description with another layer in the place of the first convolution."""
    return replace(config, rows=(config.rows[0], [-1, 1, kind, [16, 3, 1]], *config.rows[2:]))
