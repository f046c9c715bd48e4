"""Half precision: weights and activations of a graph as fp16 or bf16, with exceptions that stay in fp32.

Precision is in the graph and not in flags of a builder (TensorRT 11 has none), so one file means the same for ONNX
Runtime, TensorRT 10 and 11 and TensorRT for RTX. There is a Cast on every edge between half and fp32. These nodes stay
in fp32, and the report names the reason:

* *decode*: everything after the last convolutions and matrix products. That is arithmetic on pixels and scores, and
  fp16 resolves only half a pixel at 1000. Data movement at its beginning (Concat, Reshape, Transpose) is still half.
  The mean of a distribution over bins is decode as well, although it is a product.
* *boxes*: the same arithmetic between the layers of a detector in two stages: anchors, deltas, sorting, suppression,
  and RoiAlign, whose maps have the type of its coordinates.
* *operator*: operators that add up many values or grow quickly: means, sums, Exp, Log, Pow, and normalizations whose
  statistics ONNX does not define to be float32.
* *range*: fp16 cannot hold the values. A tensor's largest measured value is over a quarter of 65504, the largest finite
  number; or a normalization squares values that large; or an attention has large logits. bf16 has the range of fp32.
  The weights of such a layer are still stored as fp16, followed by a Cast.
* *type*: operators that ONNX's schemas do not define for the type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deploykit.errors import ExportError
from deploykit.export.options import HalfIO
from deploykit.export.precision.half_rules import (
    COMPUTE,
    DATA_MOVEMENT_OPS,
    FP32_OPS,
    LARGEST,
    boxes,
    compute_nodes,
    decode,
    lengths,
    norms,
    running_sums,
    sharp_attention,
)

__all__ = ["HalfReport", "HalfType", "to_half"]

HalfType = Literal["fp16", "bf16"]

TYPES = {"fp16": (ir.DataType.FLOAT16, "tensor(float16)"), "bf16": (ir.DataType.BFLOAT16, "tensor(bfloat16)")}
FLOAT = ir.DataType.FLOAT
LEAST_STORED = 1024  # elements; smaller constants of a layer in fp32 are not worth a Cast


@dataclass(frozen=True)
class HalfReport:
    """The result of a conversion. ``kept``: the nodes in fp32 by reason (decode, boxes, operator, range, type, asked,
    or tolerance, where a search has found them).

    ``casts``: how many Cast nodes there are. ``largest``: the largest value of any half tensor, and its name.
    ``stored``: fp32 nodes whose weights are stored as half. ``flushed``: weight -> the share of it that becomes zero.
    ``out_of_range``: tensor that a half type cannot hold -> its largest value, and the image where it was measured.
    """

    dtype: HalfType
    half_nodes: int
    kept: dict[str, tuple[str, ...]]
    casts: int
    largest: tuple[float, str] = (0.0, "")
    stored: tuple[str, ...] = ()
    flushed: dict[str, float] = field(default_factory=dict)
    out_of_range: dict[str, tuple[float, str]] = field(default_factory=dict)


def to_half(
    model: ir.Model,
    dtype: HalfType,
    *,
    largest: Mapping[str, float],
    nodes_to_exclude: Collection[str] = (),
    half_io: HalfIO = "none",
    store: bool = True,
    about: Collection[str] | None = None,
) -> HalfReport:
    """Convert a float32 graph in place.

    Args:
        model: a graph without subgraphs.
        dtype: ``fp16``, or ``bf16``, which needs opset 22 for convolutions.
        largest: the largest absolute value of each float tensor by name, measured in fp32; a missing tensor counts as
            within range (bf16 does not use the values).
        nodes_to_exclude: names of further nodes that stay in fp32.
        half_io: which of the graph's inputs and outputs become half; the others stay float32.
        store: store the weights of layers kept for their range as half, followed by a Cast.
        about: names of the nodes that the report counts; None: all.

    Raises:
        ExportError: the graph has subgraphs, or its opset has no convolution of this type.
    """
    return _Conversion(model, dtype, dict(largest), set(nodes_to_exclude), half_io, store).run(about)


class _Conversion:
    def __init__(
        self,
        model: ir.Model,
        dtype: HalfType,
        largest: dict[str, float],
        nodes_to_exclude: set[str],
        half_io: HalfIO,
        store: bool,
    ) -> None:
        self.model, self.graph, self.name = model, model.graph, dtype
        self.half, self.half_text = TYPES[dtype]
        self.largest, self.asked, self.half_io, self.store = largest, nodes_to_exclude, half_io, store
        self.opset = model.opset_imports.get("", 18)
        self.nodes = list(self.graph)
        stats_type_unspecified, range_exceeded = norms(self.nodes, self.opset, self.largest)
        self.precision_sensitive = running_sums(self.nodes) | lengths(self.nodes) | stats_type_unspecified
        self.range_exceeded = range_exceeded | sharp_attention(self.nodes, self.largest)
        self.types = _types(model)
        self.reasons: dict[ir.Node, str] = {}
        self.casts: dict[tuple[str, ir.DataType], ir.Value] = {}
        self.made: Counter[str] = Counter()

    def run(self, about: Collection[str] | None) -> HalfReport:
        for node in self.nodes:
            if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attributes(node)):
                raise ExportError(f"a graph with control flow ({node.op_type}) cannot be converted to {self.name}")
        self._decide()
        if not any(self._is_half(node) for node in compute_nodes(self.nodes)):
            raise ExportError(
                f"no convolution or matrix product could be {self.name} at opset {self.opset} (bf16 needs opset 22): "
                f"{self._why()}"
            )
        stored, flushed = self._weights()
        self._edges()
        self._interface()
        self._forget_types()
        kept: dict[str, list[str]] = {}
        counted = [node for node in self.nodes if about is None or str(node.name) in about]
        for node in counted:
            if node in self.reasons:
                kept.setdefault(self.reasons[node], []).append(str(node.name))
        return HalfReport(
            dtype=self.name,
            half_nodes=sum(self._is_half(node) for node in counted),
            kept={reason: tuple(names) for reason, names in kept.items()},
            casts=sum(node.op_type == "Cast" for node in self.graph),
            largest=self._largest_half(),
            stored=stored,
            flushed=flushed,
        )

    # Nodes that stay in fp32.

    def _decide(self) -> None:
        layers = set(compute_nodes(self.nodes))
        after, between = decode(self.nodes, layers), boxes(self.nodes, layers)
        for node in self.nodes:
            if not self._floats(node):
                continue
            reason = self._reason(node, after, between)
            if reason:
                self.reasons[node] = reason
        # Data movement at the beginning of arithmetic stays half: one Cast after it instead of several before.
        for node in self.nodes:
            if (
                self.reasons.get(node) in ("decode", "boxes")
                and node.op_type in DATA_MOVEMENT_OPS
                and self._fed_by_half(node)
            ):
                del self.reasons[node]

    def _reason(self, node: ir.Node, after: set[ir.Node], between: set[ir.Node]) -> str:
        if str(node.name) in self.asked:
            return "asked"
        if not self._defined(node):
            return "type"
        if node in after or node in between:
            return "decode" if node in after else "boxes"
        if node.op_type in FP32_OPS or node in self.precision_sensitive:
            return "operator"
        if self.name == "fp16":
            near = [v for v in (*node.inputs, *node.outputs) if v is not None]
            over = any(self.largest.get(str(v.name), 0.0) > LARGEST for v in near)
            if over or node in self.range_exceeded or self._constants_overflow(node):
                return "range"
        return ""

    def _fed_by_half(self, node: ir.Node) -> bool:
        floats = [v for v in node.inputs if v is not None and self.types.get(str(v.name)) == FLOAT]
        producers = [v.producer() for v in floats]
        return bool(floats) and all(p is not None and self._is_half(p) for p in producers)

    def _constants_overflow(self, node: ir.Node) -> bool:
        return any(
            value.size and float(np.abs(value.numpy()).max()) > LARGEST
            for value in (v.const_value for v in node.inputs if v is not None and v.is_initializer())
            if value is not None and value.dtype == FLOAT
        )

    def _floats(self, node: ir.Node) -> bool:
        return any(
            self.types.get(str(v.name)) == FLOAT for v in (*node.inputs, *node.outputs) if v is not None and v.name
        )

    def _is_half(self, node: ir.Node) -> bool:
        return node not in self.reasons and self._floats(node)

    def _defined(self, node: ir.Node) -> bool:
        """Whether ONNX defines the operator for the type, so that the type of every float output follows an input."""
        if node.domain:
            return False
        schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        variables = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        free = {p.type_str for p in schema.inputs if self.half_text in variables.get(p.type_str, ())}
        for value, parameter in _with_parameters(node.outputs, schema.outputs):
            if self.types.get(str(value.name)) == FLOAT and parameter.type_str not in free:
                return False
        ties = {parameter.type_str for _, parameter in self._float_inputs(node, schema)}
        return bool(ties & free)

    def _float_inputs(self, node: ir.Node, schema: Any) -> Iterator[tuple[ir.Value, Any]]:
        for value, parameter in _with_parameters(node.inputs, schema.inputs):
            if self.types.get(str(value.name)) == FLOAT:
                yield value, parameter

    def _why(self) -> str:
        found = Counter(self.reasons.get(node, "half") for node in compute_nodes(self.nodes))
        return ", ".join(f"{count} kept by {reason}" for reason, count in found.items()) or "there is none"

    # Weights and edges.

    def _takes(self, node: ir.Node) -> Iterator[tuple[int, ir.Value, ir.DataType]]:
        """Yield each float input of a node: its index, the value and the type in which the node takes it."""
        schema = None if node.domain else onnx.defs.get_schema(node.op_type, self.opset, "")
        variables = {} if schema is None else {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        for i, value in enumerate(node.inputs):
            if value is None or self.types.get(str(value.name)) != FLOAT:
                continue
            parameter = None if schema is None else schema.inputs[min(i, len(schema.inputs) - 1)]
            tied = parameter is not None and self.half_text in variables.get(parameter.type_str, ())
            yield i, value, self.half if self._is_half(node) and tied else FLOAT

    def _weights(self) -> tuple[tuple[str, ...], dict[str, float]]:
        """Store initializers as half if half nodes, or layers kept for their range, use them."""
        half_users: dict[str, list[tuple[ir.Node, int]]] = {}
        full_users: dict[str, list[tuple[ir.Node, int]]] = {}
        for node in self.nodes:
            for i, value, wanted in self._takes(node):
                if value.is_initializer():
                    (half_users if wanted == self.half else full_users).setdefault(str(value.name), []).append(
                        (node, i)
                    )
        stored, flushed = [], {}
        for name, value in list(self.graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.dtype != FLOAT:
                continue
            half, full = half_users.get(name, []), full_users.get(name, [])
            behind = not half and full and self._worth_storing(tensor, full)
            if not half and not behind:
                continue
            numbers = tensor.numpy()
            small = self._stored(name, numbers)
            lost = _flushed(numbers, small)
            if lost:
                flushed[name] = lost
            if behind:
                wide = self._cast(small, FLOAT)
                stored += [str(node.name) for node, _ in full]
                for node, i in full:
                    node.replace_input_with(i, wide)
            for node, i in half:
                node.replace_input_with(i, small)
            if (not full or behind) and value not in self.graph.outputs:
                self.graph.initializers.pop(name)
        return tuple(dict.fromkeys(stored)), flushed

    def _worth_storing(self, tensor: Any, users: list[tuple[ir.Node, int]]) -> bool:
        """Whether a weight is stored as half, followed by a Cast: only layers kept for their range use it."""
        if not self.store or tensor.size < LEAST_STORED or float(np.abs(tensor.numpy()).max()) > 65504.0:
            return False
        return all(self.reasons.get(node) == "range" and node.op_type in COMPUTE for node, _ in users)

    def _stored(self, name: str, numbers: Any) -> ir.Value:
        array = numbers.astype(self.half.numpy())
        value = ir.Value(
            name=f"{name}_{self.name}",
            type=ir.TensorType(self.half),
            shape=ir.Shape(numbers.shape),
            const_value=ir.tensor(array, name=f"{name}_{self.name}"),
        )
        self.graph.register_initializer(value)
        self.types[str(value.name)] = self.half
        return value

    def _edges(self) -> None:
        for node in self.nodes:
            for i, value, wanted in list(self._takes(node)):
                if value.is_initializer():
                    continue
                producer = value.producer()
                if producer is None:
                    have = self.half if self.half_io in ("input", "both") else FLOAT
                else:
                    have = self.half if self._is_half(producer) else FLOAT
                if have != wanted:
                    node.replace_input_with(i, self._cast(value, wanted))

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """Return the value in another type; all users of a type share one Cast, right after the producer."""
        key = (str(value.name), wanted)
        if key not in self.casts:
            name = f"{value.name}_as_{'fp32' if wanted == FLOAT else self.name}"
            node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"node_{name}")
            node.outputs[0].name = name
            producer = value.producer()
            if producer is not None:
                self.graph.insert_after(producer, node)
            else:
                self.graph.insert_before(self.graph[0], node)
            self.casts[key] = node.outputs[0]
        return self.casts[key]

    def _interface(self) -> None:
        """Set the types of the graph's inputs and outputs, and add Casts before outputs, which keep their names."""
        for value in self.graph.inputs:
            if self.types.get(str(value.name)) == FLOAT and self.half_io in ("input", "both"):
                value.type = ir.TensorType(self.half)
        for i, value in enumerate(self.graph.outputs):
            if self.types.get(str(value.name)) != FLOAT:
                continue
            producer = value.producer()
            have = self.half if producer is not None and self._is_half(producer) else FLOAT
            wanted = self.half if self.half_io in ("output", "both") else FLOAT
            if have == wanted:
                value.type = ir.TensorType(wanted)
                continue
            self._cast_output(i, value, wanted)

    def _cast_output(self, i: int, value: ir.Value, wanted: ir.DataType) -> None:
        """Cast an output, which keeps its name; the value before the Cast gets another one."""
        name, shape = str(value.name), value.shape
        value.name = f"{name}_{'fp32' if wanted != FLOAT else self.name}"
        node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"node_{name}_cast")
        output = node.outputs[0]
        output.name, output.shape, output.type = name, shape, ir.TensorType(wanted)
        value.type = None
        self.graph.append(node)
        self.graph.outputs[i] = output

    def _forget_types(self) -> None:
        """Drop the types of inner tensors, which were those of fp32, and their shapes, which need a type."""
        outputs = set(self.graph.outputs)
        for node in self.graph:
            for value in node.outputs:
                if value not in outputs:
                    value.type = value.shape = None

    def _largest_half(self) -> tuple[float, str]:
        tensors = (str(v.name) for node in self.nodes if self._is_half(node) for v in node.outputs)
        found = [(self.largest[name], name) for name in tensors if name in self.largest]
        return max(found, default=(0.0, ""))


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return [a for a in node.attributes.values() if isinstance(a, ir.Attr)]


def _with_parameters(values: Any, parameters: Any) -> Iterator[tuple[ir.Value, Any]]:
    """Yield each input or output that is present, with its formal parameter; the last one may be variadic."""
    for i, value in enumerate(values):
        if value is not None and value.name and parameters:
            yield value, parameters[min(i, len(parameters) - 1)]


def _flushed(wide: Any, small: ir.Value) -> float:
    """Return the share of the non-zero weights that become zero."""
    assert small.const_value is not None
    nonzero = wide != 0
    if not nonzero.any():
        return 0.0
    return float((small.const_value.numpy().astype(np.float32)[nonzero] == 0).mean())


def _types(model: ir.Model) -> dict[str, ir.DataType]:
    """Return the element type of every tensor, by ONNX's shape inference."""
    ShapeInferencePass()(model)
    values: list[Any] = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs if value.name]
    unknown = [str(value.name) for value in values if value.dtype is None]
    if unknown:
        raise ExportError(f"shape inference finds no type for {unknown[0]!r} and {len(unknown) - 1} other tensors")
    return {str(value.name): value.dtype for value in values}
