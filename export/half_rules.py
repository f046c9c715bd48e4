"""Which operators of a graph half precision leaves in fp32, whatever their values are."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

__all__ = ["COMPUTE", "KEPT", "LARGEST", "MOVES", "lengths", "running_sums"]

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose precision is what a file's precision means."""

LARGEST = 65504.0 / 4
"""The largest absolute value that a tensor may have, measured, to be fp16: other pictures give other values."""

KEPT = {
    "BatchNormalization", "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "GridSample", "GroupNormalization",
    "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "Pow", "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Softmax",
}  # fmt: skip
"""Operators that stay in fp32 whatever their values are."""

MOVES = {"Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that compute nothing; several inputs become one output, so a Cast after them is one and not several."""


def running_sums(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """What follows a running sum up to the difference of two of its values.

    The sums grow along the axis, their differences do not: rounded to half before that, nothing would be left of them.
    """
    found: set[ir.Node] = set()
    for node in nodes:  # in the graph's order: producers come first
        producers = [value.producer() for value in node.inputs if value is not None]
        sums = any(p is not None and (p.op_type == "CumSum" or (p in found and p.op_type != "Sub")) for p in producers)
        if sums and node.op_type in ("Concat", "Gather", "Identity", "Pad", "Slice", "Split", "Sub"):
            found.add(node)
    return found


def lengths(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """What is computed of the length of a vector alone, such as its square or its root with an eps.

    Those go over what fp16 holds, or under it, where the length itself does not.
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
