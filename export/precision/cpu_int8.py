"""Quantization to int8 for ONNX Runtime's integer kernels on a CPU: whole runs of layers stay in 8 bits.

:mod:`deploykit.export.precision.qdq` rounds the inputs of layers, which is all that TensorRT wants. ONNX Runtime then
has a float output to give, and computes in float with 8-bit weights. Here everything between two quantized layers is
rounded: what a layer gives, activations, sums, concatenations and what only moves values. ONNX Runtime turns such a
node and the pairs around it into one integer kernel; an activation becomes a table of 256 values.

Activations are uint8 with a zero point, which the CPU's kernels want and TensorRT refuses. The zero point is that of
the operator before: the smallest value of a ReLU is 0 and of a SiLU -0.28, whatever the image, so that nearly all 256
steps serve the values above. A range is measured as for the other form: from absolute values.

What leads to no further quantized layer stays float: the last layers of a head, whose boxes and scores would share one
grid, compute in float from rounded inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from deploykit.export.precision.qdq import (
    SMALLEST,
    QuantizationResult,
    channel_axis,
    constant,
    dequantized_weight,
    quantisable,
    range_for,
)
from deploykit.spec import InputSpec

__all__ = ["quantize_for_cpu", "rounded_tensors"]

MOVES = {"Flatten", "Identity", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators whose outputs have the grid of their first input; a MaxPool chooses, a Resize must be nearest."""
COMPUTES = {
    "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu",
    "Sigmoid", "Tanh",
}  # fmt: skip
"""Operators that have an integer kernel, or cost little between two roundings."""
LOWEST: dict[str, float] = {"Relu": 0.0, "Sigmoid": 0.0, "HardSigmoid": 0.0, "HardSwish": -0.375}
HIGHEST: dict[str, float] = {"Sigmoid": 1.0, "HardSigmoid": 1.0}
LOWEST_SILU = -0.2785
STEPS, LIMIT, REDUCED = 255.0, 127.0, 63.0


def rounded_tensors(graph: Any) -> list[str]:
    """Return the names of all tensors of which :func:`quantize_for_cpu` may ask for the range."""
    layers = quantisable(graph)
    names = dict.fromkeys(_named(node.inputs[0]) for node in layers)
    before = 0
    while len(names) > before:  # what has a range lets further nodes be rounded, whose ranges are then asked for
        before = len(names)
        between = _between(graph, layers, names)
        own = (node for node in between if node.op_type not in MOVES and node.op_type not in HIGHEST)
        names |= dict.fromkeys(_named(value) for node in own for value in node.outputs)
    return list(names)


def quantize_for_cpu(
    model: ir.Model,
    ranges: Mapping[str, float],
    canvas: InputSpec,
    *,
    nodes_to_exclude: Collection[str] = (),
    reduce_range: bool = False,
) -> QuantizationResult:
    """Quantize a float32 graph in place.

    Args:
        model: the graph.
        ranges: the range of every activation that :func:`rounded_tensors` names.
        canvas: the input, which tells whether its values can be below 0.
        nodes_to_exclude: names of layers that stay as they are.
        reduce_range: weights of 7 bits (-63 to 63), whose sums of two products fit 16 bits.

    Raises:
        ExportError: a range is missing.
    """
    graph = model.graph
    every = quantisable(graph)
    layers = [node for node in every if str(node.name) not in nodes_to_exclude]
    between = _between(graph, layers, ranges)
    values = dict.fromkeys(value for node in between for value in node.outputs)
    chosen = {id(node) for node in layers}
    users = [*layers, *(node for node in between if id(node) not in chosen)]
    taken = (value for node in users for value in (node.inputs[:1] if id(node) in chosen else _data(node)))
    given = dict.fromkeys(value for value in taken if value is not None and value not in values)
    bounds = _Bounds(ranges, canvas, values)
    fused = {node.outputs[0] for node in between if _is_fused(node)}
    grids = {value: bounds.of(value) for value in (*given, *values)}  # before pairs come between the nodes
    weights: dict[str, ir.Value] = {}
    for node in layers:
        weight, axis = node.inputs[1], channel_axis(node)
        assert weight is not None
        key = f"{weight.name} {axis}"
        if key not in weights:
            limit = REDUCED if reduce_range else LIMIT
            weights[key] = dequantized_weight(graph, node, weight, axis, "int8", limit)
        node.replace_input_with(1, weights[key])
    for value in (*given, *values):
        if value not in fused:
            _round(graph, value, *grids[value], users=None if value in values else users)
    for name in [n for n, value in graph.initializers.items() if not value.uses() and value not in graph.outputs]:
        graph.initializers.pop(name)
    stored = [value for value in graph.initializers.values() if str(value.name).endswith("_int8")]
    return QuantizationResult(
        tuple(str(node.name) for node in layers),
        tuple(str(node.name) for node in every if id(node) not in chosen),
        tuple(_named(value) for value in (*given, *values) if value not in fused),
        sum(value.const_value.size for value in stored if value.const_value is not None),
    )


def _named(value: ir.Value | None) -> str:
    assert value is not None
    return str(value.name)


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that are activations."""
    inputs = node.inputs[:1] if node.op_type in MOVES or node.op_type == "Clip" else node.inputs
    return [value for value in inputs if value is not None]


def _between(graph: Any, layers: Iterable[ir.Node], measured: Collection[str]) -> list[ir.Node]:
    """Return the quantized layers and the nodes after them whose outputs lead to a further one, in the graph's order.

    The inputs of such a node come from other ones; of several, one is enough where the others are ``measured``. None of
    its outputs is an output of the graph.
    """
    chosen = {id(node) for node in layers}
    reached: list[ir.Node] = []
    have: set[ir.Value] = set()
    for node in graph:
        can = id(node) in chosen or (_can_be_rounded(node) and _is_reached(node, have, measured))
        if can and not any(value in graph.outputs for value in node.outputs):
            reached.append(node)
            have |= set(node.outputs)
    needed: set[int] = set()
    for node in reversed(reached):
        users = [(user, index) for value in node.outputs for user, index in value.uses()]
        if any(index == 0 if id(user) in chosen else id(user) in needed for user, index in users):
            needed.add(id(node))
    return [node for node in reached if id(node) in needed]


def _is_reached(node: ir.Node, have: Collection[ir.Value], measured: Collection[str]) -> bool:
    data = _data(node)
    return any(one in have for one in data) and all(one in have or _named(one) in measured for one in data)


def _can_be_rounded(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return False
    return node.op_type in MOVES or node.op_type in COMPUTES


def _is_fused(node: ir.Node) -> bool:
    """Whether a layer's only consumer is a ReLU, which ONNX Runtime takes into the layer: nothing lies between them."""
    users = [user for value in node.outputs for user, _ in value.uses()]
    return node.op_type == "Conv" and len(users) == 1 and users[0].op_type == "Relu"


class _Bounds:
    """The smallest and the largest value of each tensor's grid."""

    def __init__(self, ranges: Mapping[str, float], canvas: InputSpec, values: Collection[ir.Value]) -> None:
        self._ranges, self._values = ranges, values
        self._found: dict[ir.Value, tuple[float, float]] = {}
        positive = all(std * canvas.scale > 0 >= mean for mean, std in zip(canvas.mean, canvas.std, strict=True))
        self._lowest_input = 0.0 if positive else None

    def of(self, value: ir.Value) -> tuple[float, float]:
        """Of a value; those that it comes from are asked for before."""
        if value not in self._found:
            self._found[value] = self._of(value)
        return self._found[value]

    def _of(self, value: ir.Value) -> tuple[float, float]:
        node = value.producer()
        if node is not None and value in self._values:
            if node.op_type in MOVES:
                return self.of(_data(node)[0])
            if node.op_type in HIGHEST:
                return LOWEST[node.op_type], HIGHEST[node.op_type]
        top = range_for(self._ranges, _named(value))
        lowest = self._lowest_input if node is None else self._lowest(node, value)
        return (-top if lowest is None else max(-top, lowest)), top

    def _lowest(self, node: ir.Node, value: ir.Value) -> float | None:
        """Return what the operator cannot fall below, whatever its inputs; None: nothing is known."""
        if _is_silu(node):
            return LOWEST_SILU
        if value not in self._values:
            return LOWEST.get(node.op_type)
        if node.op_type in ("Concat", "GlobalAveragePool", "AveragePool"):
            return min(self.of(one)[0] for one in _data(node))
        if node.op_type == "Add":
            return sum(self.of(one)[0] for one in _data(node))
        if node.op_type == "Mul" and all(self.of(one)[0] >= 0 for one in _data(node)):
            return 0.0
        return LOWEST.get(node.op_type)


def _is_silu(node: ir.Node) -> bool:
    """Whether a node is x * sigmoid(x)."""
    if node.op_type != "Mul":
        return False
    for value, gate in (node.inputs, reversed(node.inputs)):
        maker = None if gate is None else gate.producer()
        if maker is not None and maker.op_type == "Sigmoid" and maker.inputs[0] is value:
            return True
    return False


def _round(graph: Any, value: ir.Value, low: float, high: float, users: Collection[ir.Node] | None) -> None:
    """Put a pair that rounds to uint8 between a value and these users; None: all that use it."""
    maker, name = value.producer(), _named(value)
    scale, zero = _grid_before(maker) or _grid(graph, name, low, high)
    uses = [(user, index) for user, index in value.uses() if users is None or user in users]
    there = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}_quantize")
    there.outputs[0].name = f"{name}_uint8"
    back = ir.node("DequantizeLinear", [there.outputs[0], scale, zero], name=f"{name}_dequantize")
    back.outputs[0].name = f"{name}_dequantized"
    if maker is None:
        graph.insert_before(graph[0], [there, back])
    else:
        graph.insert_after(maker, [there, back])
    for user, index in uses:
        user.replace_input_with(index, back.outputs[0])


def _grid_before(maker: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """Return scale and zero point of the input of a node that only moves values; None: it has a grid of its own."""
    if maker is None or maker.op_type not in MOVES or maker.inputs[0] is None:
        return None
    pair = maker.inputs[0].producer()
    if pair is None or pair.op_type != "DequantizeLinear":
        return None
    scale, zero = pair.inputs[1:3]
    assert scale is not None
    assert zero is not None
    return scale, zero


def _grid(graph: Any, name: str, low: float, high: float) -> tuple[ir.Value, ir.Value]:
    step = np.float32(max((high - low) / STEPS, SMALLEST))
    zero = np.uint8(np.clip(np.round(-low / step), 0, STEPS))
    return constant(graph, f"{name}_scale", np.array(step)), constant(graph, f"{name}_zero", np.array(zero))
