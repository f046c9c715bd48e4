"""Where the channels of normalised tokens and of attention's values go, found by following numbers through a graph.

Each channel that may be scaled gets a number. The graph is run on an image, and beside the values a tensor of such
numbers goes through all operators that only move values: reshapes, transpositions, slices, concatenations, padding with
zeros. So no pattern of operators has to be known, and a shape may be free. A channel ends in the linear layers that
take it; whatever else it meets, an addition, an activation, a product of two activations, blocks it. Of one product of
activations the channels come out as they were: of the product of attention's probabilities and values.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.precision.qdq import quantisable, weight_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

__all__ = ["Followed", "Sink", "Source", "follow_channels"]

MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators that only move values of their first input (Concat: of all), besides Pad with zeros."""


@dataclass(frozen=True)
class Source:
    """A tensor whose channels can be scaled: their numbers are ``first`` to ``first + count - 1``.

    ``constants``: (node, number of the input) and the axis of the channels, of each constant that scales with them.
    """

    first: int
    count: int
    constants: tuple[tuple[tuple[str, int], int], ...]


@dataclass
class Sink:
    """A linear layer that takes such channels.

    ``axis`` is that of its weight's input channels, ``ids`` their numbers, ``(channels,)`` (0: none). ``weights`` is
    the largest weight of each, as a share of the largest of its output channel; ``largest`` its largest value.
    """

    node: str
    axis: int
    ids: Array
    weights: Array
    largest: Array


@dataclass
class Followed:
    """All sources and sinks; ``blocked[number]``: the channel must stay. Numbers begin at 1."""

    sources: list[Source] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    channels: int = 0
    blocked: Array = field(default_factory=lambda: np.zeros(1, bool))


def follow_channels(graph: ir.Model, images: Sequence[Array]) -> Followed:
    """Follow the channels of a float32 graph on the first of these images, and measure their largest values on all."""
    session = _Following(graph)
    with session, session.in_one_thread():
        (info,) = session.inputs
        session.run({info.name: images[0]})
    found = session.followed
    for ids in session.ids.values():  # of the graph's outputs: all others are gone
        session.block(ids)
    _measure(graph, found, images)
    return found


class _Following(OnnxInTorchSession):
    """A graph that is run with numbers of channels beside the values.

    ``ids``: tensor -> the number of the channel of each value; 0 where the value is a padding's zero, NaN where it is
    of no such channel.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self.followed, self.ids = Followed(), dict[str, Tensor]()
        self._layers = {str(node.name) for node in quantisable(model.graph)}

    def block(self, ids: Tensor) -> None:
        """Leave the channels of these numbers as they are."""
        self.followed.blocked[ids[~ids.isnan()].long().numpy()] = True

    def _step(self, number: int, values: dict[str, Tensor]) -> None:
        super()._step(number, values)
        for name in self._ends[number]:
            self.ids.pop(name, None)

    def _run_node(self, node: ir.Node, given: list[Tensor | None], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        found = super()._run_node(node, given, attributes)
        ids = [None if value is None else self.ids.get(str(value.name)) for value in node.inputs]
        if any(one is not None for one in ids):
            self._follow(node, given, ids, found, attributes)
        source = self._source(node)
        if source is not None:
            self._begin(source, node, found[0])
        return found

    def _begin(self, source: Source, node: ir.Node, value: Tensor) -> None:
        axis = 1 if node.op_type == "Conv" else value.dim() - 1
        assert value.shape[axis] == source.count
        self.followed.sources.append(source)
        self.followed.channels += source.count
        more = np.zeros(source.count, bool)
        self.followed.blocked = np.concatenate([self.followed.blocked, more])
        numbers = torch.arange(source.first, source.first + source.count, dtype=torch.float32)
        shape = [-1 if i == axis else 1 for i in range(value.dim())]
        self.ids[str(node.outputs[0].name)] = numbers.reshape(shape).expand(value.shape)

    def _source(self, node: ir.Node) -> Source | None:
        """The source that a node completes: a normalisation, or a layer with its bias."""
        name, first = str(node.name), self.followed.channels + 1
        if node.op_type == "LayerNormalization":
            axis = node.attributes.get("axis")
            shape = _constant(node, 1)
            if shape is None or len(shape) != 1 or (axis is not None and axis.as_int() != -1):
                return None
            bias = len(node.inputs) > 2 and node.inputs[2] is not None
            if bias and _constant(node, 2) != shape:
                return None
            return Source(first, shape[0], tuple(((name, i), 0) for i in range(1, 2 + bias)))
        layer, bias_at = node, 2
        if node.op_type == "Add":
            found = _product_before(node, self._layers)
            if found is None:
                return None
            layer, bias_at = found
        elif name not in self._layers or node.op_type not in ("Conv", "Gemm", "MatMul") or _biased_later(node):
            return None
        shape = _constant(layer, 1)
        if shape is None or (len(shape) != 2 and layer.op_type != "Conv"):
            return None
        turned = layer.op_type == "Conv" or (layer.op_type == "Gemm" and bool(_attribute(layer, "transB", 0)))
        constants = [((str(layer.name), 1), 0 if turned else 1)]
        if layer is not node or (len(layer.inputs) > 2 and layer.inputs[2] is not None):
            bias_shape = _constant(node, bias_at)
            if bias_shape != (shape[0 if turned else 1],):
                return None
            constants.append(((name, bias_at), 0))
        return Source(first, shape[0 if turned else 1], tuple(constants))

    def _follow(
        self,
        node: ir.Node,
        given: list[Tensor | None],
        ids: list[Tensor | None],
        found: tuple[Tensor, ...],
        attributes: dict[str, Any],
    ) -> None:
        first = ids[0]
        if _moves(node, given) and (first is not None or node.op_type == "Concat"):
            places = [value if one is None else one for one, value in zip(ids, given, strict=True)]
            if node.op_type == "Concat":
                places = [
                    torch.full_like(value, torch.nan) if one is None and value is not None else one
                    for one, value in zip(ids, given, strict=True)
                ]
            moved = super()._run_node(node, places, attributes)
            self.ids |= {str(value.name): one for value, one in zip(node.outputs, moved, strict=False)}
        elif str(node.name) in self._layers and first is not None and self._take(node, first):
            pass
        elif node.op_type == "MatMul" and first is None and ids[1] is not None and ids[1].dim() > 2:
            columns, mixed = _columns(ids[1], -2)
            self.block(mixed)
            self.ids[str(node.outputs[0].name)] = columns.expand(found[0].shape)
        else:
            for one in ids:
                if one is not None:
                    self.block(one)

    def _take(self, node: ir.Node, ids: Tensor) -> bool:
        """Note a layer that takes channels; False where it does not take them one by one."""
        weight = weight_of(node)
        if node.op_type in ("MatMul", "Gemm") and weight.ndim == 2 and not _attribute(node, "transA", 0):
            axis = 1 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 0
            columns, mixed = _columns(ids.reshape(-1, ids.shape[-1]), 0)
        elif node.op_type == "Conv" and _attribute(node, "group", 1) in (1, weight.shape[0]):
            axis = 1 if _attribute(node, "group", 1) == 1 else 0
            columns, mixed = _columns(ids.movedim(1, -1).reshape(-1, ids.shape[1]), 0)
        else:
            return False
        self.block(mixed)
        numbers = columns.flatten().nan_to_num(0.0).long().numpy()
        size = np.abs(weight)
        if size.shape[axis] != len(numbers):
            return False
        if node.op_type == "Conv":
            size = size.reshape(*size.shape[:2], -1).max(axis=2)
        top = np.maximum(size.max(axis=axis, keepdims=True), 1e-30)
        if node.op_type == "Conv" and axis == 0:  # depthwise: a channel is alone in its scale, and costs nothing
            shares = np.full(len(numbers), 1e-30)
        else:
            shares = (size / top).max(axis=1 - axis)
        self.followed.sinks.append(Sink(str(node.name), axis, numbers, shares, np.zeros(len(numbers))))
        return True


def _columns(ids: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the one number of each column, with this axis of length 1, and the numbers of columns that have several.

    A column of several, or with values of no channel, is NaN.
    """
    top = ids.nan_to_num(0.0).amax(axis, keepdim=True)
    same = ((ids == top) | (ids == 0)).all(axis, keepdim=True)
    mixed = ids[(~same).expand(ids.shape)]
    return torch.where(same, top, torch.nan), mixed


def _moves(node: ir.Node, given: Sequence[Tensor | None]) -> bool:
    if node.domain:
        return False
    if node.op_type == "Pad":
        value = given[2] if len(given) > 2 else None
        mode = node.attributes.get("mode")
        return (mode is None or mode.as_string() == "constant") and (value is None or not bool(value.any()))
    return node.op_type in MOVES


def _constant(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """The shape of a constant that a node is given; None: there is none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    if value.const_value.dtype != ir.DataType.FLOAT:
        return None
    return tuple(int(side) for side in value.const_value.shape.numpy())


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _product_before(add: ir.Node, layers: set[str]) -> tuple[ir.Node, int] | None:
    """The matrix product to which an Add gives a bias, and the number of the Add's input that is the bias."""
    for at in (0, 1):
        value = add.inputs[1 - at]
        maker = None if value is None else value.producer()
        shape = _constant(add, at)
        if maker is None or shape is None or len(shape) != 1 or value is None:
            continue
        if maker.op_type == "MatMul" and str(maker.name) in layers and len(value.uses()) == 1:
            return maker, at
    return None


def _biased_later(product: ir.Node) -> bool:
    users = [user for user, _ in product.outputs[0].uses()]
    return len(users) == 1 and users[0].op_type == "Add" and any(_constant(users[0], i) is not None for i in (0, 1))


def _measure(graph: ir.Model, found: Followed, images: Sequence[Array]) -> None:
    """Measure the largest absolute value of each channel that a sink takes."""
    inputs = {str(node.name): str(node.inputs[0].name) for node in graph.graph if node.inputs and node.inputs[0]}
    wanted: dict[str, list[Sink]] = {}
    for sink in found.sinks:
        wanted.setdefault(inputs[sink.node], []).append(sink)
    lock = threading.Lock()

    def see(name: str, value: Tensor) -> None:
        for sink in wanted.get(name, ()):
            axis = 1 if sink.node in channels_first else -1
            top = value.abs().movedim(axis, -1).reshape(-1, len(sink.ids)).amax(0).numpy()
            with lock:
                np.maximum(sink.largest, top, out=sink.largest)

    channels_first = {str(node.name) for node in graph.graph if node.op_type == "Conv"}
    with OnnxInTorchSession(graph, observe=see) as session:
        for _ in session.run_each(images):
            pass
