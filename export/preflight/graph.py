"""An ONNX file as the rules read it: all nodes, also of subgraphs; constants; types and ranks of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from deploykit.errors import ArtefactError
from deploykit.runtime.arrays import Array

__all__ = ["Graph", "attribute", "read_graph"]

MOST_BYTES = 1 << 20  # of a constant whose values a rule looks at; zero points and axes are smaller
INFERRED = 1 << 30  # bytes of a file whose types are inferred; protobuf copies it


@dataclass(frozen=True)
class Graph:
    """A file.

    Attributes:
        file: its path.
        model: the whole, without external weights.
        nodes: every node of the graph, of its subgraphs and of local functions.
        stored: stored tensors by name, also those of Constant nodes.
        types: the name of each tensor's element type, where it is known.
        shapes: the shape of each tensor, where its rank is known; None: a dynamic axis.
    """

    file: Path
    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    stored: dict[str, onnx.TensorProto]
    types: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 0: the file imports none."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    def constant(self, name: str) -> Array | None:
        """Return the value of a stored tensor; None: it is computed, or lies in another file, or is large."""
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() > MOST_BYTES:
            return None
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except (TypeError, ValueError):
            return None


def read_graph(file: Path) -> Graph:
    """Read a file, and infer the types of its tensors as far as that works.

    Raises:
        ArtefactError: it is no ONNX file.
    """
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as e:  # protobuf's errors have no common base class
        raise ArtefactError(f"{file} is not a whole ONNX file: {str(e).splitlines()[0]}") from e
    if not _is_text(model):
        raise ArtefactError(f"{file} is not a whole ONNX file: a name in it is not UTF-8; copy it again")
    if not model.graph.node and not model.graph.output:
        raise ArtefactError(f"{file} is not a whole ONNX file: it has no graph")
    inferred = model
    if model.ByteSize() < INFERRED:
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # a graph that is wrong; what runs it says why
            inferred = model
    nodes = tuple(_walk(model.graph)) + tuple(node for function in model.functions for node in function.node)
    stored = {tensor.name: tensor for graph in _graphs(model.graph) for tensor in graph.initializer}
    for node in nodes:
        value = attribute(node, "value") if node.op_type == "Constant" and node.output else None
        if isinstance(value, onnx.TensorProto):
            stored[node.output[0]] = value
    found = Graph(file, model, nodes, stored)
    for name, tensor in stored.items():
        found.types[name] = _type_name(file, name, tensor.data_type)
        found.shapes[name] = tuple(tensor.dims)
    for graph in _graphs(inferred.graph):
        for info in (*graph.value_info, *graph.input, *graph.output):
            if not info.type.HasField("tensor_type"):
                continue
            kind = info.type.tensor_type
            if kind.elem_type:
                found.types[info.name] = _type_name(file, info.name, kind.elem_type)
            if kind.HasField("shape"):
                sizes = kind.shape.dim
                found.shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in sizes)
    return found


def _is_text(message: Any) -> bool:
    """Return whether all texts of a message are UTF-8; protobuf gives bytes for those that are not."""
    for described, value in message.ListFields():
        if described.type not in (described.TYPE_STRING, described.TYPE_MESSAGE):
            continue
        for each in [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value:
            if isinstance(each, bytes) or (not isinstance(each, str) and not _is_text(each)):
                return False
    return True


def _type_name(file: Path, tensor: str, number: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(number))
    except ValueError as e:
        raise ArtefactError(f"{file}: the tensor {tensor!r} is of type {number}, which ONNX does not define") from e


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of an attribute; text is decoded."""
    for entry in node.attribute:
        if entry.name == name:
            value = onnx.helper.get_attribute_value(entry)
            return value.decode(errors="replace") if isinstance(value, bytes) else value
    return default


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            for inner in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                yield from _graphs(inner)


def _walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _graphs(graph):
        yield from inner.node
