"""A graph of another project as one that takes images as :mod:`deploykit.export.sessions.fed` feeds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploykit.export.sessions.fed import LAST, ImageInput

__all__ = ["Fed", "with_image_input"]


@dataclass(frozen=True, eq=False)
class _Replaced:
    """An input of a graph, and the nodes that give its value in its place."""

    name: str
    value: ir.Value
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Fed:
    """What was done to a graph to feed it by images: its inputs before, and what stands in the place of some."""

    inputs: tuple[ir.Value, ...]
    replaced: tuple[_Replaced, ...]

    def undo(self, model: ir.Model) -> None:
        """Give a graph its inputs back; pairs that round one of them stay."""
        graph = model.graph
        for each in self.replaced:
            new = each.nodes[-1].outputs[0]
            for user, place in list(new.uses()):
                user.replace_input_with(place, each.value)
            new.name, each.value.name = f"{each.name}_gone", each.name
            graph.remove(list(each.nodes))
            graph.initializers.pop(_given(each.name), None)
        graph.inputs.clear()
        graph.inputs.extend(self.inputs)


def with_image_input(model: ir.Model, image: ImageInput) -> Fed:
    """Make a graph in place one that takes images as they are fed; all other tensors keep their names.

    The values of other inputs come from nodes, as they are fed: a measurement sees them.
    """
    graph, inputs = model.graph, tuple(model.graph.inputs)
    by_name = {str(value.name): value for value in graph.inputs}
    first = next(iter(graph))
    replaced = []
    for name, given in image.others.items():
        stored = ir.val(_given(name), const_value=ir.tensor(given, name=_given(name)))
        graph.register_initializer(stored)
        replaced.append(_replace_input(graph, by_name[name], [ir.node("Identity", [stored])], first))
    if image.last or image.dtype != "float32":
        old = by_name[image.info.name]
        fed = ir.Value(
            name=f"{old.name}_fed", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(list(image.info.shape))
        )
        nodes, value = [], fed
        if image.dtype != "float32":
            nodes.append(ir.node("Cast", [value], {"to": int(old.dtype or ir.DataType.FLOAT)}))
            value = nodes[-1].outputs[0]
        if image.last:
            nodes.append(ir.node("Transpose", [value], {"perm": list(LAST)}))
        for number, node in enumerate(nodes[:-1]):
            node.outputs[0].name = f"{old.name}_fed_{number}"
        replaced.append(_replace_input(graph, old, nodes, first))
        graph.inputs.insert(0, fed)
    return Fed(inputs, tuple(replaced))


def _given(name: str) -> str:
    """The name of the stored value of an input."""
    return f"{name}_given"


def _replace_input(graph: ir.Graph, old: ir.Value, nodes: Sequence[ir.Node], first: ir.Node) -> _Replaced:
    """Put nodes in the place of an input; the last one gives its value under its name."""
    new, name = nodes[-1].outputs[0], str(old.name)
    new.type, new.shape = old.type, old.shape
    graph.inputs.remove(old)
    for user, place in list(old.uses()):
        user.replace_input_with(place, new)
    old.name, new.name = f"{name}_before", name
    for number, node in enumerate(nodes):
        node.name = f"feed_{name}_{number}"
    graph.insert_before(first, list(nodes))
    return _Replaced(name, old, tuple(nodes))
