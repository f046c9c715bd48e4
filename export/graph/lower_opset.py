"""The same graph in an older operator set.

The exporter writes opset 18 and newer. Between 13 and 18 most operators only learned more types; the others have a rule
here, which writes the older form or refuses. An operator whose definition is the same in both opsets stays as it is.
The definitions are ONNX's own (https://onnx.ai/onnx/operators, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from deploykit.errors import ExportError

__all__ = ["lower_opset"]

MORE_TYPES = {
    "Add", "BatchNormalization", "Div", "GreaterOrEqual", "Identity", "If", "LeakyRelu", "LessOrEqual", "Loop", "Mul",
    "PRelu", "Relu", "Sub", "Where",
}  # fmt: skip
"""Operators that since 13 only learned types, which our graphs do not use, and attributes with the older meaning."""


class _NoOlderFormError(Exception):
    """Why a node cannot be written in the older opset."""


def lower_opset(model: ir.Model, opset: int) -> None:
    """Rewrite ``model`` in place for an opset from 13 up that is older than its own; a newer one changes nothing.

    Raises:
        ExportError: an operator has no form in that opset. The message names the lowest opset that does.
    """
    now = model.opset_imports[""]
    if opset >= now:
        return
    refused: dict[str, int] = {}
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain in ("", "ai.onnx") and _since(node, opset) != _since(node, now):
            try:
                _lower(node, opset)
            except _NoOlderFormError as e:
                refused[f"{node.op_type} ({e})"] = _since(node, now) or now
    if refused:
        raise ExportError(f"opset {opset} has no form of {', '.join(refused)}: use --opset {max(refused.values())}")
    model.opset_imports[""] = opset


def _since(node: ir.Node, opset: int) -> int | None:
    """The opset in which the definition that is valid in ``opset`` appeared; None: there is no such operator."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset).since_version)
    except onnx.defs.SchemaError:
        return None


def _lower(node: ir.Node, opset: int) -> None:
    if node.op_type in MORE_TYPES:
        return
    rule = _RULES.get(node.op_type)
    if rule is None:
        raise _NoOlderFormError("no older form is known")
    rule(node, opset)


def _drop(defaults: Mapping[str, Any]) -> Callable[[ir.Node, int], None]:
    """The rule that removes attributes which the older operator lacks, if each has the value that it implies."""

    def rule(node: ir.Node, _opset: int) -> None:
        for name, default in defaults.items():
            attribute = node.attributes.pop(name, None)
            if attribute is not None and attribute.value != default:
                raise _NoOlderFormError(f"{name} {attribute.value}")

    return rule


def _axes_to_attribute(node: ir.Node, _opset: int) -> None:
    """Reduce...: axes are an attribute before 18, and no axes mean all of them."""
    noop = node.attributes.pop("noop_with_empty_axes", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        node.attributes["axes"] = ir.AttrInt64s("axes", _constant(node, 1).reshape(-1).tolist())
    elif noop is not None and noop.value:
        raise _NoOlderFormError("noop_with_empty_axes")
    node.resize_inputs(1)


def _no_axes(node: ir.Node, _opset: int) -> None:
    """Pad: the pads of all axes are given before 18."""
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise _NoOlderFormError("pads of chosen axes")
    if node.attributes.get_string("mode", "constant") == "wrap":
        raise _NoOlderFormError("mode wrap")


def _equal_parts(node: ir.Node, _opset: int) -> None:
    """Split: without sizes its outputs are equal parts before 18, and their number is not an attribute."""
    value = node.inputs[0]
    parts = node.attributes.pop("num_outputs", None)
    if parts is None or value is None or value.shape is None:
        return
    side = value.shape[node.attributes.get_int("axis", 0)]
    if isinstance(side, int) and side % len(node.outputs):
        raise _NoOlderFormError(f"{side} in {len(node.outputs)} parts")


def _resize(node: ir.Node, opset: int) -> None:
    """Resize: no antialiasing, no choice of axes and no aspect ratio to keep before 18."""
    _drop({"antialias": 0, "keep_aspect_ratio_policy": "stretch", "axes": None})(node, opset)


def _reshape(node: ir.Node, _opset: int) -> None:
    """Reshape: a zero always copies the input's side before 14, so a shape may not have one that means zero."""
    allowed = node.attributes.pop("allowzero", None)
    shape = node.inputs[1]
    known = shape is not None and shape.const_value is not None
    if allowed is not None and allowed.value and known and 0 in _constant(node, 1):
        raise _NoOlderFormError("a side of zero")


def _scatter(node: ir.Node, opset: int) -> None:
    """ScatterND, ScatterElements: sums and products since 16, extremes since 18."""
    kind = node.attributes.get_string("reduction", "none")
    if kind in ("add", "mul") and opset >= 16:
        return
    _drop({"reduction": "none"})(node, opset)


def _shape(node: ir.Node, _opset: int) -> None:
    """Shape: it gives all sides before 15, so a Slice takes those that are wanted."""
    start, end = node.attributes.pop("start", None), node.attributes.pop("end", None)
    if start is None and end is None:
        return
    first = 0 if start is None else int(start.value)
    last = np.iinfo(np.int64).max if end is None else int(end.value)
    sides = ir.node("Shape", node.inputs)
    cut = [_stored(node, f"{name}_{value}", np.array([value])) for name, value in (("start", first), ("end", last))]
    _replace(node, [sides, ir.node("Slice", [sides.outputs[0], *cut])])


def _layer_norm(node: ir.Node, _opset: int) -> None:
    """LayerNormalization (17): mean and deviation by basic operators, in fp32 as the operator computes them."""
    value, scale = node.inputs[0], node.inputs[1]
    shift = node.inputs[2] if len(node.inputs) > 2 else None
    axis, epsilon = node.attributes.get_int("axis", -1), node.attributes.get_float("epsilon", 1e-5)
    if axis != -1 or any(output.uses() for output in node.outputs[1:]):
        raise _NoOlderFormError("over several axes, or with its mean as an output")
    assert value is not None
    assert scale is not None
    half = scale.dtype if scale.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else None
    made: list[ir.Node] = []

    def add(kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        made.append(ir.node(kind, inputs, attributes))
        return made[-1].outputs[0]

    exact = value if half is None else add("Cast", value, to=ir.DataType.FLOAT)
    centred = add("Sub", exact, add("ReduceMean", exact, axes=[-1], keepdims=1))
    variance = add("ReduceMean", add("Mul", centred, centred), axes=[-1], keepdims=1)
    small = _stored(node, f"epsilon_{epsilon:g}", np.array(epsilon, np.float32))
    result = add("Div", centred, add("Sqrt", add("Add", variance, small)))
    result = add("Mul", result if half is None else add("Cast", result, to=half), scale)
    if shift is not None:
        add("Add", result, shift)
    _replace(node, made)


def _hard_swish(node: ir.Node, _opset: int) -> None:
    """HardSwish (14): x HardSigmoid(x) with a slope of 1/6."""
    gate = ir.node("HardSigmoid", node.inputs, {"alpha": 1 / 6, "beta": 0.5})
    _replace(node, [gate, ir.node("Mul", [node.inputs[0], gate.outputs[0]])])


def _mish(node: ir.Node, _opset: int) -> None:
    """Mish (18): x tanh(softplus(x))."""
    soft = ir.node("Softplus", node.inputs)
    gate = ir.node("Tanh", soft.outputs)
    _replace(node, [soft, gate, ir.node("Mul", [node.inputs[0], gate.outputs[0]])])


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

_RULES: dict[str, Callable[[ir.Node, int], None]] = {
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), _axes_to_attribute),
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
    "Mish": _mish,
    "Pad": _no_axes,
    "Reshape": _reshape,
    "Resize": _resize,
    "RoiAlign": _drop({"coordinate_transformation_mode": "output_half_pixel"}),
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Shape": _shape,
    "Split": _equal_parts,
}


def _constant(node: ir.Node, index: int) -> np.ndarray[Any, Any]:
    """The value of an input that is a stored tensor or the output of a Constant."""
    value = node.inputs[index]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise _NoOlderFormError(f"its input {index} is computed")
    return tensor.numpy()


def _stored(node: ir.Node, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """A stored tensor of the node's graph; equal ones are one."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = f"older_{name}"
    if name not in graph.initializers:
        graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
    return graph.initializers[name]


def _replace(node: ir.Node, made: list[ir.Node]) -> None:
    """Put ``made`` in the node's place; the last one takes the name of its output."""
    graph, old, new = node.graph, node.outputs[0], made[-1].outputs[0]
    assert graph is not None
    for number, part in enumerate(made):
        part.name = f"{node.name}/{number}"
        part.outputs[0].name = f"{old.name}/{number}"
    new.name = old.name
    new.shape, new.type = old.shape, old.type
    replace_nodes_and_values(graph, node, [node], made, [old], [new])
