"""Files in the forms of other projects' exports: networks whose outputs are constants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit.runtime.arrays import Array

SIDE = 160
CELLS = 525
"""Of the grids of strides 8, 16 and 32 at 160 x 160 pixels."""
PERSON = (80.0, 60.0, 40.0, 30.0)
"""Centre, width and height in network pixels of the one object; as corners 60, 45, 100, 75."""
ULTRALYTICS = {"version": "8.3.0", "stride": "32", "batch": "1", "imgsz": f"[{SIDE}, {SIDE}]", "author": "Ultralytics"}


def write_constant(
    file: Path, outputs: Mapping[str, Array], metadata: Mapping[str, str] | None = None, batch: int | str = 1
) -> Path:
    """Write a network that takes images of 160 x 160 pixels and gives these outputs, whatever it sees."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
    ]
    stored, declared = [numpy_helper.from_array(np.array(0, np.float32), "zero")], []
    for name, value in outputs.items():
        stored.append(numpy_helper.from_array(value.astype(np.float32), f"{name}_values"))
        whole = np.issubdtype(value.dtype, np.integer)
        nodes.append(helper.make_node("Add", [f"{name}_values", "nothing"], [f"{name}_sum" if whole else name]))
        if whole:
            nodes.append(helper.make_node("Cast", [f"{name}_sum"], [name], to=TensorProto.INT32))
        kind = TensorProto.INT32 if whole else TensorProto.FLOAT
        declared.append(helper.make_tensor_value_info(name, kind, list(value.shape)))
    graph = helper.make_graph(nodes, "g", [image], declared, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, str(file))
    return file


def rows(columns: int, *, count: int = CELLS) -> Array:
    """``(count, columns)`` with a box in every row and no score, but for row 7, which is the person's."""
    found = np.zeros((count, columns), np.float32)
    found[:, :4] = np.random.default_rng(0).uniform(1, SIDE - 1, (count, 4))
    found[7, :4] = PERSON
    return found


def names(count: int) -> str:
    """Class names as the text of a Python dictionary: person, then numbered ones."""
    return str({i: "person" if i == 0 else f"class{i}" for i in range(count)})


def v8(classes: int = 3, extra: int = 0, **values: Any) -> Array:
    """``(1, 4 + classes + extra, 525)``, the person with a score of 0.9."""
    found = rows(4 + classes + extra)
    found[7, 4] = 0.9
    if extra:
        found[7, 4 + classes :] = np.arange(extra) % 3 * 0.25
    return found.T[None]


def v5(classes: int = 3, *, extra: int = 0, count: int = 3 * CELLS) -> Array:
    """``(1, N, 5 + classes + extra)``, the person with an objectness of 0.9 and a class score of 1."""
    found = rows(5 + classes + extra, count=count)
    found[7, 4:6] = 0.9, 1.0
    return found[None]
