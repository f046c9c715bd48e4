"""The actual precision of convolutions and matrix products, read from a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deploykit.errors import ExportError
from deploykit.export.precision.half_rules import COMPUTE

__all__ = ["check_precision", "precisions_of"]

FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
NARROW = {
    ir.DataType.INT8: "int8", ir.DataType.UINT8: "int8", ir.DataType.FLOAT8E4M3FN: "fp8", ir.DataType.FLOAT8E5M2: "fp8",
}  # fmt: skip


def precisions_of(model: ir.Model | Path) -> dict[str, list[str]]:
    """Return the names of the compute nodes by precision, the most frequent one first.

    A node computes in int8 or fp8 if both its operands come from a DequantizeLinear of that type, which ONNX Runtime
    and TensorRT turn into integer arithmetic. Otherwise it computes in the type of its first input.
    """
    graph = ir.load(model) if isinstance(model, Path) else model.clone()
    ShapeInferencePass()(graph)
    found: dict[str, list[str]] = {}
    for node in graph.graph:
        if node.op_type in COMPUTE and node.domain == "":
            found.setdefault(_precision(node), []).append(str(node.name))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def check_precision(counts: Mapping[str, int], asked: str, what: str) -> None:
    """Check that compute layers have the precision that was asked for.

    Most of them must have it for fp32, fp16 and bf16. One is enough for int8 and fp8, because any number of layers may
    be excluded.

    Raises:
        ExportError: they do not have it; ``what`` begins the message.
    """
    most = max(counts, key=counts.__getitem__, default=asked)
    if (asked in counts) if asked in ("int8", "fp8") else most == asked:
        return
    listed = ", ".join(f"{count} in {kind}" for kind, count in counts.items()) or "none at all"
    raise ExportError(f"{what} must compute in {asked}, but its convolutions and matrix products are {listed}")


def _precision(node: ir.Node) -> str:
    kinds = [_stored(value) for value in node.inputs[:2] if value is not None]
    if len(kinds) == 2 and kinds[0] == kinds[1] and kinds[0] in NARROW.values():
        return kinds[0]
    first = node.inputs[0]
    dtype = None if first is None else first.dtype
    return FLOATS.get(dtype, "unknown" if dtype is None else str(dtype.name).lower()) if dtype else "unknown"


def _stored(value: ir.Value) -> str:
    """Return the narrow type before a DequantizeLinear; an empty string if there is none."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return ""
    source = producer.inputs[0]
    zero = producer.inputs[2] if len(producer.inputs) > 2 else None
    for candidate in (source, zero):
        if candidate is not None and candidate.dtype in NARROW:
            return NARROW[candidate.dtype]
    return ""
