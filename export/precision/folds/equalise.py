"""Equalisation: the channels of an activation get ranges of one size, because in int8 they share one scale.

A channel that is divided by a factor where it is made, and multiplied by it in the weights of all layers that take it,
leaves what a network computes as it is, if all that lies between passes a positive factor on: a ReLU, a LeakyReLU,
pooling, a resize, a concatenation, a sum whose two sides have the same factors (M. Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019). The factors are powers of two, so no number
is rounded and the outputs in fp32 stay the same to the last bit.

Weights have a scale per output channel, so the layer that makes the channels loses nothing by it. Neither does a
depthwise convolution that takes them, each of whose output channels sees one of theirs: there all channels get the same
range. Another layer sees all of them with weights that share a scale, so it is met in the middle.

A SiLU, a Hardswish or a bounded ReLU passes no factor on. There the division becomes a node of its own right before the
layer, a product with a constant per channel. It costs time, so only depthwise convolutions get one: they gain most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from torch import Tensor

from deploykit.export.precision.folds import Candidate, Changes, Scaled, joined_changes
from deploykit.export.precision.folds.channel_groups import Group, Taken, channel_groups, is_depthwise
from deploykit.export.precision.qdq import quantisable, weight_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

__all__ = ["Equalise"]

EXPONENT = 0.75
"""The exponent of activations' ranges where layers that are not depthwise take them: errors with 0.5 were 0.97 to 1.15
times as large on RepVGG and QARepVGG of YOLOv6, YOLOv7-tiny and a ResNet-18."""

LEAST = 2.0**-8
"""The smallest share of the largest range that is still told from smaller ones, and the smallest factor."""


class Equalise:
    """See the module."""

    name = "equalise"

    def applies(self, graph: ir.Model) -> bool:
        """Return whether there are channels that can be scaled."""
        return bool(channel_groups(graph)) or any(map(is_depthwise, quantisable(graph.graph)))

    def candidates(self, graph: ir.Model, images: Sequence[Array]) -> Iterable[Candidate]:
        """Yield the candidates: without added nodes and, where there are depthwise layers for them, with them."""
        groups = channel_groups(graph)
        layers = {one.layer for group in groups for one in group.taken}
        others = [node for node in quantisable(graph.graph) if is_depthwise(node) and str(node.name) not in layers]
        others = [node for node in others if node.inputs[0] is not None and node.inputs[0].producer() is not None]
        wanted = {one.tensor for group in groups for one in group.taken} | {_given(node) for node in others}
        shares = _shares(graph, wanted, images)
        changes: Changes = {}
        for group in groups:
            changes = joined_changes(changes, _moved(group, shares))
        if groups:
            yield Candidate("channels", len(groups), changes)
        for node in others:
            changes = joined_changes(changes, _before(node, shares[_given(node)]))
        if others:
            more = f"before {len(others)} depthwise layers"
            yield Candidate(f"channels and {more}" if groups else more, len(groups) + len(others), changes, len(others))


def _given(node: ir.Node) -> str:
    assert node.inputs[0] is not None
    return str(node.inputs[0].name)


def _shares(graph: ir.Model, tensors: set[str], images: Sequence[Array]) -> dict[str, Array]:
    """Return the range of each channel of these activations as a share of the largest one's, ``(channels,)``."""
    found: dict[str, Array] = {}

    def see(name: str, value: Tensor) -> None:
        if name in tensors:
            top = value.abs().amax([i for i in range(value.ndim) if i != 1]).numpy()
            found[name] = np.maximum(found.get(name, top), top)

    with OnnxInTorchSession(graph, observe=see) as session, session.in_one_thread():
        (info,) = session.inputs
        for image in images:
            session.run({info.name: image})
    return {name: np.maximum(top / max(float(top.max()), 1e-30), LEAST) for name, top in found.items()}


def _before(node: ir.Node, shares: Array) -> Changes:
    """Return what gives the channels that a depthwise convolution takes the same range, by a node before it."""
    factors, weight = _powers(shares), weight_of(node)
    each = np.repeat(factors, len(weight) // len(factors))
    return {
        (str(node.name), 0): (Scaled(1 - weight.ndim, 1 / factors),),
        (str(node.name), 1): (Scaled(0, each),),
    }


def _moved(group: Group, shares: Mapping[str, Array]) -> Changes:
    """Return what scales the channels of a group."""
    factors = _factors(group, shares)
    changes: Changes = {}
    for part in group.makers:
        steps = {(part.layer, 1): (Scaled(part.axis, 1 / factors),)}
        if part.biased:
            steps[part.layer, 2] = (Scaled(0, 1 / factors),)
        changes = joined_changes(changes, steps)
    for one in group.taken:
        every = np.ones(one.channels, np.float32)
        every[one.start : one.start + len(factors)] = factors
        each = np.repeat(every, one.multiplier)
        changes = joined_changes(changes, {(one.layer, 1): (Scaled(one.axis, each),)})
    return changes


def _factors(group: Group, shares: Mapping[str, Array]) -> Array:
    """Return the factor by which each channel of a group is divided."""
    activation = np.max([_part(one, shares[one.tensor]) for one in group.taken], axis=0)
    dense = [_part(one, one.weights) for one in group.taken if not one.depthwise]
    if not dense:
        return _powers(activation)
    return _powers(activation**EXPONENT / np.max(dense, axis=0) ** (1 - EXPONENT))


def _part(one: Taken, values: Array) -> Array:
    part: Array = values[one.start : one.start + one.count]
    return part


def _powers(factors: Array) -> Array:
    found: Array = np.exp2(np.round(np.log2(np.clip(factors, LEAST, 1 / LEAST)))).astype(np.float32)
    return found
