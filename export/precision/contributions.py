"""What each quantized layer adds to the error of the outputs, for all layers from one run and its derivatives.

Quantization changes numbers at the roundings of a layer: of its input, of its weight, and of its output where that is
rounded too. The derivative of the error by each rounded tensor, times what its rounding changed, is the part of the
error that this layer makes: to first order the parts add up to the whole, and a layer that stays in floating point
takes its part away. Roundings themselves have no useful derivative and count as if they changed nothing.

So one run forwards and one backwards of the quantized network rank all layers. How far the ranking is right is measured
afterwards, with layers really left in floating point (:mod:`deploykit.export.precision.sensitivity`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

__all__ = ["contributions_of"]

_log = logging.getLogger(__name__)

KEPT = 2**28  # bytes that are kept for the way back before the graph is cut
LARGE = 2**16  # values of a tensor from which on a half of its bits is enough to keep it for the way back

COMPARED = {"ReduceMax", "ReduceMin"}
"""Operators whose derivatives look where the input is equal to the output."""


def contributions_of(
    quantized: ir.Model,
    weights: Mapping[str, Array],
    images: Sequence[Array],
    error: Callable[[int, Mapping[str, Tensor]], Tensor],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[float, dict[str, float]]:
    """Return the error and what each layer adds to it, as means over images; 0 where no derivative reaches the layer.

    Args:
        quantized: the quantized graph.
        weights: quantized layer -> its weight before.
        images: the images.
        error: returns the error of the outputs for the image of this number, with its derivative.
        progress: receives how many images are done.
    """
    with _Differentiated(quantized, weights) as session, session.in_one_thread():
        for number, image in enumerate(images):
            session.add(image, lambda found, number=number: error(number, found))  # type: ignore[misc]
            progress(number + 1)
        if session.stopped:
            _log.warning(
                "no derivative passes the operators %s, so layers before them alone are not chosen to stay in floating "
                "point: name them with --keep if the accuracy is not enough",
                ", ".join(sorted(session.stopped)),
            )
        parts = {layer: part / len(images) for layer, part in session.parts.items()}
        return session.error / len(images), parts


class _Straight(torch.autograd.Function):
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


class _Differentiated(OnnxInTorchSession):
    """A quantized graph whose layers note their parts of the error on the way back.

    The way back needs what lies between the layers, which is more than a large network should take. So the graph is cut
    into segments wherever :data:`KEPT` bytes are reached: only what enters a segment stays, and the segment is run
    again when the way back has come to its end. What fits is one segment, which is run once.
    """

    def __init__(self, model: ir.Model, weights: Mapping[str, Array]) -> None:
        super().__init__(model)
        self.error, self.parts = 0.0, dict.fromkeys(weights, 0.0)
        self.stopped: set[str] = set()
        self._exact = weights
        self._before: dict[str, Tensor] = {}  # what is quantized -> the value before
        self._changes: dict[str, Tensor] = {}  # rounded tensor -> what its rounding changed
        self._kept = 0  # bytes for the way back through this segment
        self._makers = {str(node.outputs[0].name): str(node.name) for node in model.graph if node.name in weights}

    def add(self, image: Array, error: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        """Add each layer's part on one image."""
        (info,) = self.inputs
        segments = [_Segment(0, len(self._nodes), {info.name: torch.from_numpy(image).requires_grad_()}, {})]
        values = self._forwards(segments[0], KEPT)
        while segments[-1].stop < len(self._nodes):
            entering = {name: x.detach().requires_grad_(x.requires_grad) for name, x in values.items()}
            del values  # and what was kept for the way back with them
            segments.append(_Segment(segments[-1].stop, len(self._nodes), entering, dict(self._changes)))
            values = self._forwards(segments[-1], KEPT)
        found = error({name: values[name] for name in self._output_names})
        del values
        self.error += float(found.detach())
        if not found.requires_grad or not bool(found.isfinite()):
            return
        found.backward()  # type: ignore[no-untyped-call]
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

    def _run_node(self, node: ir.Node, given: list[Tensor | None], attributes: dict[str, Any]) -> tuple[Tensor, ...]:
        result = str(node.outputs[0].name)
        first = given[0] if given else None
        if node.op_type == "QuantizeLinear":
            assert first is not None
            self._before[result] = first
            with torch.no_grad():
                return super()._run_node(node, given, attributes)
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            before = self._before.get(str(node.inputs[0].name))
            if before is not None:
                return (self._rounded(node, before, super()._run_node(node, given, attributes)[0]),)
        layer = str(node.name)
        if layer in self._exact:
            source, weight = node.inputs[0], given[1]
            assert source is not None
            assert weight is not None
            change = self._changes.get(str(source.name))
            if change is not None and first is not None and first.requires_grad:
                given = [self._noted(layer, first.view_as(first), change), *given[1:]]
            given = [given[0], self._noted_weight(layer, weight), *given[2:]]
        if node.op_type in COMPARED:
            with torch.autograd.graph.saved_tensors_hooks(self._as_it_is, _widened):
                return super()._run_node(node, given, attributes)
        found = super()._run_node(node, given, attributes)
        if any(v is not None and v.requires_grad for v in given) and found[0].is_floating_point():
            self.stopped |= set() if found[0].requires_grad else {node.op_type}
        return found

    def _rounded(self, node: ir.Node, before: Tensor, after: Tensor) -> Tensor:
        """Return the rounded value, with the derivative of the value before."""
        change = self._as_it_is((after - before.detach()).to(torch.bfloat16))
        self._changes[str(node.outputs[0].name)] = change
        rounded: Tensor = _Straight.apply(before, after)  # type: ignore[no-untyped-call]
        pair = node.inputs[0].producer() if node.inputs[0] is not None else None
        maker = None if pair is None or pair.inputs[0] is None else self._makers.get(str(pair.inputs[0].name))
        return rounded if maker is None or not rounded.requires_grad else self._noted(maker, rounded, change)

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

    def _noted(self, layer: str, value: Tensor, change: Tensor) -> Tensor:
        def see(slope: Tensor) -> None:
            self.parts[layer] += float((slope * change).sum())

        value.register_hook(see)  # type: ignore[no-untyped-call]
        return value

    def _noted_weight(self, layer: str, weight: Tensor) -> Tensor:
        exact, leaf = self._exact[layer], weight.detach().requires_grad_()

        def see(leaf: Tensor) -> None:
            assert leaf.grad is not None
            self.parts[layer] += float((leaf.grad * (leaf.detach() - torch.tensor(exact))).sum())
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(see)  # type: ignore[no-untyped-call]
        return leaf


def _widened(kept: Tensor) -> Tensor:
    return kept.float() if kept.dtype == torch.bfloat16 else kept
