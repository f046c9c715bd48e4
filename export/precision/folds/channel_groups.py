"""The channels of a convolutional network that can be scaled: who makes them, and who takes them.

Every convolution makes a group of channels. Nodes are followed in their order: an operator that passes positive factors
on passes groups on, a concatenation puts them side by side, a sum makes two groups one, and a convolution takes them.
All else needs its values as they are, so what it is given cannot be scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploykit.export.precision.qdq import quantisable, weight_of
from deploykit.runtime.arrays import Array

__all__ = ["Group", "Made", "Row", "Taken", "channel_groups", "is_depthwise", "rows_of_channels"]

PASSES = {
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "PRelu", "Relu", "Resize",
}  # fmt: skip
"""Operators that pass a positive factor of each channel on, from their first input."""


@dataclass(frozen=True)
class Made:
    """A layer that makes channels: ``axis`` of its weight are the output channels, ``biased``: input 2 is a bias."""

    layer: str
    axis: int
    biased: bool


@dataclass(frozen=True, eq=False)
class Taken:
    """A layer that takes channels of a group: ``count`` of the ``channels`` of a tensor, from ``start`` on.

    ``axis`` of its weight has ``multiplier`` indices for each channel. ``weights`` is the largest weight of each
    channel as a share of the largest of its output channel, ``(channels,)``.
    """

    layer: str
    tensor: str
    start: int
    count: int
    channels: int
    axis: int
    multiplier: int
    depthwise: bool
    weights: Array


@dataclass
class Group:
    """Channels that can be scaled by the same factors; ``free``: nothing needs their values as they are."""

    count: int
    makers: list[Made]
    taken: list[Taken] = field(default_factory=list)
    free: bool = True
    within: Group | None = None  # the group that it has become a part of

    def whole(self) -> Group:
        """Return the group that this one is a part of now."""
        group = self
        while group.within is not None:
            group = group.within
        return group


Row = tuple[Group, ...]
"""The groups of an activation's channels, side by side."""


def channel_groups(graph: ir.Model) -> list[Group]:
    """Return the groups of channels of a float32 graph that can be scaled, in the graph's order."""
    return rows_of_channels(graph)[0]


def rows_of_channels(graph: ir.Model) -> tuple[list[Group], dict[str, Row]]:
    """Return the groups of :func:`channel_groups`, and the groups of the channels of each tensor that has some."""
    rows: dict[ir.Value, Row] = {}
    groups: list[Group] = []
    layers = {id(node) for node in quantisable(graph.graph)}
    for node in graph.graph:
        given = [rows[value] for value in node.inputs if value is not None and value in rows]
        if id(node) in layers and _is_convolution(node):
            if given and not _take(node, given[0]):
                _block(given)
            made = _made(node)
            if made is not None:
                groups.append(made)
                rows[node.outputs[0]] = (made,)
        elif given:
            row = _passed(node, given)
            if row:
                rows[node.outputs[0]] = row
            else:
                _block(given)
    _block([rows[value] for value in graph.graph.outputs if value in rows])
    found = [group for group in groups if group.within is None and group.free and group.taken]
    scaled = {id(group) for group in found}
    named = {str(value.name): tuple(group.whole() for group in row) for value, row in rows.items()}
    return found, {name: row for name, row in named.items() if scaled & {id(group) for group in row}}


def is_depthwise(node: ir.Node) -> bool:
    """Return whether each output channel of a layer sees one input channel of several."""
    return node.op_type == "Conv" and _groups(node) > 1 and weight_of(node).shape[1] == 1


def _is_convolution(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "ConvTranspose")


def _groups(node: ir.Node) -> int:
    found = node.attributes.get("group")
    return 1 if found is None else found.as_int()


def _block(rows: Sequence[Row]) -> None:
    for row in rows:
        for group in row:
            group.whole().free = False


def _made(node: ir.Node) -> Group | None:
    """Return the group of channels that a convolution makes; None: its weights cannot be scaled."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return None
    if node.op_type == "ConvTranspose" and _groups(node) > 1:
        return None
    axis = 0 if node.op_type == "Conv" else 1
    return Group(weight_of(node).shape[axis], [Made(str(node.name), axis, bias is not None)])


def _take(node: ir.Node, row: Row) -> bool:
    """Note that a convolution takes these channels; False: its weights cannot be scaled by channels."""
    weight, channels = weight_of(node), sum(group.count for group in row)
    depthwise = is_depthwise(node)
    axis = 0 if depthwise or node.op_type == "ConvTranspose" else 1
    if (_groups(node) > 1 and not depthwise) or weight.shape[axis] % channels or node.inputs[0] is None:
        return False
    start = 0
    for group in row:
        whole = group.whole()
        whole.taken.append(
            Taken(
                str(node.name), str(node.inputs[0].name), start, group.count, channels, axis,
                weight.shape[axis] // channels, depthwise, _weights(weight, axis),
            )
        )  # fmt: skip
        start += group.count
    return True


def _weights(weight: Array, axis: int) -> Array:
    """Return how large the weights of each input channel are: see :class:`Taken`."""
    size = np.abs(weight).max(axis=tuple(range(2, weight.ndim)))
    found: Array = (size / np.maximum(size.max(axis=axis, keepdims=True), 1e-30)).max(axis=1 - axis)
    return np.maximum(found, 1e-30)


def _passed(node: ir.Node, given: Sequence[Row]) -> Row:
    """Return the groups of what a node makes of these; none: they do not pass."""
    if node.domain not in ("", "ai.onnx") or any(value.uses() for value in node.outputs[1:]):
        return ()
    if len(given) != sum(value is not None and not value.is_initializer() for value in node.inputs):
        return ()
    if node.op_type in PASSES and len(given) == 1:
        return given[0]
    if node.op_type == "Concat" and node.attributes["axis"].as_int() == 1:
        return tuple(group for row in given for group in row)
    if node.op_type == "Add" and len(given) == 2 and [g.count for g in given[0]] == [g.count for g in given[1]]:
        for first, second in zip(*given, strict=True):
            _join(first.whole(), second.whole())
        return given[0]
    return ()


def _join(first: Group, second: Group) -> None:
    if first is second:
        return
    first.makers += second.makers
    first.taken += second.taken
    first.free = first.free and second.free
    second.within = first
