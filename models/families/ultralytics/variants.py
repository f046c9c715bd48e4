"""The published networks of the ultralytics package by name: their layers, multiples and sizes.

Facts from the published model descriptions (AGPL-3.0); the code is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from deploykit.models.families.ultralytics import rows
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.yolo_graph.description import MAX_CHANNELS

__all__ = ["Variant", "description_of", "variants"]

Scale = tuple[float, float, int]
"""Depth, width and the largest number of channels before the width."""

V8: dict[str, Scale] = {
    "n": (0.33, 0.25, 1024), "s": (0.33, 0.50, 1024), "m": (0.67, 0.75, 768), "l": (1.0, 1.0, 512),
    "x": (1.0, 1.25, 512),
}  # fmt: skip
V8_CLASSIFIERS: dict[str, Scale] = {size: (depth, width, 1024) for size, (depth, width, _) in V8.items()}
V10: dict[str, Scale] = {**V8, "b": (0.67, 1.0, 512)}
V11: dict[str, Scale] = {
    "n": (0.50, 0.25, 1024), "s": (0.50, 0.50, 1024), "m": (0.50, 1.0, 512), "l": (1.0, 1.0, 512),
    "x": (1.0, 1.5, 512),
}  # fmt: skip
V5: dict[str, Scale] = {
    "n": (0.33, 0.25, MAX_CHANNELS), "s": (0.33, 0.50, MAX_CHANNELS), "m": (0.67, 0.75, MAX_CHANNELS),
    "l": (1.0, 1.0, MAX_CHANNELS), "x": (1.33, 1.25, MAX_CHANNELS),
}  # fmt: skip
WHOLE: Scale = (1.0, 1.0, MAX_CHANNELS)

TASKS = {"": "Detect", "-seg": "Segment", "-pose": "Pose", "-obb": "OBB", "-cls": "Classify"}
"""What a name ends with -> its head."""

CLASSES = {"Detect": 80, "v10Detect": 80, "Segment": 80, "Segment26": 80, "Pose": 1, "Pose26": 1, "OBB": 15,
           "OBB26": 15, "Classify": 1000}  # fmt: skip
"""Of the published weights: COCO, its persons, DOTA and ImageNet."""


@dataclass(frozen=True)
class Variant:
    """A published network.

    Attributes:
        family: its name, for people.
        description: its layers.
        size: pixels a side that it is used with.
    """

    family: str
    description: Description
    size: int


@cache
def variants() -> Mapping[str, Variant]:
    """Every published network by its name, with underscores: ``yolo11n_pose``."""
    found: dict[str, Variant] = {}

    def add(
        name: str, family: str, layers: rows.Rows, scale: Scale, size: str = "", side: int = 0, **more: Any
    ) -> None:
        depth, width, limit = scale
        head = str(layers[-1][2])
        side = side or {"Classify": 224, "OBB": 1024, "OBB26": 1024}.get(head, 640)
        first = 4 if name.endswith("-p2") else 16 if name == "yolov3-tinyu" else 8
        levels = 0 if head == "Classify" else len(layers[-1][0])
        description = Description(
            layers,
            CLASSES[head],
            depth=depth,
            width=width,
            max_channels=limit,
            size=size,
            strides=tuple(first * 2**level for level in range(levels)),
            **more,
        )
        found[name.replace("-", "_")] = Variant(family, description, side)

    for suffix, head in TASKS.items():
        scales = V8_CLASSIFIERS if head == "Classify" else V8
        for size, scale in scales.items():
            add(f"yolov8{size}{suffix}", "YOLOv8", rows.v8(head), scale, size)
        for size, scale in V11.items():
            add(f"yolo11{size}{suffix}", "YOLO11", rows.v11(head), scale, size)
            add(f"yolo12{size}{suffix}", "YOLO12", rows.v12(head), scale, size)
            dual: dict[str, Any] = {} if head == "Classify" else {"reg_max": 1, "dual": True}
            add(f"yolo26{size}{suffix}", "YOLO26", rows.v26(head), scale, size, **dual)
    for size, scale in V8.items():
        add(f"yolov8{size}-p2", "YOLOv8", rows.v8("Detect", "p2"), scale, size)
        for suffix in ("", "-seg", "-pose"):
            add(f"yolov8{size}{suffix}-p6", "YOLOv8", rows.v8(TASKS[suffix], "p6"), scale, size, 1280)
    for size, scale in V11.items():
        add(f"yolo26{size}-p2", "YOLO26", rows.v26("Detect", "p2"), scale, size, reg_max=1, dual=True)
        add(f"yolo26{size}-p6", "YOLO26", rows.v26("Detect", "p6"), scale, size, 1280, reg_max=1, dual=True)
    for size, scale in V10.items():
        add(f"yolov10{size}", "YOLOv10", rows.v10(size), scale, size, dual=True)
    for size in rows.SIZES_OF_V9:
        add(f"yolov9{size}", "YOLOv9", rows.v9(size, "Detect"), WHOLE)
    add("yolov9e", "YOLOv9", rows.v9e("Detect"), WHOLE)
    add("yolov9c-seg", "YOLOv9", rows.v9("c", "Segment"), WHOLE)
    add("yolov9e-seg", "YOLOv9", rows.v9e("Segment"), WHOLE)
    for size, scale in V5.items():
        add(f"yolov5{size}u", "YOLOv5u", rows.v5(), scale, size)
        add(f"yolov5{size}6u", "YOLOv5u", rows.v5("p6"), scale, size, 1280)
    add("yolov3u", "YOLOv3u", rows.v3(), WHOLE)
    add("yolov3-sppu", "YOLOv3u", rows.v3("spp"), WHOLE)
    add("yolov3-tinyu", "YOLOv3u", rows.v3_tiny(), WHOLE)
    return found


def description_of(name: str, num_classes: int | None = None) -> Description:
    """The description of a published network, for any number of classes (None: as published)."""
    description = variants()[name].description
    return description if num_classes is None else replace(description, num_classes=num_classes)
