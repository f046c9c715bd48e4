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

from deploykit.export.precision.folds import Candidate, Changes, Scaled, joined_changes, scaled_name
from deploykit.export.precision.folds.channel_groups import (
    Group,
    Taken,
    channel_groups,
    is_depthwise,
    rows_of_channels,
)
from deploykit.export.precision.qdq import quantisable, weight_of
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

    def channels(self, graph: ir.Model) -> set[str]:
        """See :meth:`deploykit.export.precision.folds.Fold.channels`."""
        groups, rows = rows_of_channels(graph)
        return {*rows, *map(_given, _others(graph, groups))}

    def candidates(self, graph: ir.Model, images: Sequence[Array], peaks: Mapping[str, Array]) -> Iterable[Candidate]:
        """Yield the candidates: without added nodes and, where there are depthwise layers for them, with them."""
        groups, rows = rows_of_channels(graph)
        others = _others(graph, groups)
        shares = {name: np.maximum(top / max(float(top.max()), 1e-30), LEAST) for name, top in peaks.items()}
        changes: Changes = {}
        factors = {id(group): _factors(group, shares) for group in groups}
        for group in groups:
            changes = joined_changes(changes, _moved(group, factors[id(group)]))
        scaled = {
            name: (name, np.concatenate([1 / factors.get(id(g), np.ones(g.count, np.float32)) for g in row]))
            for name, row in rows.items()
        }
        if groups:
            yield Candidate("channels", len(groups), changes, scaled=scaled)
        for node in others:
            powers = _powers(shares[_given(node)])
            changes = joined_changes(changes, _before(node, powers))
            scaled[scaled_name(str(node.name), 0)] = _given(node), 1 / powers
        if others:
            more = f"before {len(others)} depthwise layers"
            name, sites = f"channels and {more}" if groups else more, len(groups) + len(others)
            yield Candidate(name, sites, changes, len(others), scaled)


def _others(graph: ir.Model, groups: Sequence[Group]) -> list[ir.Node]:
    """Return the depthwise layers whose channels can only be scaled by a node before them."""
    layers = {one.layer for group in groups for one in group.taken}
    found = [node for node in quantisable(graph.graph) if is_depthwise(node) and str(node.name) not in layers]
    return [node for node in found if node.inputs[0] is not None and node.inputs[0].producer() is not None]


def _given(node: ir.Node) -> str:
    assert node.inputs[0] is not None
    return str(node.inputs[0].name)


def _before(node: ir.Node, factors: Array) -> Changes:
    """Return what divides the channels that a depthwise convolution takes, by a node before it."""
    weight = weight_of(node)
    each = np.repeat(factors, len(weight) // len(factors))
    return {
        (str(node.name), 0): (Scaled(1 - weight.ndim, 1 / factors),),
        (str(node.name), 1): (Scaled(0, each),),
    }


def _moved(group: Group, factors: Array) -> Changes:
    """Return what divides the channels of a group where they are made."""
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
