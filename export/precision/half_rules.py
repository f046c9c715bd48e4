"""Which operators of a graph half precision leaves in fp32, whatever their values are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx_ir as ir

__all__ = [
    "COMPUTE",
    "DATA_MOVEMENT_OPS",
    "FP32_OPS",
    "LARGEST",
    "LARGEST_LOGIT",
    "LARGEST_SQUARED",
    "lengths",
    "norms",
    "running_sums",
    "sharp_attention",
]  # fmt: skip

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose precision is what a file's precision means."""

LARGEST = 65504.0 / 4
"""The largest absolute value that a tensor may have, measured, to be fp16: other images give other values."""

FP32_OPS = {
    "CumSum", "Exp", "GlobalAveragePool", "GlobalLpPool", "GridSample", "Log", "LogSoftmax", "Pow", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
}  # fmt: skip
"""Operators that stay in fp32 whatever their values are."""

LARGEST_SQUARED = 128.0
"""The largest absolute value of what a normalisation may be given in fp16: a quarter of 65504 is its square."""

LARGEST_LOGIT = 64.0
"""The largest logit of an attention in fp16, which rounds it by up to 1/64: that is 1.6 % of a probability."""

DATA_MOVEMENT_OPS = {"Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
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


def norms(nodes: Iterable[ir.Node], opset: int, largest: Mapping[str, float]) -> tuple[set[ir.Node], set[ir.Node]]:
    """The normalisations that stay in fp32: those of which ONNX does not say so, and those that lack the range.

    Mean and variance of a LayerNormalization are float32 by its ``stash_type``, whatever the type of its input, and a
    Cast on each side of it would add nothing. A kernel that takes the sums in fp16 all the same must not overflow.
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
    """Softmaxes whose logits are so large that rounding them shows, with all from the product that gives those.

    Every kernel's exponentials and sums are float32 inside, so that a Cast before a Softmax only widens what the
    product has rounded; of large logits the product itself must give float32. What is added behind the product, such
    as a mask of -100, does not make them large.
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
