"""Correction of quantized convolutions: each gives the mean per channel that it gave before, and the spread.

Rounding moves the mean of what a layer gives: the error of a weight is the same at every pixel, and so is what clipping
takes away. Shifts of many layers add up. So on a few images the mean and the standard deviation of each output channel
are measured in float32 and in the quantized network, and what they differ by goes into the layer's bias and weights:
bias correction (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019),
and batch norms estimated anew. A factor per output channel changes the scales of int8 weights and not the numbers.

Layers are corrected in the graph's order, each after those before it, so that no shift is corrected twice: all images
pass the network side by side, node by node. Layers that no further layer follows stay: what they give is the network's
own output, of which a mean over cells where nothing is found says nothing about the others.

A correction changes what the graph computes in fp32, so it cannot be verified as a fold is. It is taken if the error of
the outputs falls on other images than those that it was measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.precision.folds import Added, Changes, Scaled
from deploykit.export.precision.qdq import QuantizationResult, quantisable
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

__all__ = ["CorrectionReport", "choose_corrections"]

LEAST = 2
"""Images without which nothing is corrected."""
WORTHWHILE = 0.9
"""A correction is taken if the error is at most this share of the error before: less is chance."""
MOST = 1.25
"""The largest factor of a channel, and one over the smallest: a larger one would correct what is broken otherwise."""


@dataclass(frozen=True)
class CorrectionReport:
    """What was corrected, if it was ``taken``: so many ``layers``.

    ``before`` and ``after`` are the errors of the outputs.
    """

    taken: bool
    layers: int
    before: float
    after: float

    def line(self) -> str:
        """Return the sentence for the screen."""
        what = f"means and spreads of the channels of {self.layers} layers"
        errors = f"error of the outputs {self.after:.3g} instead of {self.before:.3g}"
        return f"{what}, {errors}" if self.taken else f"nothing: with {what} the {errors}"


def choose_corrections(
    graph: ir.Model,
    quantize: Callable[[ir.Model], QuantizationResult],
    images: Sequence[Array],
    error_with: Callable[[Changes], float],
    before: float,
) -> tuple[Changes, CorrectionReport | None]:
    """Return the corrections, if they are worth it, and the report; None: there is nothing to try.

    Args:
        graph: the graph in float32, which stays as it is.
        quantize: quantizes a copy of it in place.
        images: preprocessed images, one batch each, on which the corrections are measured.
        error_with: returns the error of the quantized outputs with corrections, on other images.
        before: the error without them.
    """
    if len(images) < LEAST:
        return {}, None
    quantized = graph.clone()
    layers = set(quantize(quantized).layers)
    followed = [node for node in _followed(graph) if str(node.name) in layers]
    if not followed:
        return {}, None
    with _SideBySide(quantized, _statistics(graph, followed, images)) as session:
        changes = session.corrections(images)
    release_freed_memory()  # weights and values of both networks, before there is a third one
    after = error_with(changes)
    taken = after < WORTHWHILE * before  # nothing is to be gained from an error of 0
    return changes if taken else {}, CorrectionReport(taken, len(followed), before, after)


class _Statistics(NamedTuple):
    """The mean and the standard deviation of each channel, in float64, ``(channels,)``."""

    mean: Tensor
    deviation: Tensor


def _followed(graph: ir.Model) -> list[ir.Node]:
    """Return the convolutions that can be quantized, with a bias that can be changed, and that such a layer follows."""
    layers = {id(node): node for node in quantisable(graph.graph)}
    leads: set[ir.Value] = set()  # what a layer is made from
    found = []
    for node in reversed(graph.graph):
        follows = any(value in leads for value in node.outputs)
        if follows or id(node) in layers:
            leads |= {value for value in node.inputs if value is not None}
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if follows and id(node) in layers and node.op_type == "Conv" and (bias is None or bias.const_value is not None):
            found.append(node)
    return found[::-1]


def _channels(value: Tensor) -> Tensor:
    """Return the values of each channel, ``(channels, values)``."""
    return value.double().transpose(0, 1).flatten(1)


def _statistics(graph: ir.Model, layers: Sequence[ir.Node], images: Sequence[Array]) -> dict[str, _Statistics]:
    names = {str(node.outputs[0].name): str(node.name) for node in layers}
    sums: dict[str, Tensor] = {}

    def see(name: str, value: Tensor) -> None:
        if name in names:
            x = _channels(value)
            more = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])
            sums[names[name]] = sums.get(names[name], 0) + more

    with OnnxInTorchSession(graph, observe=see) as session, session.in_one_thread():
        (info,) = session.inputs
        for image in images:
            session.run({info.name: image})
    found = {}
    for layer, (count, total, squares) in sums.items():
        mean = total / count
        found[layer] = _Statistics(mean, (squares / count - mean.square()).clamp(min=0).sqrt())
    return found


class _SideBySide(OnnxInTorchSession):
    """A quantized graph that all images pass together, so that a layer is corrected before the next one runs."""

    def __init__(self, graph: ir.Model, before: Mapping[str, _Statistics]) -> None:
        super().__init__(graph)
        self._before = before  # what the layers gave in float32

    def corrections(self, images: Sequence[Array]) -> Changes:
        """Return what corrects the layers, measured on these images."""
        (info,) = self.inputs
        changes: dict[tuple[str, int], tuple[Scaled | Added, ...]] = {}
        with self.in_one_thread(), torch.inference_mode():
            several = [self._weights | {info.name: torch.from_numpy(image)} for image in images]
            for number, node in enumerate(self._nodes):
                for values in several:
                    self._step(number, values)
                layer = str(node.name)
                if layer in self._before:
                    factors, shift = self._correct(layer, str(node.outputs[0].name), several)
                    changes[layer, 1] = (Scaled(0, factors.numpy()),)
                    changes[layer, 2] = (Scaled(0, factors.numpy()), Added(0, shift.numpy()))
        return changes

    def _correct(self, layer: str, name: str, several: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Correct what a layer has given for each image, and return the factors and what is added."""
        given = torch.cat([_channels(values[name]) for values in several], 1)
        mean, deviation = given.mean(1), given.std(1, correction=0)
        wanted = self._before[layer]
        ratio = (wanted.deviation / deviation).clamp(1 / MOST, MOST)
        factors = torch.where((deviation > 0) & (wanted.deviation > 0), ratio, 1.0)
        shift = wanted.mean - factors * mean
        factors, shift = factors.float(), shift.float()
        for values in several:
            shape = (-1, *[1] * (values[name].ndim - 2))
            values[name] = values[name] * factors.reshape(shape) + shift.reshape(shape)
        return factors, shift
