"""The end of a graph that chooses, apart from the network before it.

Detectors end in a choice: the best rows (TopK), NMS, or an operator of somebody's plugin. What it gives depends on the
order of scores, which rounding changes, so it tells nothing about how good a conversion is, and it has no derivative.
So nothing from the first such operator on is converted, and a conversion is measured on the values that go into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

__all__ = ["CHOOSES", "Choice", "attach", "chooses", "detach", "inner_nodes", "taken_by"]

CHOOSES = {
    "ArgMax", "ArgMin", "Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "SequenceMap", "TopK",
    "Unique",
}  # fmt: skip
"""Operators that choose among values, or whose result has a size that values decide, and those of control flow."""

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, eq=False)
class Choice:
    """The nodes from the first choice on, apart from their graph.

    ``values`` are the float values that they take from the network, and the outputs of the graph that the network
    gives itself; ``outputs`` are those of the whole graph, in their order; ``constants`` the stored tensors that the
    nodes take.
    """

    nodes: tuple[ir.Node, ...]
    values: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...] = ()

    @property
    def kinds(self) -> dict[str, int]:
        """The operators that choose -> how many there are."""
        return dict(Counter(_kind(node) for node in self.nodes if chooses(node)))

    @property
    def beyond_torch(self) -> bool:
        """Whether a node has a graph inside, or is of another domain than ONNX's: torch does not run it."""
        return any(
            node.domain not in ("", "ai.onnx") or next(inner_nodes(node), None) is not None for node in self.nodes
        )

    @property
    def layers(self) -> int:
        """How many convolutions and matrix products are among the nodes."""
        return sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in self.nodes)


def detach(model: ir.Model) -> Choice:
    """Take the choice out of a graph, whose outputs then are :attr:`Choice.values`; nothing changes without a choice.

    Values of other types than float that the choice takes stay in the graph.
    """
    graph = model.graph
    outputs, after = tuple(graph.outputs), _from_first_choice(graph)
    if not after:
        return Choice((), outputs, outputs)
    taken = [value for node in after for value in taken_by(node)]
    crossing = dict.fromkeys(value for value in (*taken, *outputs) if _is_of_network(value, after))
    stored = set(graph.initializers.values())
    graph.outputs.clear()
    graph.outputs.extend(crossing)
    graph.remove(list(after))
    return Choice(
        tuple(after), tuple(crossing), outputs, tuple(value for value in dict.fromkeys(taken) if value in stored)
    )


def attach(model: ir.Model, choice: Choice) -> None:
    """Put a choice back behind its network, which may give other values under the same numbers now."""
    if not choice.nodes:
        return
    graph = model.graph
    new = dict(zip(choice.values, graph.outputs, strict=True))
    new |= {value: _stored_again(graph, value) for value in choice.constants}
    for node in choice.nodes:
        for each in (node, *inner_nodes(node)):
            for place, value in enumerate(each.inputs):
                if value is not None and new.get(value, value) is not value:
                    each.replace_input_with(place, new[value])
    graph.outputs.clear()
    graph.outputs.extend(new.get(value, value) for value in choice.outputs)
    graph.extend(choice.nodes)


def _stored_again(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The stored tensor of a choice in a graph, which may be another one now, without the tensor, or with a new one."""
    name = str(value.name)
    own = graph.initializers.get(name)
    if own is value:
        return value
    assert value.const_value is not None
    if own is not None and own.const_value is not None:
        if own.const_value is value.const_value or _alike(own.const_value, value.const_value):
            return own
        name = f"{name}_before"  # the network shares it, and its conversion has changed it
    copied = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    graph.register_initializer(copied)
    return copied


def _alike(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy())


def _from_first_choice(graph: ir.Graph) -> dict[ir.Node, None]:
    """The operators that choose and all nodes after them, in the graph's order."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        producers = (value.producer() for value in taken_by(node))
        if chooses(node) or any(producer in found for producer in producers if producer is not None):
            found[node] = None
    return found


def chooses(node: ir.Node) -> bool:
    """Whether a node chooses, or may do so."""
    return node.domain not in ("", "ai.onnx") or node.op_type in CHOOSES


def _kind(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def taken_by(node: ir.Node) -> list[ir.Value]:
    """The values that a node takes, and those from outside that the graphs inside of it take."""
    own = [value for value in node.inputs if value is not None]
    inside = list(inner_nodes(node))
    made = {value for each in inside for value in each.outputs}
    return own + [value for each in inside for value in each.inputs if value is not None and value not in made]


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes of the graphs inside of a node."""
    for attribute in node.attributes.values():
        graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += list(attribute.value) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            yield from graph.all_nodes()


def _is_of_network(value: ir.Value, after: dict[ir.Node, None]) -> bool:
    """Whether a value is a float one that a node before the choice gives."""
    producer = value.producer()
    return producer is not None and producer not in after and value.dtype in (FLOAT, None)
