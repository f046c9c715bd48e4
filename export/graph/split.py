"""Split of a two-stage graph: the first stage for an engine, the second stage for ONNX Runtime.

A two-stage detector selects and sorts its proposals by operators that depend on data. TensorRT for RTX lacks some of
them: it has no NonMaxSuppression, and RoiAlign only with a GPU. The cut is before the first such operator on every
path. The engine of ViTDet, for example, has the transformer, the pyramid and the convolutions of the proposals.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import ExportError
from deploykit.export.graph.finalize import write
from deploykit.export.graph.passes import initializers_of

__all__ = ["DATA_DEPENDENT_OPS", "split", "with_known_roi_align", "write_first_stage"]

ROI_ALIGN = 21  # the newest opset that ONNX Runtime 1.31 computes RoiAlign of

DATA_DEPENDENT_OPS = ("NonMaxSuppression", "NonZero", "RoiAlign", "TopK")
"""Operators that begin the second stage."""


def split(file: Path) -> tuple[ir.Model, ir.Model]:
    """Cut an ONNX file before any of :data:`DATA_DEPENDENT_OPS`, and return both stages.

    The inputs of the second stage are the outputs of the first one, by the same names. Both carry the metadata.

    Raises:
        ExportError: the graph has no such operator, or nothing before them.
    """
    model = _load_with_types(file)
    behind: set[str] = set()
    for node in model.graph:  # in the graph's order: producers come first
        takes = (value.name for value in node.inputs if value is not None)
        if node.op_type in DATA_DEPENDENT_OPS or _widens(node) or any(name in behind for name in takes):
            behind.update(str(value.name) for value in node.outputs)
    before = {str(value.name) for node in model.graph for value in node.outputs} - behind
    given = {str(value.name) for value in model.graph.inputs}
    fed = _fed_by(model, given)
    borders: dict[str, None] = {}
    for node in model.graph:
        if str(node.outputs[0].name) in behind:
            taken = (str(value.name) for value in node.inputs if value is not None)
            borders.update(dict.fromkeys(name for name in taken if name in before and name in fed))
    if not borders or not behind:
        raise ExportError(f"the graph has no part before {', '.join(DATA_DEPENDENT_OPS)} that an engine could compute")
    second = _load_with_types(file)
    _cut_after(model, list(borders))
    _cut_before(second, list(borders))
    return model, second


def write_first_stage(file: Path) -> Path:
    """Write the first stage of a file beside it, and return its path."""
    first = split(file)[0]
    return write(first, file.with_name(f"first-{file.name}"), sum(c.size for c in initializers_of(first)))


def with_known_roi_align(model: ir.Model) -> None:
    """Lower the opset of an fp32 graph to one of whose RoiAlign ONNX Runtime has an implementation.

    RoiAlign and the convolutions of opset 22 differ from those before in their types alone.
    """
    model.opset_imports[""] = min(model.opset_imports[""], ROI_ALIGN)


def _widens(node: ir.Node) -> bool:
    """Whether a node only widens fp16 values for the second stage, which takes them as they are: half of the bytes."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    if value is None or value.dtype != ir.DataType.FLOAT16 or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    users = [user for user, _ in node.outputs[0].uses()]
    return bool(users) and all(user.op_type in DATA_DEPENDENT_OPS or _gathers(user) for user in users)


def _gathers(node: ir.Node) -> bool:
    """Whether a node looks values up by indices that were chosen."""
    return node.op_type in ("Gather", "GatherElements", "GatherND")


def _load_with_types(file: Path) -> ir.Model:
    """Load a graph and infer the types and shapes of its inner tensors, which are not in the file."""
    model = ir.load(file)
    common.ShapeInferencePass()(model)
    return model


def _fed_by(model: ir.Model, given: set[str]) -> set[str]:
    """Return the tensors that depend on the graph's inputs; both stages compute the others themselves."""
    found = set(given)
    for node in model.graph:
        if any(value is not None and value.name in found for value in node.inputs):
            found.update(str(value.name) for value in node.outputs)
    return found


def _cut_after(model: ir.Model, names: list[str]) -> None:
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)
    _clean(model)


def _cut_before(model: ir.Model, names: list[str]) -> None:
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.inputs.clear()
    for name in names:
        old = values[name]
        new = ir.Value(name=name, type=old.type, shape=old.shape)
        old.name = f"{name}_before"
        ir.convenience.replace_all_uses_with(old, new)
        model.graph.inputs.append(new)
    _clean(model)


def _clean(model: ir.Model) -> None:
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
