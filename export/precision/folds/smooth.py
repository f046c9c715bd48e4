"""Smoothing: factors move from activations with outlier channels into the weights of the layers that take them.

A transformer's normalised tokens have a few channels that are much larger than the others. All channels of a tensor
share one scale in int8, so the others get few steps. A weight has a scale for each output channel and room to spare. So
the factor s_j of a channel j goes from the gain and bias of the LayerNormalization into row j of the linear layers
after it: the product is the same. The same goes for the values of an attention, whose channels pass its second product
one by one: from the weight that makes them into that of the projection after it.

    s_j = max |X_j|^a / max |W_j|^(1 - a)     (G. Xiao et al., "SmoothQuant", arXiv 2211.10438)

with several a to choose from by measurement. Factors are powers of two, so that no bit of an fp32 result changes. What
lies between is found by following the channels through the graph (:mod:`deploykit.export.precision.folds.channels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploykit.export.precision.folds import Candidate, Changes, Scaled
from deploykit.export.precision.folds.channels import Followed, follow_channels
from deploykit.runtime.arrays import Array

__all__ = ["ALPHAS", "Smooth"]

ALPHAS = (0.25, 0.5)
"""How much of the outliers goes into the weights, 0 to 1."""

MOST = 8  # largest exponent of two of a factor


class Smooth:
    """The fold of this module."""

    name = "smooth"

    def applies(self, graph: ir.Model) -> bool:
        """See :meth:`deploykit.export.precision.folds.Fold.applies`."""
        return any(node.op_type == "LayerNormalization" for node in graph.graph)

    def channels(self, graph: ir.Model) -> tuple[str, ...]:
        """Return none: what is measured is found with the channels."""
        return ()

    def candidates(self, graph: ir.Model, images: Sequence[Array], peaks: Mapping[str, Array]) -> Iterator[Candidate]:
        """See :meth:`deploykit.export.precision.folds.Fold.candidates`."""
        followed = follow_channels(graph, images)
        for alpha in ALPHAS:
            changes = changes_for(followed, alpha)
            if changes:
                yield Candidate(f"{alpha:g}", len(changes), changes)


def changes_for(followed: Followed, alpha: float) -> Changes:
    """Return the factors of all constants at which channels begin and end."""
    exponents = _exponents(followed, alpha)
    changes: dict[tuple[str, int], tuple[Scaled, ...]] = {}

    def scale(key: tuple[str, int], axis: int, exponent: Array) -> None:
        if exponent.any():
            changes[key] = (*changes.get(key, ()), Scaled(axis, np.exp2(exponent).astype(np.float32)))

    for source in followed.sources:
        own = exponents[source.first : source.first + source.count]
        for key, axis in source.constants:
            scale(key, axis, -own)
    for sink in followed.sinks:
        scale((sink.node, 1), sink.axis, np.where(sink.ids > 0, exponents[sink.ids], 0))
    return changes


def _exponents(followed: Followed, alpha: float) -> Array:
    """Return the exponent of two of the factor of each channel, by its number; 0 where nothing moves."""
    count = followed.channels + 1
    activation, weight = np.zeros(count), np.zeros(count)
    for sink in followed.sinks:
        np.maximum.at(activation, sink.ids, sink.largest)
        np.maximum.at(weight, sink.ids, sink.weights)
    free = (activation > 0) & (weight > 0) & ~followed.blocked
    free[0] = False
    wanted = np.zeros(count)
    wanted[free] = alpha * np.log2(activation[free]) - (1 - alpha) * np.log2(weight[free])
    for source in followed.sources:  # a factor that all channels of a tensor have changes nothing
        own = slice(source.first, source.first + source.count)
        if free[own].any():
            wanted[own][free[own]] -= np.median(wanted[own][free[own]])
    found: Array = np.clip(np.round(wanted), -MOST, MOST).astype(np.int64)
    return found
