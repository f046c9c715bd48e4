"""YOLOv3, YOLOv3-SPP and YOLOv3-tiny as the YOLOv5 and YOLOv7 projects describe them, and ultralytics/yolov3 with them.

Paper: arXiv 1804.02767. Original: ultralytics/yolov3 9.x and ultralytics/yolov5 ``models/hub`` (AGPL-3.0, formerly
GPL-3.0), WongKinYiu/yolov7 ``cfg/baseline`` (GPL-3.0). Layer graphs, keys, anchors and numbers are facts taken over;
the code is ours. Boxes are decoded as YOLOv5's, which is not how Darknet's own weights were trained: those are refused.
"""

from __future__ import annotations

from typing import Any

from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.registry import ReferenceModel, register_variants
from deploykit.models.signatures import layers_of
from deploykit.models.yolo_graph.description import GraphConfig, Row
from deploykit.models.yolo_graph.family import (
    HeadShape,
    classes_of,
    has_layers,
    nearest_variant,
    normal_rows,
    reference_of,
)
from deploykit.models.yolo_graph.from_checkpoint import graph_from_checkpoint
from deploykit.models.yolo_graph.layer_graph import build_graph
from deploykit.models.yolo_graph.one_class import with_score_of_one_class

FAMILY = "YOLOv3"
WEIGHTS_LICENCE = "AGPL-3.0; GPL-3.0 before 2023"

SIZE = 640
ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
ANCHORS_TINY = ((10, 14, 23, 27, 37, 58), (81, 82, 135, 169, 344, 319))
VARIANTS = ("yolov3", "yolov3_spp", "yolov3_tiny")


def _darknet53() -> list[Row]:
    rows: list[Row] = [[-1, 1, "Conv", [32, 3, 1]]]
    for c, repeats in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        rows += [[-1, 1, "Conv", [c, 3, 2]], [-1, repeats, "Bottleneck", [c]]]
    return rows


def _way_up(c: int, source: int, route: int) -> list[Row]:
    """A narrow convolution from ``source``, twice as large, beside an earlier layer."""
    return [
        [source, 1, "Conv", [c, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, route], 1, "Concat", [1]],
    ]


def layer_rows(name: str) -> list[Row]:
    """The layer graph of a variant."""
    if name == "yolov3_tiny":
        return _tiny_rows()
    return [
        *_darknet53(),
        [-1, 1, "Bottleneck", [1024, False]],
        [-1, 1, "SPP", [512, [5, 9, 13]]] if name == "yolov3_spp" else [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "Conv", [1024, 3, 1]],
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "Conv", [1024, 3, 1]],
        *_way_up(256, -2, 8),
        [-1, 1, "Bottleneck", [512, False]],
        [-1, 1, "Bottleneck", [512, False]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "Conv", [512, 3, 1]],
        *_way_up(128, -2, 6),
        [-1, 1, "Bottleneck", [256, False]],
        [-1, 2, "Bottleneck", [256, False]],
        [[27, 22, 15], 1, "Detect", ["nc", "anchors"]],
    ]


def _tiny_rows() -> list[Row]:
    rows: list[Row] = []
    for c in (16, 32, 64, 128, 256):
        rows += [[-1, 1, "Conv", [c, 3, 1]], [-1, 1, "nn.MaxPool2d", [2, 2, 0]]]
    rows += [
        [-1, 1, "Conv", [512, 3, 1]],
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
        [-1, 1, "nn.MaxPool2d", [2, 1, 0]],
        [-1, 1, "Conv", [1024, 3, 1]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "Conv", [512, 3, 1]],
        *_way_up(128, -2, 8),
        [-1, 1, "Conv", [256, 3, 1]],
        [[19, 15], 1, "Detect", ["nc", "anchors"]],
    ]
    return rows


def config_of(name: str, num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> GraphConfig:
    """A variant's whole description, for any number of classes."""
    tiny = name == "yolov3_tiny"
    return GraphConfig(
        rows=tuple(layer_rows(name)),
        num_classes=num_classes,
        anchors=ANCHORS_TINY if tiny else ANCHORS,
        depth_multiple=depth,
        width_multiple=width,
        strides=(16, 32) if tiny else (8, 16, 32),
    )


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    count = num_classes or len(COCO_CLASSES)
    graph = build_graph(config_of(name, count))
    return reference_of(graph, name, FAMILY, COCO_CLASSES if count == len(COCO_CLASSES) else None, SIZE)


def _about(name: str) -> str:
    return f"{name.replace('yolov3', 'YOLOv3').replace('_', '-')}, {SIZE} px."


register_variants(__name__, VARIANTS, _build, _about)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the model a checkpoint is of: from its own description, or from the keys and shapes of its tensors.

    Returns None when it is not one of the variants, in any width and depth.
    """
    if not has_layers(checkpoint):
        return None
    name, config = _described(checkpoint) if checkpoint.yaml else _recognised(checkpoint)
    if config is None:
        return None
    loaded = graph_from_checkpoint(checkpoint, config, name.replace("_", "-"))
    classes, unnamed = classes_of(checkpoint, loaded.graph)
    notes = (*loaded.notes, *unnamed)
    model = reference_of(loaded.graph, name, FAMILY, classes, SIZE, notes, channels=config.channels)
    model = model.assuming(*loaded.assumptions)
    # YOLOv7 describes these models too, and scores otherwise: only a pickled model tells which it is of.
    return with_score_of_one_class(model, loaded.graph.head, checkpoint, yolov7=False, published=False)


def _described(checkpoint: Checkpoint) -> tuple[str, GraphConfig | None]:
    """The variant whose rows the checkpoint describes, if any, with the multiples that it has."""
    yaml: dict[str, Any] = checkpoint.yaml or {}
    kinds = (layers_of(yaml) - {"IDetect"}) | {"Detect"}
    for name in VARIANTS:
        expected = layer_rows(name)
        if kinds == {row[2] for row in expected}:
            config = GraphConfig.from_yaml(yaml)
            if normal_rows(config.rows) == normal_rows(expected):
                multiples = {"depth": config.depth_multiple, "width": config.width_multiple}
                other = "".join(f"-{what}-{value:g}" for what, value in multiples.items() if value != 1.0)
                return f"{name}{other}", config
    return "", None


def _recognised(checkpoint: Checkpoint) -> tuple[str, GraphConfig | None]:
    """The variant that a state dict without a description is of."""
    head = HeadShape.of(checkpoint)
    if head is None or head.num_keypoints:
        return "", None
    return nearest_variant(checkpoint, head, ((name, config_of(name, head.num_classes)) for name in VARIANTS))
