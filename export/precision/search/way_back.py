"""The way back through a graph: derivatives of the error by what roundings changed, in bounded memory.

A rounding has no useful derivative and counts as if it changed nothing. The derivative of the error by a rounded
tensor, times what its rounding changed, is its part of the error, to first order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

__all__ = ["Straight", "WayBack"]

K = TypeVar("K")

KEPT = 2**28  # bytes that are kept for the way back before the graph is cut
LARGE = 2**16  # values of a tensor from which on a half of its bits is enough to keep it for the way back

COMPARED = {"ReduceMax", "ReduceMin"}
"""Operators whose derivatives look where the input is equal to the output."""


class Straight(torch.autograd.Function):
    """A rounding whose derivative is that of what was rounded."""

    @staticmethod
    def forward(context: Any, before: Tensor, after: Tensor) -> Tensor:
        return after.view_as(after)

    @staticmethod
    def backward(context: Any, *slopes: Any) -> Any:
        return slopes[0], None


@dataclass
class _Segment:
    """Nodes that are run forwards again before the way back through them.

    ``entering`` are the values that come from before, as leaves; ``changes`` what rounding changed them.
    """

    start: int
    stop: int
    entering: dict[str, Tensor]
    changes: dict[str, Tensor]


class WayBack(OnnxInTorchSession, Generic[K]):
    """A graph that notes parts of the error on the way back; a subclass says at which tensors.

    The way back needs what lies between them, which is more than a large network should take. So the graph is cut into
    segments wherever :data:`KEPT` bytes are reached: only what enters a segment stays, and the segment is run again
    when the way back has come to its end. What fits is one segment, which is run once.

    Attributes:
        error: the error, summed over images.
        parts: what is noted -> its part of the error, summed over images.
        stopped: operators that no derivative passes.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self.error = 0.0
        self.parts: dict[K, float] = {}
        self.stopped: set[str] = set()
        self._before: dict[str, Tensor] = {}  # what is quantized -> the value before
        self._changes: dict[str, Tensor] = {}  # rounded tensor -> what its rounding changed
        self._kept = 0  # bytes for the way back through this segment

    def add(
        self,
        image: Array,
        error: Callable[[Mapping[str, Tensor]], Tensor],
        further: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Add each layer's part on one image, which is the graph's first input; ``further`` are the others."""
        entering = {self.inputs[0].name: torch.from_numpy(image), **further}
        leaves = {name: value.detach().requires_grad_() for name, value in entering.items()}
        segments = [_Segment(0, len(self._nodes), leaves, {})]
        values = self._forwards(segments[0], KEPT)
        while segments[-1].stop < len(self._nodes):
            entering = {name: x.detach().requires_grad_(x.requires_grad) for name, x in values.items()}
            del values  # and what was kept for the way back with them
            segments.append(_Segment(segments[-1].stop, len(self._nodes), entering, dict(self._changes)))
            values = self._forwards(segments[-1], KEPT)
        outputs = {name: values[name] if name in values else self._weights[name] for name in self._output_names}
        found = error(outputs)
        del values, outputs
        self.error += float(found.detach())
        if not found.requires_grad or not bool(found.isfinite()):
            return
        found.backward()  # type: ignore[no-untyped-call]  # torch has no types
        del found
        while len(segments) > 1:
            self._back_through(segments[-2], segments.pop().entering)

    def _back_through(self, segment: _Segment, leaves: Mapping[str, Tensor]) -> None:
        """Take derivatives by the values that leave a segment on to those that enter it."""
        values = self._forwards(segment)
        slopes = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        torch.autograd.backward([values[name] for name in slopes], list(slopes.values()))

    def _forwards(self, segment: _Segment, limit: float = math.inf) -> dict[str, Tensor]:
        """Run a segment, and return the values that later nodes need; it ends early where so many bytes are kept."""
        if segment.start or math.isinf(limit):
            release_freed_memory()
        self._before.clear()
        self._changes, self._kept = dict(segment.changes), 0
        entering = {name: x.view_as(x) if x.requires_grad else x for name, x in segment.entering.items()}
        values = {**self._weights, **entering}
        with self._limited(), torch.autograd.graph.saved_tensors_hooks(self._narrowed, _widened):
            for number in range(segment.start, segment.stop):
                self._step(number, values)
                if self._kept >= limit and not self._before:
                    segment.stop = number + 1
                    break
        return {name: x for name, x in values.items() if name not in self._weights}

    def _step(self, number: int, values: dict[str, Tensor]) -> None:
        super()._step(number, values)
        for name in self._ends[number]:
            self._before.pop(name, None)
            self._changes.pop(name, None)

    def _note(self, node: ir.Node, values: dict[str, Tensor], found: tuple[Tensor, ...]) -> None:
        """Add what a node has computed to the values; a segment widens its own weights alone, for itself."""
        values |= {str(value.name): one for value, one in zip(node.outputs, found, strict=False)}

    def _computed(self, node: ir.Node, given: list[Tensor | None], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        """Compute a node, and note an operator that no derivative passes."""
        if node.op_type in COMPARED:
            with torch.autograd.graph.saved_tensors_hooks(self._as_it_is, _widened):
                return super()._run_node(node, given, attributes)
        found = super()._run_node(node, given, attributes)
        if any(v is not None and v.requires_grad for v in given) and found[0].is_floating_point():
            self.stopped |= set() if found[0].requires_grad else {node.op_type}
        return found

    def _narrowed(self, value: Tensor) -> Tensor:
        """A tensor as it is kept for the way back; weights, which are there anyway, stay."""
        if value.is_leaf and value.is_floating_point():
            return value
        value = value.detach()
        return self._as_it_is(value if value.dtype != torch.float32 or value.numel() < LARGE else value.bfloat16())

    def _as_it_is(self, value: Tensor) -> Tensor:
        """Count a tensor that is kept for the way back; one that knew where it comes from would never be freed."""
        self._kept += value.nbytes
        return value.detach()

    def _noted(self, key: K, value: Tensor, change: Tensor) -> Tensor:
        def see(slope: Tensor) -> None:
            self.parts[key] += float((slope * change).sum())

        value.register_hook(see)  # type: ignore[no-untyped-call]  # torch has no types
        return value

    def _noted_weight(self, key: K, weight: Tensor, exact: Callable[[], Tensor]) -> Tensor:
        leaf = weight.detach().requires_grad_()

        def see(leaf: Tensor) -> None:
            assert leaf.grad is not None
            self.parts[key] += float((leaf.grad * (leaf.detach() - exact())).sum())
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(see)  # type: ignore[no-untyped-call]  # torch has no types
        return leaf


def _widened(kept: Tensor) -> Tensor:
    return kept.float() if kept.dtype == torch.bfloat16 else kept
