"""Folds before a quantization: other constants with which a network computes the same and loses less by rounding.

A fold moves factors from one constant of a graph to another. It offers candidates, and one is taken if the error of the
quantized outputs falls with it (:mod:`deploykit.export.precision.folds.choose`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from deploykit.export.precision.qdq import constant
from deploykit.runtime.arrays import Array

__all__ = [
    "Added", "Candidate", "Changes", "Fold", "Scaled", "apply_changes", "digest_of_changes", "joined_changes",
    "scaled_name", "with_scaled",
]  # fmt: skip


class Scaled(NamedTuple):
    """A constant is multiplied by ``factors``, one per index of its ``axis``.

    Of an activation, a node before the one that takes it multiplies; its axis counts from the last, which is -1.
    """

    axis: int
    factors: Array


class Added(NamedTuple):
    """``values`` are added to a constant, one per index of its ``axis``, or to zeros where a node has no such input."""

    axis: int
    values: Array


Changes = Mapping[tuple[str, int], tuple[Scaled | Added, ...]]
"""What a fold changes: the name of a node and the number of its input -> what is done with the value there."""


@dataclass(frozen=True)
class Candidate:
    """One way to fold.

    ``name`` says in the report how, ``sites`` counts the places, ``changes`` are what it does; ``nodes`` counts those
    that the graph then has more. ``scaled`` has what the changed graph computes otherwise: tensor -> the tensor of the
    graph before that it is made from, and what each channel of that is multiplied by, ``(channels,)``. None: not known.
    """

    name: str
    sites: int
    changes: Changes
    nodes: int = 0
    scaled: Mapping[str, tuple[str, Array]] | None = None


class Fold(Protocol):
    """A way to prepare a network for quantization.

    ``name`` is that of the option and the report.
    """

    name: str

    def applies(self, graph: ir.Model) -> bool:
        """Return whether candidates are worth looking for, from the operators alone."""
        ...

    def channels(self, graph: ir.Model) -> Collection[str]:
        """Return the tensors whose channels' largest values the candidates follow from; channels lie on axis 1."""
        ...

    def candidates(self, graph: ir.Model, images: Sequence[Array], peaks: Mapping[str, Array]) -> Iterable[Candidate]:
        """Yield the candidates for a float32 graph.

        ``images`` are preprocessed, one batch each; ``peaks`` the largest absolute values on them of the channels of
        :meth:`channels`, ``(channels,)``.
        """
        ...


def joined_changes(first: Changes, second: Changes) -> Changes:
    """Return the changes that do the first and then the second."""
    return {key: (*first.get(key, ()), *second.get(key, ())) for key in (*first, *second)}


def digest_of_changes(changes: Changes) -> bytes:
    """Return a hash of changes; nothing for none."""
    digest = hashlib.sha256()
    for key, steps in changes.items():
        digest.update(repr(key).encode())
        for step in steps:
            digest.update(repr((type(step).__name__, step.axis, step[1].tolist())).encode())
    return digest.digest() if changes else b""


def apply_changes(model: ir.Model, changes: Changes) -> None:
    """Give the nodes of a graph their changed values, in place; a value that others use too stays for them."""
    graph = model.graph
    nodes = {str(node.name): node for node in graph} if changes else {}
    for (name, index), steps in changes.items():
        if len(nodes[name].inputs) <= index:
            nodes[name].resize_inputs(index + 1)
        value = nodes[name].inputs[index]
        if value is None:
            zeros = np.zeros(len(steps[-1][1]), np.float32)
            nodes[name].replace_input_with(index, constant(graph, f"{name}_{index}", _changed(zeros, steps)))
            continue
        if value.const_value is None:
            _scale_before(graph, nodes[name], index, steps)
            continue
        array = _changed(value.const_value.numpy().astype(np.float32), steps)
        alone = len(value.uses()) == 1 and value not in graph.outputs
        if alone:
            graph.initializers.pop(str(value.name))
        label = str(value.name) if alone else f"{value.name}_{name}_{index}"
        nodes[name].replace_input_with(index, constant(graph, label, array))


def _changed(array: Array, steps: Sequence[Scaled | Added]) -> Array:
    for step in steps:
        numbers = step[1].reshape([-1 if i == step.axis % array.ndim else 1 for i in range(array.ndim)])
        array = array + numbers if isinstance(step, Added) else array * numbers
    return array


def with_scaled(graph: ir.Model, scaled: Mapping[str, tuple[str, Array]], tensors: Iterable[str]) -> dict[str, str]:
    """Add what changes would make of tensors to a graph without them, in place, and return its names by tensor.

    ``scaled`` is that of a :class:`Candidate`; a tensor that is not in it is the same with the changes.
    """
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    found = {}
    for tensor in tensors:
        source, by = scaled.get(tensor, (tensor, np.ones(1, np.float32)))
        found[tensor] = source
        if (by == 1).all():
            continue
        found[tensor] = name = f"{source} by {hashlib.sha256(by.tobytes()).hexdigest()}"
        if name in values:
            continue
        zeros = constant(graph.graph, f"{name}:zeros", np.zeros(len(by), np.float32))
        ones = constant(graph.graph, f"{name}:ones", np.ones(len(by), np.float32))
        given = [values[source], constant(graph.graph, f"{name}:by", by), zeros, zeros, ones]
        node = ir.node("BatchNormalization", given, {"epsilon": 0.0}, name=name)  # a product on axis 1 of any rank
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.graph.append(node)
        values[name] = node.outputs[0]
    return found


def scaled_name(node: str, index: int, number: int = 0) -> str:
    """Return the name of an activation that is multiplied before it is the input of that index, by the first change."""
    return f"{node}_{index}_scaled_{number}"


def _scale_before(graph: Any, node: ir.Node, index: int, steps: Sequence[Scaled | Added]) -> None:
    """Multiply an activation right before the node that takes it."""
    value = node.inputs[index]
    for number, (axis, factors) in enumerate(steps):
        assert value is not None
        label = scaled_name(str(node.name), index, number)
        shaped = factors.reshape([-1, *[1] * (-axis - 1)])  # how many axes the value has is not known
        product = ir.node("Mul", [value, constant(graph, f"{label}_by", shaped)], name=f"{label}_product")
        scaled = product.outputs[0]
        scaled.name, scaled.type = label, value.type
        graph.insert_before(node, product)
        value = scaled
    node.replace_input_with(index, value)
