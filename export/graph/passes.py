"""Passes over the exported ONNX graph; each docstring says what its pass changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from deploykit.export.graph.interface import Constant, Interface
from deploykit.runtime.arrays import Array

__all__ = [
    "arrange_gelu", "drop_weights", "initializers_of", "interface_of", "name_axes", "name_transposed",
    "register_constants", "simplify", "stamp", "strip",
]  # fmt: skip

FOLD_TAKEN, FOLD_GIVEN = 64 * 2**20, 16 * 2**20
"""The most elements that an input of constant folding may have, and its result where that is larger than the inputs.

The first limit admits the largest weights, which are transposed. The second is 64 MB in float32: the grid of a model at
1280 px takes 0.2 MB; the biases of all pairs of 64 x 64 cells take 800 MB and are computed at run time instead.
"""


def simplify(model: ir.Model) -> None:
    """Fold everything that does not depend on the input; remove what is then duplicate, idle or unused."""
    optimizer.fold_constants(model, input_size_limit=FOLD_TAKEN, output_size_limit=FOLD_GIVEN)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.DeduplicateInitializersPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    arrange_gelu(model)


def arrange_gelu(model: ir.Model) -> None:
    """Write ``x * (0.5 * (1 + erf))`` as ``(x * 0.5) * (1 + erf)``, which ONNX Runtime computes as one Gelu.

    torch's exporter writes the first form. The values are the same, because a half is a power of two.
    """
    for erf in model.graph:
        if erf.op_type != "Erf":
            continue
        total = _only_user(erf, "Add")
        halved = _only_user(total, "Mul")
        product = _only_user(halved, "Mul")
        if total is None or halved is None or product is None:
            continue
        half, x = _other_input(halved, total), _other_input(product, halved)
        stored = None if half is None else half.const_value
        if x is None or stored is None or stored.size != 1 or stored.numpy().item() != 0.5:
            continue
        for node, inputs in ((halved, (x, half)), (product, (halved.outputs[0], total.outputs[0]))):
            for index, value in enumerate(inputs):
                node.replace_input_with(index, value)
        halved.outputs[0].shape = x.shape


def _only_user(node: ir.Node | None, kind: str) -> ir.Node | None:
    """Return the node of a kind that alone uses what a node gives, which is no output of the graph."""
    users = [] if node is None or node.outputs[0].is_graph_output() else list(node.outputs[0].uses())
    return users[0].node if len(users) == 1 and users[0].node.op_type == kind else None


def _other_input(node: ir.Node, first: ir.Node) -> ir.Value | None:
    """Return the other one of two inputs."""
    others = [value for value in node.inputs if value is not first.outputs[0]]
    return others[0] if len(others) == 1 else None


def register_constants(model: ir.Model) -> None:
    """Register every constant that a node uses as an initializer of the graph.

    The exporter's own optimizer (onnxscript 0.7.2) gives the bounds of several Clips of one value the same name, then
    renames all but the last pair, which alone stays registered.
    """
    known = model.graph.initializers
    for node in model.graph:
        for i, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value.producer() is not None:
                continue
            name = str(value.name)
            if known.get(name) is value:
                continue
            number = 0
            while name in known:
                number += 1
                name = f"{value.name}_{number}"
            known[name] = made = ir.val(name, const_value=value.const_value)
            node.replace_input_with(i, made)


def name_transposed(model: ir.Model, weights: Mapping[str, Array]) -> None:
    """Name the weights of linear layers, which the exporter stores transposed and numbered, after the network's own.

    ``NAME_t`` is the transpose of the weight NAME. ``weights``: the network's, ``(rows, columns)``.
    """
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            shapes.setdefault(weight.shape[::-1], []).append(name)
    for old, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or old in weights or tensor.dtype != ir.DataType.FLOAT:
            continue
        for name in shapes.get(tuple(tensor.shape.numpy()), []):
            if f"{name}_t" not in model.graph.initializers and np.array_equal(tensor.numpy(), weights[name].T):
                model.graph.initializers.pop(old)
                value.name = tensor.name = f"{name}_t"
                model.graph.register_initializer(value)
                break


def strip(model: ir.Model) -> None:
    """Remove doc strings, metadata and inner shapes.

    The exporter writes stack traces with file paths into metadata, which makes equal exports differ. Inner shapes
    repeat what shape inference finds again, and name dynamic axes after the tracer's variables.
    """
    model.doc_string = model.graph.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    outputs = set(model.graph.outputs)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if value not in outputs:
                value.shape = None
                value.type = None


def name_axes(value: ir.Value, names: Sequence[str | int]) -> None:
    """Set the shape of an input or output: numbers, and names for dynamic axes."""
    value.shape = ir.Shape(names)


def stamp(model: ir.Model, key: str, text: str, *, name: str, version: str) -> None:
    """Write the spec where the runtime reads it, and the producer; nothing that changes from run to run."""
    model.metadata_props[key] = text
    model.producer_name, model.producer_version = "deploykit", version
    model.graph.name = name


def drop_weights(model: ir.Model) -> None:
    """Free the stored tensors of a graph that was written: onnxscript's rules keep the last graph that they matched."""
    for value in model.graph.initializers.values():
        value.const_value = None


def initializers_of(model: ir.Model) -> tuple[Constant, ...]:
    """The graph's stored tensors: weights and constants."""
    return tuple(
        Constant(name, tuple(int(side) for side in value.const_value.shape.numpy()), value.const_value.nbytes)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    )


def interface_of(values: Sequence[ir.Value]) -> tuple[Interface, ...]:
    """Names, types and shapes of inputs or outputs."""
    found = []
    for value in values:
        sides = [side if isinstance(side, int) else str(side.value) for side in value.shape or ()]
        dtype = value.dtype.numpy().name if value.dtype is not None else "unknown"
        found.append(Interface(str(value.name), dtype, tuple(sides)))
    return tuple(found)
