"""A small real ONNX network that finds coloured blocks, so that a planted image has a known answer.

The image is 64 x 64, cut into 8 x 8 cells. Each cell is one candidate row: its box, as objectness the brightest
channel's mean, and as classes the means of red and of blue. A block of pure red over one cell is one certain ``red``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit.runtime.arrays import Array
from deploykit.spec import METADATA_KEY, Fit, InputSpec, KeypointSpec, ModelSpec, RawDetections

SIDE, CELL = 64, 8
RED, BLUE = (0, 0, 255), (255, 0, 0)  # BGR


def cell_spec(*, batch: int = 1, dynamic: bool = False, channels: int = 3) -> ModelSpec:
    """The spec of the network: two classes and one keypoint, the cell's centre."""
    fit = Fit(stride=CELL, pad_value=0)
    return ModelSpec(
        task="keypoints",
        input=InputSpec(
            size=(SIDE, SIDE),
            batch=batch,
            dynamic="batch" if dynamic else "none",
            channels=channels,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            fit=fit,
        ),
        output=RawDetections(cls=(5, 7), keypoints=(7, 10)),
        classes=("red", "blue"),
        keypoints=KeypointSpec(("centre",)),
    )


def write_cell_model(
    path: Path,
    *,
    batch: int | str = 1,
    spec: ModelSpec | None = None,
    half: bool = False,
    external: bool = False,
    channels: int = 3,
) -> Path:
    """Write the network; ``batch`` a name makes it dynamic, ``spec`` goes into the metadata.

    With one channel both classes are its mean; with four the last one counts for the objectness only.
    """
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    numbers = np.float16 if half else np.float32
    n = SIDE // CELL
    x, y = np.meshgrid(np.arange(n) * CELL + CELL / 2, np.arange(n) * CELL + CELL / 2)
    boxes = np.stack([x, y, np.full_like(x, CELL), np.full_like(x, CELL)], -1).reshape(1, n * n, 4)
    points = np.concatenate([boxes[..., :2], np.ones((1, n * n, 1))], -1)
    constants = {
        "boxes": boxes.astype(numbers),
        "points": points.astype(numbers),
        "zero": np.zeros(1, numbers),
        "rows": np.array([0, channels, n * n], np.int64),
        "ends": np.array([0, min(channels, 3) - 1], np.int64),
        "channel": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["pooled", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["cells"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["cells", "channel"], ["obj"], keepdims=1),
        helper.make_node("Gather", ["cells", "ends"], ["cls"], axis=2),
        helper.make_node("Mul", ["obj", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes"], ["box"]),  # one copy for each image of the batch
        helper.make_node("Add", ["nothing", "points"], ["point"]),
        helper.make_node("Concat", ["box", "obj", "cls", "point"], ["output"], axis=2),
    ]
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("images", kind, [batch, channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", kind, [batch, n * n, 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if spec is not None:
        helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    if external:
        onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=512)
    else:
        onnx.save(model, str(path))
    return path


def planted(*blocks: tuple[int, int, tuple[int, int, int]], scale: int = 1, wide: int = 1) -> Array:
    """A black image with coloured cells (column, row, BGR colour), ``scale`` times the network's size.

    ``wide`` makes it so many times wider than high; it still fits the canvas, with the height shrunk.
    """
    image = np.zeros((SIDE * scale // wide, SIDE * scale, 3), np.uint8)
    side = CELL * scale
    for column, row, colour in blocks:
        image[row * side : (row + 1) * side, column * side : (column + 1) * side] = colour
    return image
