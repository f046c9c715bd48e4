"""Description: the layers of a network as the ultralytics package describes one, and the numbers beside them.

Facts from the published model descriptions (the package is AGPL-3.0); the code is ours. Nothing of a description is
evaluated: names and numbers are looked up, and what is out of bounds is refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.errors import CheckpointError
from deploykit.models.yolo_graph.description import MAX_CHANNELS, MAX_ENTRIES, MAX_ROWS, REFUSALS, Row
from deploykit.models.yolo_graph.layer_table import activation

__all__ = ["ADVICE", "DEPTHWISE_CLASSES", "HEADS", "Description", "task_of_rows"]

HEADS = {
    "Detect": "detect",
    "v10Detect": "detect",
    "Segment": "instances",
    "Segment26": "instances",
    "Pose": "keypoints",
    "Pose26": "keypoints",
    "OBB": "oriented",
    "OBB26": "oriented",
    "Classify": "classify",
}
"""The last layer of a network -> its task."""

DEPTHWISE_CLASSES = frozenset({"C3k2", "A2C2f", "C2fCIB"})
"""A network with one of these layers predicts classes by depthwise convolutions."""

ADVICE = "export it to ONNX with the package itself, and deploykit runs that file (docs/guides/foreign-onnx.md)"
"""What to do with a network of the package that is not built."""

COCO_POSE = (17, 3)
MAX_REASON = 200  # characters of what Python says of a value, which may be a megabyte long
DFL_BINS = 16


@dataclass(frozen=True)
class Description:
    """What a description says.

    Attributes:
        rows: ``[from, repeats, layer, arguments]`` of every layer.
        num_classes: as the head has them.
        depth, width: what repeats and channels are multiplied by.
        max_channels: channels of a row above this are taken as this, before they are multiplied.
        size: the letter of the size; m, l and x have other blocks than n and s. Empty: there is none.
        kpt_shape: keypoints of an object, and the values of each, 2 or 3.
        reg_max: bins of a distance; 1: the distance itself is predicted.
        dual: the head has a second branch whose detections need no NMS.
        channels: of the image.
        activation: of every convolution whose row does not name one; empty: SiLU.
        strides: pixels of a cell of each level; empty: they are found by running shapes.

    Raises:
        CheckpointError: a number that no model has.
    """

    rows: tuple[Row, ...]
    num_classes: int
    depth: float = 1.0
    width: float = 1.0
    max_channels: int = MAX_CHANNELS
    size: str = ""
    kpt_shape: tuple[int, int] = COCO_POSE
    reg_max: int = DFL_BINS
    dual: bool = False
    channels: int = 3
    activation: str = ""
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.rows) <= MAX_ROWS:
            raise CheckpointError(f"a model's description has 2 to {MAX_ROWS} layers, this one has {len(self.rows)}")
        counts = {"classes": self.num_classes, "channels": self.channels, "max_channels": self.max_channels}
        counts |= {"keypoints": self.kpt_shape[0], "reg_max": self.reg_max}
        for name, value in counts.items():
            if not 1 <= value <= MAX_CHANNELS:
                raise CheckpointError(
                    f"a model's {name} are 1 to {MAX_CHANNELS}, its description says {reprlib.repr(value)}"
                )
        if self.kpt_shape[1] not in (2, 3):
            raise CheckpointError(f"a keypoint has 2 or 3 values, its description says {self.kpt_shape[1]}")
        for name, multiple in (("depth", self.depth), ("width", self.width)):
            if not 0.0 < multiple <= MAX_ENTRIES:  # a NaN must fail
                raise CheckpointError(
                    f"a model's {name} is over 0 and up to {MAX_ENTRIES}, its description says {multiple}"
                )

    @property
    def head(self) -> str:
        """The name of the last layer."""
        return str(self.rows[-1][2])

    @staticmethod
    def from_yaml(yaml: Mapping[str, Any]) -> Description:
        """Read the ``yaml`` dictionary that a checkpoint of the package carries.

        Raises:
            CheckpointError: a part is missing, of another type or out of range.
        """
        try:
            rows = (*yaml["backbone"], *yaml["head"])
            size, (depth, width, limit) = _scale(yaml)
            keypoints = tuple(int(n) for n in yaml.get("kpt_shape") or COCO_POSE)
            if len(keypoints) != 2:
                raise ValueError(f"its kpt_shape is {reprlib.repr(keypoints)}, expected two numbers")
            named = yaml.get("activation") or ""
            if named:
                activation(named)
            return Description(
                rows=rows,
                num_classes=int(yaml["nc"]),
                depth=float(depth),
                width=float(width),
                max_channels=int(min(limit, MAX_CHANNELS)),
                size=size,
                kpt_shape=(keypoints[0], keypoints[1]),
                reg_max=int(yaml.get("reg_max", DFL_BINS)),
                dual=bool(yaml.get("end2end", False)) or rows[-1][2] == "v10Detect",
                channels=int(yaml.get("channels") or yaml.get("ch") or 3),
                activation=named,
            )
        except KeyError as e:
            raise CheckpointError(
                f"the checkpoint's model description has no {e.args[0]!r}, expected backbone, head and nc"
            ) from e
        except REFUSALS as e:
            reason = str(e).partition("\n")[0][:MAX_REASON]
            raise CheckpointError(f"the checkpoint's model description cannot be read: {reason}") from e


def _scale(yaml: Mapping[str, Any]) -> tuple[str, tuple[float, float, float]]:
    """The letter of the size, and its depth, width and largest number of channels."""
    scales = yaml.get("scales")
    if not scales:
        return "", (yaml.get("depth_multiple", 1.0), yaml.get("width_multiple", 1.0), math.inf)
    size = yaml.get("scale") or next(iter(scales))
    if size not in scales:
        raise ValueError(f"its scale {reprlib.repr(size)} is not one of {', '.join(map(str, scales))[:64]}")
    depth, width, limit = scales[size]
    return str(size), (depth, width, limit)


def task_of_rows(yaml: Mapping[str, Any]) -> str:
    """The task of the last row of a description; empty: its head is none of :data:`HEADS`."""
    rows = yaml.get("head")
    last = rows[-1] if isinstance(rows, (list, tuple)) and rows else ()
    kind = last[2] if isinstance(last, (list, tuple)) and len(last) > 2 else ""
    return HEADS.get(kind, "") if isinstance(kind, str) else ""
