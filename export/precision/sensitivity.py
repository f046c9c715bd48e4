"""Sensitivity of layers to quantization, measured on the network's outputs.

The sensitivity of a layer is the error of the outputs with only this layer quantized. Networks have hundreds of layers,
and most of them do not matter. So groups of layers are measured first, and the group with the largest error is halved
and measured again, until no group matters or the number of runs is used up.
"""

from __future__ import annotations

import difflib
import fnmatch
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploykit.errors import UsageError
from deploykit.export.options import PrecisionOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.export.precision.cpu_int8 import quantize_for_cpu
from deploykit.export.precision.qdq import QuantizationResult, quantisable, quantize
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec

__all__ = [
    "ENOUGH",
    "RUNS",
    "Sensitivity",
    "choose_keep",
    "error_with",
    "label_of",
    "measure_sensitivity",
    "named_layers",
    "outputs_of",
    "quantize_as",
]

GROUPS = 8  # groups at the start
ENOUGH = 0.5  # exclude layers until the error is this share of the error with all layers quantized
MOST = 0.15  # the largest share of the layers that may be excluded by measurement
RUNS = 64  # quantized networks that are run at most to find the sensitive layers
MATTERS = 0.05  # a group whose error is under this share of the whole error is not halved


@dataclass(frozen=True)
class Sensitivity:
    """The measured sensitivity of layers, as errors of :meth:`deploykit.export.outputs.ExportAdapter.error`.

    Attributes:
        whole: the error with every layer quantized.
        layers: layer -> the error with only this layer quantized, the largest first.
        groups: the groups that were not halved, with their errors.
        images: how many images were used.
    """

    whole: float
    layers: dict[str, float]
    groups: tuple[tuple[tuple[str, ...], float], ...]
    images: int


def outputs_of(graph: ir.Model, images: Sequence[Array]) -> list[dict[str, Array]]:
    """Return a graph's outputs for each image, computed in torch in the graph's own types."""
    with OnnxInTorchSession(graph) as session:
        return [session.run({session.inputs[0].name: image}) for image in images]


def quantize_as(
    graph: ir.Model,
    ranges: Mapping[str, float],
    spec: ModelSpec,
    options: PrecisionOptions,
    nodes_to_exclude: Collection[str],
) -> QuantizationResult:
    """Quantize a graph in place, except ``nodes_to_exclude``, in the form that the options ask for."""
    reduced = options.reduce_range
    if options.target == "cpu":
        return quantize_for_cpu(graph, ranges, spec.input, nodes_to_exclude=nodes_to_exclude, reduce_range=reduced)
    kind = options.quantised
    assert kind is not None
    return quantize(graph, ranges, kind=kind, nodes_to_exclude=nodes_to_exclude, reduce_range=reduced)


def error_with(
    graph: ir.Model,
    ranges: Mapping[str, float],
    nodes_to_exclude: Collection[str],
    exact: Sequence[Mapping[str, Array]],
    images: Sequence[Array],
    spec: ModelSpec,
    options: PrecisionOptions,
) -> float:
    """Quantize a graph in place, except ``nodes_to_exclude``, and return the mean error of its outputs."""
    quantize_as(graph, ranges, spec, options, nodes_to_exclude)
    adapter = export_adapter_of(spec)
    errors = [adapter.error(a, b) for a, b in zip(exact, outputs_of(graph, images), strict=True)]
    return sum(errors) / len(errors)


def measure_sensitivity(
    layers: Sequence[str],
    error_without: Callable[[Collection[str]], float],
    images: int,
    *,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Measure the layers that matter.

    Args:
        layers: the names of all layers that can be quantized, in the graph's order.
        error_without: returns the error with all but these layers quantized.
        images: how many images it measures on.
        progress: receives how many quantized networks have been run.
    """
    runs = 0

    def error_of(group: Collection[str]) -> float:
        nonlocal runs
        error = error_without([layer for layer in layers if layer not in group])
        runs += 1
        progress.share(f"layers, {runs} networks compared", min(1.0, runs / RUNS))
        return error

    start = time.perf_counter()
    whole = error_of(layers)
    minutes = RUNS * (time.perf_counter() - start) / 60
    if minutes > 1:
        progress.message(
            f"the search for layers to keep runs up to {RUNS} quantized networks, here about {minutes:.0f} minutes"
        )
    size = max(1, -(-len(layers) // GROUPS))
    groups = [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
    measured = [(error_of(group), group) for group in groups]
    while runs < RUNS:  # halve the group with the largest error while it matters
        error, group = max((m for m in measured if len(m[1]) > 1), default=(0.0, ()))
        if not group or error < MATTERS * whole:
            break
        measured.remove((error, group))
        half = len(group) // 2
        measured += [(error_of(part), part) for part in (group[:half], group[half:])]
    single = {group[0]: error for error, group in measured if len(group) == 1}
    calm = [(group, error) for error, group in measured if len(group) > 1]
    ordered = dict(sorted(single.items(), key=lambda item: -item[1]))
    return Sensitivity(whole, ordered, tuple(calm), images)


def choose_keep(
    sensitivity: Sensitivity,
    error_without: Callable[[Collection[str]], float],
    *,
    progress: Progress = SILENT,
) -> tuple[str, ...]:
    """Choose the layers that are not quantized.

    The most sensitive layers are excluded one after the other, if the error falls, until half of the error is gone or
    15 % of the layers are excluded.
    """
    total = len(sensitivity.layers) + sum(len(group) for group, _ in sensitivity.groups)
    kept: tuple[str, ...] = ()
    left, most = sensitivity.whole, max(1, int(MOST * total))
    for tried, layer in enumerate(sensitivity.layers):
        if left <= ENOUGH * sensitivity.whole or len(kept) + 1 > most:
            break
        progress.share(f"layers to keep, {len(kept)} chosen of at most {most}", tried / len(sensitivity.layers))
        error = error_without((*kept, layer))
        if error >= left:
            continue
        kept, left = (*kept, layer), error
    return kept


def named_layers(graph: ir.Model, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that match names or patterns (``*``, ``?``), by the name of the node or of its weight.

    Raises:
        UsageError: a name or pattern matches no layer.
    """
    layers = {str(node.name): label_of(node) for node in quantisable(graph.graph)}
    found: list[str] = []
    for pattern in wanted:
        meant = [n for n, label in layers.items() if any(fnmatch.fnmatchcase(x, pattern) for x in (n, label))]
        if not meant:
            near = difflib.get_close_matches(pattern, [*layers, *layers.values()], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(list(layers)[:3])}, ..."
            raise UsageError(f"no layer that can be quantized is called {pattern!r}: {hint}")
        found += meant
    return tuple(dict.fromkeys(found))


def label_of(node: ir.Node) -> str:
    """Return the name of a layer in the network: that of its weight, without the suffix ``.weight``."""
    weight = node.inputs[1]
    return str(node.name) if weight is None else str(weight.name).removesuffix(".weight")
