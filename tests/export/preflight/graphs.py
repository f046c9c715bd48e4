"""Graphs of a node or two, each with something that a runtime may refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE = ("x", TensorProto.FLOAT, [1, 3, 8, 8])


def write_graph(
    file: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    stored: Mapping[str, Any] | None = None,
    inputs: Sequence[tuple[str, int, Sequence[Any]]] = (IMAGE,),
    output: tuple[str, int, Sequence[Any] | None] = ("y", TensorProto.FLOAT, None),
    opset: int = 18,
    domains: Sequence[str] = (),
) -> Path:
    """Write a graph whose output is ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (stored or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9 if opset > 18 else 8), str(file))
    return file


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node named after its operator; names are separated by spaces, ``-`` is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"the_{op}", **attributes)
