"""Rules of half precision: the nodes of a graph that stay in fp32."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

__all__ = [
    "COMPUTE",
    "DATA_MOVEMENT_OPS",
    "FP32_OPS",
    "LARGEST",
    "LARGEST_LOGIT",
    "LARGEST_SQUARED",
    "boxes",
    "compute_nodes",
    "decode",
    "lengths",
    "norms",
    "running_sums",
    "second_stage",
    "sharp_attention",
]  # fmt: skip

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The compute operators; their precision is the precision of a file."""

LARGEST = 65504.0 / 4
"""The largest measured absolute value of an fp16 tensor, with a margin for the values of other images."""

FP32_OPS = {
    "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "GridSample", "Log", "LogSoftmax", "Pow", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
}  # fmt: skip
"""Operators that always stay in fp32."""

LARGEST_SQUARED = 128.0
"""The largest absolute input of a normalization in fp16; its square is a quarter of 65504."""

LARGEST_LOGIT = 64.0
"""The largest logit of an attention in fp16, which rounds it by up to 1/64, or 1.6 % of a probability."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

DATA_MOVEMENT_OPS = {"Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that only move data; a Cast after one with several inputs replaces several before it."""


LOOKED_UP = {*DATA_MOVEMENT_OPS, "RoiAlign", "ScatterND", "Where"}
"""RoiAlign, and what only moves what it looks up."""


def compute_nodes(graph: Any) -> list[ir.Node]:
    """Return the convolutions and matrix products of a graph, or of nodes in its order, without means of bins.

    A box head may give each distance as a distribution over the bins 0, 1, 2, ..., and its mean is a product too. But
    it is arithmetic on cells: distances of 8 to 16 have steps of 1/128 in fp16 and 1/16 in bf16, which are 0.25 and 2
    pixels where a cell is 32 wide.
    """
    return [n for n in graph if n.op_type in COMPUTE and n.domain == "" and not _averages_bins(n)]


def _averages_bins(node: ir.Node) -> bool:
    """Whether a node multiplies a Softmax by constants to one value."""
    if node.op_type not in ("Conv", "MatMul") or node.inputs[1] is None or not node.inputs[1].is_initializer():
        return False
    shape = node.inputs[1].shape
    if shape is None or not (len(shape) == 1 or shape[0 if node.op_type == "Conv" else -1] == 1):
        return False
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in DATA_MOVEMENT_OPS and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "Softmax"


def decode(nodes: Sequence[ir.Node], layers: Collection[ir.Node]) -> set[ir.Node]:
    """Return the nodes after the last of these layers."""
    before: set[ir.Node] = set()
    for node in reversed(nodes):
        if node in layers or any(user in before for value in node.outputs for user, _ in value.uses()):
            before.add(node)
    return {node for node in nodes if node not in before}


def boxes(nodes: Sequence[ir.Node], layers: Collection[ir.Node]) -> set[ir.Node]:
    """Return the nodes between layers that compute on boxes, or look something up in them.

    A detector in two stages makes boxes of what its first layers give, sorts them, suppresses some and looks up what
    lies in the others, for further layers. So this arithmetic on pixels lies between layers. It is what leads to a
    layer only through the coordinates of a RoiAlign or through indices and conditions. RoiAlign itself belongs to it,
    because ONNX gives its maps the type of its coordinates, and so does what moves its results to the next layer.
    Graphs without RoiAlign have no such nodes.
    """
    if not any(node.op_type == "RoiAlign" and node.domain == "" for node in nodes):
        return set()
    values: set[ir.Node] = set()
    for node in reversed(nodes):
        uses = [(value, user, i) for value in node.outputs for user, i in value.uses()]
        if node in layers or any(
            user in values and not (user.op_type == "RoiAlign" and i > 0) and value.dtype in FLOATS
            for value, user, i in uses
        ):
            values.add(node)
    found = {node for node in nodes if node not in values and node.op_type not in ("Shape", "Size")}
    for node in nodes:
        moves = node.op_type in DATA_MOVEMENT_OPS or node.op_type in ("ScatterND", "Where")
        producers = [value.producer() for value in node.inputs if value is not None]
        looked_up = any(p is not None and p in found and p.op_type in LOOKED_UP for p in producers)
        if node.op_type == "RoiAlign" or (moves and looked_up):
            found.add(node)
    return found - decode(nodes, layers)


def second_stage(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Return the nodes behind a RoiAlign: what a detector in two stages computes of each box."""
    found: set[ir.Node] = set()
    for node in nodes:  # in the graph's order: producers come first
        producers = (value.producer() for value in node.inputs if value is not None)
        if node.op_type == "RoiAlign" or any(p in found for p in producers if p is not None):
            found.add(node)
    return found


def running_sums(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Return the nodes after a running sum, up to the difference of two of its values.

    The sums grow along the axis and their differences do not, so rounding the sums to half would destroy the
    differences.
    """
    found: set[ir.Node] = set()
    for node in nodes:  # in the graph's order: producers come first
        producers = [value.producer() for value in node.inputs if value is not None]
        sums = any(p is not None and (p.op_type == "CumSum" or (p in found and p.op_type != "Sub")) for p in producers)
        if sums and node.op_type in ("Concat", "Gather", "Identity", "Pad", "Slice", "Split", "Sub"):
            found.add(node)
    return found


def lengths(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Return the nodes that compute on the length of a vector alone, such as its square or its root with an eps.

    Their values may overflow or underflow fp16 when the length itself does not.
    """
    found: set[ir.Node] = set()
    for node in nodes:
        values = [value for value in node.inputs if value is not None and not value.is_initializer()]
        producers = [value.producer() for value in values]
        known = [p for p in producers if p is not None and p.op_type != "Constant"]
        alone = all(p in found or p.op_type in ("ReduceL2", "ReduceSumSquare") for p in known)
        if known and alone and len(known) == len(values) and node.op_type in ("Add", "Div", "Mul", "Pow", "Sqrt"):
            found.add(node)
    return found


def norms(nodes: Iterable[ir.Node], opset: int, largest: Mapping[str, float]) -> tuple[set[ir.Node], set[ir.Node]]:
    """Return two sets of normalizations that stay in fp32: statistics of unspecified type, and inputs out of range.

    Mean and variance of a LayerNormalization are float32 by its ``stash_type``, whatever the type of its input, so a
    Cast on each side would add nothing. Its inputs are limited because a kernel that sums in fp16 must not overflow.
    """
    stats_type_unspecified, range_exceeded = set(), set()
    for node in nodes:
        if node.domain or not node.op_type.endswith("Normalization"):
            continue
        stash = onnx.defs.get_schema(node.op_type, opset, "").attributes.get("stash_type")
        asked = node.attributes.get("stash_type")
        if stash is None or (asked is not None and asked.value != int(ir.DataType.FLOAT)):
            stats_type_unspecified.add(node)
        elif largest.get(_name(node.inputs[0]), 0.0) > LARGEST_SQUARED:
            range_exceeded.add(node)
    return stats_type_unspecified, range_exceeded


def sharp_attention(nodes: Iterable[ir.Node], largest: Mapping[str, float]) -> set[ir.Node]:
    """Return each Softmax whose logits are too large for fp16, with all nodes back to the product that gives them.

    The exponentials and sums of every kernel are float32 inside, so a Cast before a Softmax would only widen logits
    that the product has rounded: the product itself must give float32. Only the product's values count; a mask of -100
    that is added after it does not make logits large.
    """
    found: set[ir.Node] = set()
    for softmax in nodes:
        if softmax.op_type != "Softmax":
            continue
        chain, ends, logits = {softmax}, [softmax], 0.0
        while ends:
            for value in ends.pop().inputs:
                node = None if value is None else value.producer()
                if node is None or node in chain:
                    continue
                if node.op_type in ("MatMul", "Gemm"):
                    chain.add(node)
                    logits = max(logits, largest.get(_name(node.outputs[0]), 0.0))
                elif node.op_type in ("Add", "Div", "Mul", "Sub", "Where") or node.op_type in DATA_MOVEMENT_OPS:
                    chain.add(node)
                    ends.append(node)
        if logits > LARGEST_LOGIT:
            found |= chain
    return found


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)
