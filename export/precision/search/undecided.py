"""A detector in two stages without what it decides, so that every rounding of its layers shows in what they give.

Its detections are decisions: rounding exchanges some of them, which no derivative tells, and at its thresholds there
may be none at all. So layers are ranked by all that decisions are made of (the maps, the logits and deltas of proposals
and of boxes, the logits of masks), and those that look at boxes take what the exact network has looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes import common
from torch import Tensor

from deploykit.export.precision.half_rules import FLOATS, boxes, compute_nodes, decode

__all__ = ["Undecided", "undecided"]

Outputs = list[dict[str, Tensor]]


class Undecided(NamedTuple):
    """A graph without decisions, what it gives exactly on each image, and what it takes beside each image."""

    graph: ir.Model
    exact: Outputs
    further: Outputs


def undecided(graph: ir.Model, half: Collection[str], outputs_of: Callable[[ir.Model], Outputs]) -> Undecided:
    """Return a graph that gives what layers give to decisions, and takes what decisions give to layers.

    Args:
        graph: the fp32 graph of a detector in two stages, which is left as it is.
        half: the nodes that compute in half; they decide nothing.
        outputs_of: returns the outputs of a graph on each image.
    """
    whole = graph.clone()
    common.ShapeInferencePass()(whole)
    nodes = list(whole.graph)
    layers = compute_nodes(nodes)
    apart = {node for node in boxes(nodes, layers) | decode(nodes, layers) if str(node.name) not in half}
    taken: list[ir.Value] = []
    given: list[ir.Value] = []
    for node in nodes:
        for value in node.outputs:
            users = {user for user, _ in value.uses()}
            if value.dtype in FLOATS and (users - apart if node in apart else users & apart):
                (given if node in apart else taken).append(value)
    whole.graph.outputs[:] = [*taken, *given]
    _clean(whole)
    exact = outputs_of(whole)
    further = [{str(value.name): each.pop(str(value.name)) for value in given} for each in exact]
    whole.graph.outputs[:] = taken
    for value in given:
        entering = ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.name = f"{value.name}_before"
        ir.convenience.replace_all_uses_with(value, entering)
        whole.graph.inputs.append(entering)
    _clean(whole)
    return Undecided(whole, exact, further)


def _clean(graph: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(graph)
    common.RemoveUnusedOpsetsPass()(graph)
