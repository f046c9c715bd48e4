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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.precision.search.way_back import Straight, WayBack
from deploykit.runtime.arrays import Array

__all__ = ["contributions_of"]

_log = logging.getLogger(__name__)


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
            session.add(image, lambda found, number=number: error(number, found))  # type: ignore[misc]  # bound
            progress(number + 1)
        if session.stopped:
            _log.warning(
                "no derivative passes the operators %s, so layers before them alone are not chosen to stay in floating "
                "point: name them with --keep if the accuracy is not enough",
                ", ".join(sorted(session.stopped)),
            )
        parts = {layer: part / len(images) for layer, part in session.parts.items()}
        return session.error / len(images), parts


class _Differentiated(WayBack[str]):
    """A quantized graph whose layers note their parts of the error on the way back."""

    def __init__(self, model: ir.Model, weights: Mapping[str, Array]) -> None:
        super().__init__(model)
        self.parts = dict.fromkeys(weights, 0.0)
        self._exact = weights
        self._makers = {str(node.outputs[0].name): str(node.name) for node in model.graph if node.name in weights}

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
            given = [given[0], self._noted_weight(layer, weight, lambda: torch.tensor(self._exact[layer])), *given[2:]]
        return self._computed(node, given, attributes)

    def _rounded(self, node: ir.Node, before: Tensor, after: Tensor) -> Tensor:
        """Return the rounded value, with the derivative of the value before."""
        change = self._as_it_is((after - before.detach()).to(torch.bfloat16))
        self._changes[str(node.outputs[0].name)] = change
        rounded: Tensor = Straight.apply(before, after)  # type: ignore[no-untyped-call]  # torch has no types
        pair = node.inputs[0].producer() if node.inputs[0] is not None else None
        maker = None if pair is None or pair.inputs[0] is None else self._makers.get(str(pair.inputs[0].name))
        return rounded if maker is None or not rounded.requires_grad else self._noted(maker, rounded, change)
