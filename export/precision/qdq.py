"""Quantization of a graph to int8 or fp8: QuantizeLinear and DequantizeLinear around convolutions and matrix products.

The pairs round values to a grid, and the backend turns them into integer arithmetic: ONNX Runtime, TensorRT 10 and 11
and TensorRT for RTX all read this form. Quantization is symmetric with a zero point of 0, which TensorRT requires.
Weights have one scale per output channel, activations one per tensor.

Only convolutions and matrix products with constant weights are quantized. The decode after them is not: a box of 640
and a score of 1 on one grid of 255 steps would destroy both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from deploykit.errors import ExportError
from deploykit.export.options import QuantKind
from deploykit.export.precision.half_rules import compute_nodes, second_stage
from deploykit.runtime.arrays import Array

__all__ = [
    "SMALLEST", "QuantizationResult", "activations_of", "channel_axis", "constant", "dequantized_weight", "quantisable",
    "quantize", "quantize_weight", "range_for", "weight_of",
]  # fmt: skip

LARGEST = {"int8": 127.0, "fp8": 448.0}
TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}
SMALLEST = 2.0**-126  # smallest scale, for a channel of zeros


@dataclass(frozen=True)
class QuantizationResult:
    """The result of a quantization.

    ``layers`` are the nodes that were quantized, ``kept`` those that were not, ``tensors`` the activations with a pair;
    ``weights`` is how many values of weights are stored in the narrow type.
    """

    layers: tuple[str, ...]
    kept: tuple[str, ...]
    tensors: tuple[str, ...]
    weights: int


def quantisable(graph: Any) -> list[ir.Node]:
    """Return the convolutions and matrix products with constant weights, in the graph's order.

    The heads of a detector in two stages are none: what they give moves boxes and decides which of them stay.
    """
    heads = second_stage(graph)
    return [node for node in compute_nodes(graph) if node not in heads and _weight(node) is not None]


def weight_of(node: ir.Node) -> Array:
    """Return the weight of a layer of :func:`quantisable`."""
    array: Array = _weight(node).numpy()
    return array


def activations_of(node: ir.Node, *, outputs: bool) -> list[str]:
    """Return the names of a node's activations that are quantized: its input and, with ``outputs``, its output."""
    given = node.inputs[0]
    assert given is not None
    return [str(given.name), *([str(node.outputs[0].name)] if outputs else [])]


def quantize(
    model: ir.Model,
    ranges: Mapping[str, float],
    *,
    kind: QuantKind = "int8",
    nodes_to_exclude: Collection[str] = (),
    outputs: bool = False,
    reduce_range: bool = False,
) -> QuantizationResult:
    """Quantize a float32 graph in place.

    Args:
        model: the graph; fp8 needs opset 19.
        ranges: the range of every activation that :func:`activations_of` names.
        kind: ``int8`` or ``fp8`` (e4m3).
        nodes_to_exclude: names of nodes that stay as they are.
        outputs: quantize the output of a layer as well, which ONNX Runtime's integer convolution needs.
        reduce_range: int8 weights of 7 bits (-63 to 63), whose sums of two products fit 16 bits.

    Raises:
        ExportError: a range is missing, or the opset is too low.
    """
    opset = model.opset_imports.get("", 18)
    if kind == "fp8" and opset < 19:
        raise ExportError(f"fp8 needs opset 19, the graph has {opset}: export it with --opset 19")
    graph = model.graph
    nodes = quantisable(graph)
    chosen = [node for node in nodes if str(node.name) not in nodes_to_exclude]
    limit = 63.0 if reduce_range and kind == "int8" else LARGEST[kind]
    weights: dict[str, ir.Value] = {}
    consumers: dict[str, list[ir.Node]] = {}
    for node in chosen:
        weight = node.inputs[1]
        assert weight is not None
        axis = channel_axis(node)
        key = f"{weight.name} {axis}"
        if key not in weights:
            weights[key] = dequantized_weight(graph, node, weight, axis, kind, limit)
        node.replace_input_with(1, weights[key])
        for name in activations_of(node, outputs=False):
            consumers.setdefault(name, []).append(node)
    tensors = []
    for name, users in consumers.items():
        value = users[0].inputs[0]
        assert value is not None
        pair = _insert_qdq(graph, value, range_for(ranges, name), kind)
        for node in users:
            node.replace_input_with(0, pair)
        tensors.append(name)
    if outputs:
        for node in chosen:
            name = str(node.outputs[0].name)
            if node.outputs[0] in graph.outputs or _is_only_quantized(node.outputs[0]):
                continue
            _round_output(graph, node, range_for(ranges, name), kind)
            tensors.append(name)
    unused = [name for name, value in graph.initializers.items() if not value.uses() and value not in graph.outputs]
    for name in unused:
        graph.initializers.pop(name)
    done = {str(node.name) for node in chosen}
    stored = sum(value.const_value.size for value in _narrow(graph, kind) if value.const_value is not None)
    return QuantizationResult(
        tuple(str(node.name) for node in chosen),
        tuple(str(node.name) for node in nodes if str(node.name) not in done),
        tuple(tensors),
        stored,
    )


def quantize_weight(weight: Array, axis: int | None, kind: QuantKind, limit: float) -> tuple[Array, Array]:
    """Return the narrow values and their scales: one scale per index of ``axis``, or one for all.

    ``w`` is rounded to ``q = round(w / scale)`` with ``scale = max |w| / limit``, so that the largest weight is exact.
    """
    axes = tuple(i for i in range(weight.ndim) if i != axis)
    top = np.abs(weight).max(axis=axes, initial=0.0)
    scale = np.maximum(top.astype(np.float64) / limit, SMALLEST).astype(np.float32)
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    ratio = weight.astype(np.float32, copy=False) / scale.reshape(shape)
    if kind != "fp8":
        np.rint(ratio, out=ratio)
    np.clip(ratio, -limit, limit, out=ratio)  # in place, because the weights of a large network are many
    return ratio.astype(TYPES[kind].numpy()), scale


def _weight(node: ir.Node) -> Any:
    """Return the constant weight of a node; None if it has none."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    value = node.inputs[1]
    if not value.is_initializer() or value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
        return None
    sides = len(value.const_value.shape)  # a product with several matrices has no integer kernel in ONNX Runtime
    return value.const_value if (sides == 2 if node.op_type == "MatMul" else sides >= 2) else None


def channel_axis(node: ir.Node) -> int | None:
    """Return the axis of the weight whose indices are output channels; None if there is no such axis."""
    if node.op_type == "Conv":
        return 0
    attributes = {a.name: a.value for a in node.attributes.values() if isinstance(a, ir.Attr)}
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None  # with groups, indices repeat for each group
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return len(weight.const_value.shape) - 1


def range_for(ranges: Mapping[str, float], name: str) -> float:
    """Return the range of a tensor.

    Raises:
        ExportError: it was not measured.
    """
    if name not in ranges:
        raise ExportError(f"no range was measured for the tensor {name!r}")
    return ranges[name]


def constant(graph: Any, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    """Return a new initializer of a graph."""
    tensor = ir.tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _zero(graph: Any, kind: QuantKind) -> ir.Value:
    """Return the zero point that all activations share."""
    name = f"zero_{kind}"
    if name in graph.initializers:
        found: ir.Value = graph.initializers[name]
        return found
    return constant(graph, name, np.zeros((), TYPES[kind].numpy()), TYPES[kind])


def dequantized_weight(
    graph: Any, node: ir.Node, weight: ir.Value, axis: int | None, kind: QuantKind, limit: float
) -> ir.Value:
    """Store the weight as a narrow constant, and return the output of its DequantizeLinear."""
    assert weight.const_value is not None
    numbers, scale = quantize_weight(weight.const_value.numpy(), axis, kind, limit)
    name = (
        f"{weight.name}_{kind}" if f"{weight.name}_{kind}" not in graph.initializers else f"{weight.name}_{axis}_{kind}"
    )
    stored = constant(graph, name, numbers, TYPES[kind])
    steps = constant(graph, f"{name}_scale", scale)
    given = [stored, steps]
    if axis is not None:
        zeros = np.zeros(len(scale), TYPES[kind].numpy())
        given.append(constant(graph, f"{name}_zero", zeros, TYPES[kind]))
    else:
        given.append(_zero(graph, kind))
    attributes = {} if axis is None else {"axis": axis}
    back = ir.node("DequantizeLinear", given, attributes, name=f"{name}_dequantize")
    back.outputs[0].name = f"{name}_dequantized"
    graph.insert_before(node, back)
    return back.outputs[0]


def _qdq_nodes(graph: Any, value: ir.Value, top: float, kind: QuantKind) -> tuple[ir.Node, ir.Node]:
    """Return the pair of nodes that rounds a value to its grid."""
    step = np.float32(max(top / LARGEST[kind], SMALLEST))
    scale = constant(graph, f"{value.name}_scale", np.array(step))
    there = ir.node("QuantizeLinear", [value, scale, _zero(graph, kind)], name=f"{value.name}_quantize")
    there.outputs[0].name = f"{value.name}_{kind}"
    back = ir.node("DequantizeLinear", [there.outputs[0], scale, _zero(graph, kind)], name=f"{value.name}_dequantize")
    back.outputs[0].name = f"{value.name}_dequantized"
    return there, back


def _insert_qdq(graph: Any, value: ir.Value, top: float, kind: QuantKind) -> ir.Value:
    there, back = _qdq_nodes(graph, value, top, kind)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [there, back])
    else:
        graph.insert_after(producer, [there, back])
    return back.outputs[0]


def _is_only_quantized(value: ir.Value) -> bool:
    """Whether all consumers of a value quantize it already."""
    return all(user.op_type == "QuantizeLinear" for user, _ in value.uses())


def _round_output(graph: Any, node: ir.Node, top: float, kind: QuantKind) -> None:
    value = node.outputs[0]
    users = list(value.uses())
    there, back = _qdq_nodes(graph, value, top, kind)
    graph.insert_after(node, [there, back])
    for user, index in users:
        user.replace_input_with(index, back.outputs[0])


def _narrow(graph: Any, kind: QuantKind) -> list[ir.Value]:
    return [v for v in graph.initializers.values() if v.dtype == TYPES[kind] and str(v.name).endswith(f"_{kind}")]
