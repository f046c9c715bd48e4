"""What layers cost that stay in higher precision: bytes of weights, and multiplications."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deploykit.export.precision.search.kept import KeptLayer
from deploykit.export.precision.search.names import label_of

__all__ = ["Cost", "costs_of", "table_of"]


@dataclass(frozen=True)
class Cost:
    """``values``: of the constants of a node. ``macs``: multiplications of one run; 0 where shapes do not tell."""

    values: int = 0
    macs: int = 0


def costs_of(graph: ir.Model) -> dict[str, Cost]:
    """Return the cost of each node by name; a dimension that is not fixed counts as 1."""
    shaped = graph.clone()
    ShapeInferencePass()(shaped)
    return {str(node.name): Cost(_values(node), _macs(node)) for node in shaped.graph}


def table_of(
    graph: ir.Model, kept: Collection[str], why: str, shares: Mapping[str, float], more: int
) -> tuple[KeptLayer, ...]:
    """Return the table of layers that stay, the largest shares of the error first.

    Args:
        graph: the fp32 graph.
        kept: the names of the nodes.
        why: see :class:`KeptLayer`.
        shares: node -> its share of the error, where that was measured.
        more: how many bytes more a value of their weights takes than it would.
    """
    if not kept:
        return ()
    costs = costs_of(graph)
    macs = max(1, sum(cost.macs for cost in costs.values()))
    rows = []
    for node in graph.graph:
        name, cost = str(node.name), costs[str(node.name)]
        if name in kept:
            rows.append(KeptLayer(name, label_of(node), why, shares.get(name), more * cost.values, cost.macs / macs))
    return tuple(sorted(rows, key=lambda row: -(row.share or 0.0)))


def _values(node: ir.Node) -> int:
    constants = [v.const_value for v in node.inputs if v is not None and v.is_initializer()]
    return sum(c.size for c in constants if c is not None and c.dtype == ir.DataType.FLOAT)


def _macs(node: ir.Node) -> int:
    shapes = [_sides(v) for v in (*node.inputs[:2], node.outputs[0])] if len(node.inputs) > 1 else []
    if not all(shapes):
        return 0
    match node.op_type:
        case "Conv":
            return math.prod(shapes[2]) * math.prod(shapes[1][1:])
        case "ConvTranspose":
            return math.prod(shapes[0]) * math.prod(shapes[1][1:])
        case "MatMul":
            return math.prod(shapes[2]) * shapes[0][-1]
        case "Gemm":
            across = "transA" in node.attributes and node.attributes["transA"].value
            return math.prod(shapes[2]) * shapes[0][0 if across else -1]
    return 0


def _sides(value: Any) -> list[int]:
    if value is None or value.shape is None:
        return []
    return [side if isinstance(side, int) else 1 for side in value.shape]
