"""What the roundings of a half-precision graph add to the error of its outputs, from one run and its derivatives.

The fp32 graph is run with every tensor of a half node rounded to half. A rounding disappears only where both the node
that makes the tensor and the one that takes it stay in fp32. So a part of the error belongs to several nodes together:
those two, and those that only move values on to others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.precision.search.way_back import Straight, WayBack
from deploykit.runtime.arrays import Array

__all__ = ["Part", "by_groups", "error_in_half", "half_parts", "order_of"]

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PASSING = {
    "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Neg", "Pad", "Relu",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose values are those of their inputs, so that half precision rounds them no further."""
SET_BY = {"Clip", "Pad", "Resize"}
"""Operators whose further inputs are settings, such as limits and scales."""
GROUPS = 16  # runs of nodes that are compared where no derivative ranks them
FOLLOWED = 500  # parts that are put in order; those after them are too small to matter

Edge = tuple[str, str]
Error = Callable[[int, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Part:
    """A part of the error, and the half nodes that must all stay in fp32 to take it away."""

    size: float
    nodes: frozenset[str]


def half_parts(
    graph: ir.Model,
    half: Collection[str],
    kind: Literal["fp16", "bf16"],
    images: Sequence[Array],
    error: Error,
    further: Sequence[Mapping[str, Tensor]] = (),
) -> tuple[float, list[Part], set[str]]:
    """Return the error, its parts and the operators that no derivative passes; the first two are means over images.

    Args:
        graph: the fp32 graph.
        half: the names of its nodes that compute in half.
        kind: the type.
        images: inputs ``(B, C, H, W)``.
        error: returns the error of the outputs for the image of this number, with its derivative.
        further: the graph's further inputs for each image.
    """
    with _InHalf(graph, half, kind) as session, session.in_one_thread():
        for number, image in enumerate(images):
            more = further[number] if further else {}
            session.add(image, lambda found, number=number: error(number, found), more)  # type: ignore[misc]  # bound
        nodes = {str(node.name): node for node in graph.graph}
        parts = [
            Part(size / len(images), frozenset(_needed(tensor, nodes[node], half)))
            for (tensor, node), size in session.parts.items()
        ]
        return session.error / len(images), [p for p in parts if p.nodes], session.stopped


def error_in_half(
    graph: ir.Model,
    half: Collection[str],
    kind: Literal["fp16", "bf16"],
    images: Sequence[Array],
    error: Error,
    further: Sequence[Mapping[str, Tensor]] = (),
) -> float:
    """Return the mean error over images with these nodes in half; arguments as in :func:`half_parts`."""
    with _InHalf(graph, half, kind) as session, session.in_one_thread(), torch.no_grad():
        feeds: list[dict[str, Tensor]] = [{session.inputs[0].name: torch.from_numpy(image)} for image in images]
        more = further or [{}] * len(images)
        found = (session.forward({**one, **each}) for one, each in zip(feeds, more, strict=True))
        return sum(float(error(number, each)) for number, each in enumerate(found)) / len(images)


def order_of(parts: Sequence[Part]) -> list[str]:
    """Return nodes in the order in which they take most of the error away, each with those that it needs.

    The next nodes are always those of the part that takes most for each further node.
    """
    left = sorted((part for part in parts if part.size > 0), key=lambda part: -part.size)[:FOLLOWED]
    found: dict[str, None] = {}
    while left:
        best = max(left, key=lambda part: part.size / len(part.nodes - found.keys()))
        found |= dict.fromkeys(sorted(best.nodes - found.keys()))
        left = [part for part in left if not part.nodes <= found.keys()]
    return list(found)


def by_groups(nodes: Sequence[str], error_without: Callable[[Collection[str]], float]) -> list[str]:
    """Return nodes in order by groups of neighbours: those first without whose rounding the error is least."""
    size = -(-len(nodes) // GROUPS)
    groups = [nodes[start : start + size] for start in range(0, len(nodes), size)]
    errors = [error_without(set(group)) for group in groups]
    return [name for i in sorted(range(len(groups)), key=errors.__getitem__) for name in groups[i]]


class _InHalf(WayBack[Edge]):
    """An fp32 graph that rounds the tensors of some nodes to half, and notes the part of each edge, and of weights.

    The key of an edge is the tensor and the node that takes it; that of the weights of a node has no tensor.
    """

    def __init__(self, graph: ir.Model, half: Collection[str], kind: Literal["fp16", "bf16"]) -> None:
        super().__init__(graph)
        self._half, self._type = set(half), HALVES[kind]
        self._exact = dict(self._weights)

    def _run_node(self, node: ir.Node, given: list[Tensor | None], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        name, taken = str(node.name), list(given)
        for place, (value, x) in enumerate(zip(node.inputs, given, strict=True)):
            if value is None or x is None or not x.is_floating_point():
                continue
            if place and node.op_type in SET_BY:
                continue
            taken[place] = self._edge(str(value.name), name, x)
        return self._computed(node, taken, attributes)

    def _edge(self, tensor: str, node: str, x: Tensor) -> Tensor:
        """The value of a tensor as a node takes it."""
        key, half = (tensor, node), node in self._half
        if tensor in self._exact:
            if not half:
                return x
            rounded, exact = self._rounded(x), self._exact[tensor]
            self.parts.setdefault(("", node), 0.0)
            return self._noted_weight(("", node), rounded, lambda: exact) if torch.is_grad_enabled() else rounded
        change = self._changes.get(tensor)
        if change is None and half:  # made in fp32, or the graph's input
            with torch.no_grad():
                rounded = self._rounded(x)
                change = self._as_it_is((rounded - x).to(torch.bfloat16))
            x = Straight.apply(x, rounded)  # type: ignore[no-untyped-call]  # torch has no types
        if change is None or not x.requires_grad:
            return x
        self.parts.setdefault(key, 0.0)
        return self._noted(key, x.view_as(x), change)

    def _note(self, node: ir.Node, values: dict[str, Tensor], found: tuple[Tensor, ...]) -> None:
        if str(node.name) not in self._half:
            super()._note(node, values, found)
            return
        for value, x in zip(node.outputs, found, strict=False):
            name = str(value.name)
            if not x.is_floating_point():
                values[name] = x
                continue
            with torch.no_grad():
                after = self._rounded(x)
                self._changes[name] = self._as_it_is((after - x).to(torch.bfloat16))
            values[name] = Straight.apply(x, after)  # type: ignore[no-untyped-call]  # torch has no types

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(self._type).to(x.dtype)


def _needed(tensor: str, node: ir.Node, half: Collection[str]) -> Iterator[str]:
    """The half nodes that must stay in fp32 so that a node takes a tensor, or with no tensor its weights, unrounded."""
    if not tensor:
        yield str(node.name)
        return
    value = next(v for v in node.inputs if v is not None and str(v.name) == tensor)
    producer = value.producer()
    if producer is not None and str(producer.name) in half:
        yield str(producer.name)
    ends, seen = [node], {node}
    while ends:
        one = ends.pop()
        if str(one.name) in half:
            yield str(one.name)
        if _passes(one):
            users = {user for made in one.outputs for user, _ in made.uses()} - seen
            seen |= users
            ends += users


def _passes(node: ir.Node) -> bool:
    """Whether the values of a node are those of its input."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.value == "nearest"
    return node.op_type in PASSING
