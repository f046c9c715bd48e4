"""The layers that stay in floating point, chosen by measurement of the network's outputs.

Networks have hundreds of layers, and most of them do not matter. So all are ranked by what they add to the error, from
one run with everything quantized (:mod:`deploykit.export.precision.search.contributions`). Then networks in which the
first layers of that list are really left in floating point are run, and the length of the list is found by
interpolation between their errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.export.options import PrecisionOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.export.precision.cpu_int8 import quantize_for_cpu
from deploykit.export.precision.half import to_half
from deploykit.export.precision.half_rules import LARGEST
from deploykit.export.precision.observed import network_of, outputs_of_each, scales_of, values_of
from deploykit.export.precision.qdq import QuantizationResult, quantisable, quantize
from deploykit.export.precision.search.names import label_of, named_in
from deploykit.models.fuse import torch_threads
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec

__all__ = [
    "ENOUGH",
    "ErrorsOf",
    "Ranking",
    "Sensitivity",
    "as_tensors",
    "choose_keep",
    "named_layers",
    "outputs_of",
    "quantize_as",
]

ENOUGH = 0.5  # exclude layers until the error is this share of the error with all layers quantized
NEAR = 1.03  # errors whose ratio is less than this are nearly the same
WORTHWHILE = 0.75  # of the layers that may be excluded, fewer than these are looked for
MOST = 0.15  # the largest share of the layers that may be excluded by measurement


@dataclass(frozen=True)
class Sensitivity:
    """What layers add to the error of :meth:`deploykit.export.outputs.ExportAdapter.error`.

    Attributes:
        whole: the error with every layer quantized.
        layers: layer -> its part of that error, to first order, the largest first.
        images: how many images were used.
        tried: how many of the first layers were left in floating point -> the error that was measured then.
    """

    whole: float
    layers: dict[str, float]
    images: int
    tried: dict[int, float]


def outputs_of(graph: ir.Model, images: Sequence[Array]) -> list[dict[str, Tensor]]:
    """Return a graph's outputs for each image."""
    return list(map(as_tensors, outputs_of_each(graph, images)))


def as_tensors(found: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return outputs as torch's tensors."""
    return {name: torch.from_numpy(value) for name, value in found.items()}


def quantize_as(
    graph: ir.Model,
    ranges: Mapping[str, float],
    spec: ModelSpec,
    options: PrecisionOptions,
    nodes_to_exclude: Collection[str],
    largest: Mapping[str, float] = MappingProxyType({}),
) -> QuantizationResult:
    """Quantize a graph in place, except ``nodes_to_exclude``, in the form that the options ask for.

    ``largest``: the largest absolute value of tensors; layers that stay in fp16 stay in fp32 where it does not hold
    them.
    """
    reduced = options.reduce_range
    if options.target == "cpu":
        return quantize_for_cpu(graph, ranges, spec.input, nodes_to_exclude=nodes_to_exclude, reduce_range=reduced)
    kind = options.quantised
    assert kind is not None
    done = quantize(graph, ranges, kind=kind, nodes_to_exclude=nodes_to_exclude, reduce_range=reduced)
    if options.keep_as == "fp16" and done.kept:
        _in_half(graph, done.kept, largest)
    return done


def _in_half(graph: ir.Model, layers: Collection[str], largest: Mapping[str, float]) -> None:
    """Let layers of a quantized graph compute in fp16 if it holds what they take and give."""
    fits = {
        str(node.name)
        for node in graph.graph
        if str(node.name) in layers
        and all(largest.get(str(v.name), 0.0) <= LARGEST for v in (*node.inputs, *node.outputs) if v is not None)
    }
    if fits:
        others = [str(node.name) for node in graph.graph if str(node.name) not in fits]
        to_half(graph, "fp16", largest=largest, nodes_to_exclude=others)


class ErrorsOf:
    """The errors of a quantized graph's outputs, and of those of further graphs that differ from it in scales alone."""

    def __init__(self, graph: ir.Model, spec: ModelSpec) -> None:
        self._scales = scales_of(graph)
        self._network = network_of(graph, self._scales)
        self._adapter = export_adapter_of(spec)

    def errors(self, graph: ir.Model, exact: Sequence[Mapping[str, Tensor]], images: Sequence[Array]) -> list[float]:
        """Return the error of such a graph's outputs on each image."""
        network = self._network.with_values(values_of(graph, self._scales))
        found = list(map(as_tensors, network.run_each(images)))
        with torch_threads(1):  # as the outputs: the same on any number of threads
            return [float(self._adapter.error(a, b)) for a, b in zip(exact, found, strict=True)]

    def close(self) -> None:
        """Free the network."""
        self._network.close()


class Ranking:
    """What each layer adds to the error, the first candidates for floating point first.

    What a layer adds depends on the errors to which it adds. So the first layers are left in floating point in a second
    run, where it is needed, and the order of the others follows from both runs.

    Args:
        layers: the names of all layers that can be quantized.
        parts_without: returns, with these layers in floating point, the error and what each other layer adds to it.

    Attributes:
        layers: layer -> what it adds.
        first: how many of the first layers have their place, whatever a second run says.
    """

    def __init__(
        self, layers: Sequence[str], parts_without: Callable[[Collection[str]], tuple[float, Mapping[str, float]]]
    ) -> None:
        self._parts_without = parts_without
        self._whole, parts = parts_without(())
        self.layers = {layer: parts[layer] for layer in sorted(layers, key=lambda layer: -parts[layer])}
        candidates = list(self.layers)[: int(MOST * len(layers)) // 2]
        self.first = sum(parts[layer] > 0 for layer in candidates)

    def correct(self) -> None:
        """Correct the order of the layers after the first ones by a second run."""
        if not self.first:
            return
        parts, first = self.layers, list(self.layers)[: self.first]
        rest, others = self._parts_without(first)
        both = {layer: (parts[layer] * self._whole + part * rest) / 2 / self._whole for layer, part in others.items()}
        self.layers = {layer: parts[layer] for layer in first}
        self.layers |= dict(sorted(both.items(), key=lambda item: -item[1]))


def choose_keep(
    whole: float,
    ranking: Ranking,
    error_without: Callable[[Collection[str]], float],
    *,
    progress: Progress = SILENT,
) -> tuple[tuple[str, ...], dict[int, float]]:
    """Choose the layers that are not quantized: the fewest of the first ones with which half of the error is gone.

    At most 15 % of the layers are excluded. Where that is not enough for half of the error, the fewest layers are taken
    with which the error is nearly as small as with all of those. Where the first layers of the ranking are expected to
    be enough, and are, its second run is not made: it changes the order of the others alone.

    Args:
        whole: the error with every layer quantized.
        ranking: what layers add to the error.
        error_without: returns the error with these layers excluded.
        progress: receives how many networks have been run.

    Returns:
        The layers, and the errors by the number of excluded layers.
    """
    tried = {0: whole}

    def ranked() -> list[str]:
        return [layer for layer, part in ranking.layers.items() if part > 0]

    def error_of(count: int) -> float:
        if count not in tried:
            tried[count] = error_without(ranked()[:count])
            progress.share(f"layers to keep, {len(tried) - 1} networks compared", 1 - 0.5 ** len(tried))
        return tried[count]

    low, goal, most = 0, ENOUGH * whole, ranking.first
    expected = _expected(whole, ranking.layers, most)
    if not most or expected[most] > goal or error_of(most) > goal:
        ranking.correct()
        low, most = most if most in tried else 0, min(len(ranked()), max(1, int(MOST * len(ranking.layers))))
        expected = _expected(whole, ranking.layers, most)
    if error_of(most) > goal:
        goal = min(NEAR * error_of(most), whole)
        low = next(count for count, error in enumerate(expected) if error <= NEAR * expected[most]) - 1
        low = low if low < WORTHWHILE * most else most  # a few layers less are not worth further runs
    high = min((count for count, error in tried.items() if error <= goal), default=most)
    while high - low > 1:
        count = _between(low, high, tried, goal, expected)
        low, high = (low, count) if error_of(count) <= goal else (count, high)
    chosen = min((count for count, error in tried.items() if error <= goal), default=0)
    return tuple(ranked()[:chosen]), tried


def _between(low: int, high: int, tried: Mapping[int, float], goal: float, expected: Sequence[float]) -> int:
    """Return the count between two from which on the goal is probably met: errors fall as is expected between them."""
    quarter = max(1, (high - low) // 4)  # however wrong that is, so much of the way is gone
    top, bottom = (tried.get(count, math.nan) ** 2 for count in (low, high))
    start, fall = expected[low] ** 2, expected[low] ** 2 - expected[high] ** 2
    if not (fall > 0 and top > bottom):
        return (low + high) // 2
    wanted = start - fall * (top - goal**2) / (top - bottom)
    found = next(count for count in range(low, high + 1) if expected[count] ** 2 <= wanted or count == high)
    return min(max(found, low + quarter), high - quarter)


def _expected(whole: float, layers: Mapping[str, float], most: int) -> list[float]:
    """The errors that are left without 0, 1, ... ``most`` of the first layers.

    Errors of layers are independent, so their squares add up.
    """
    gone = accumulate(list(layers.values())[:most], initial=0.0)
    return [math.sqrt(max(0.0, whole * (whole - each))) for each in gone]


def named_layers(graph: ir.Model, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that match names or patterns (``*``, ``?``), by the name of the node or of its weight.

    Raises:
        UsageError: a name or pattern matches no layer.
    """
    labels = {str(node.name): label_of(node) for node in quantisable(graph.graph)}
    return named_in(labels, wanted, "layer that can be quantized")
