"""A graph in two parts: what an engine can compute, and what follows from data, which ONNX Runtime computes behind it.

A detector in two stages looks up and sorts what it finds, with operators that TensorRT for RTX has not (it has no
NonMaxSuppression, and RoiAlign only where there is a GPU). The cut is before the first such operator on every path:
of ViTDet that leaves the transformer, the pyramid and the convolutions of the proposals to the engine.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import ExportError

__all__ = ["DATA_DEPENDENT_OPS", "split"]

DATA_DEPENDENT_OPS = ("NonMaxSuppression", "NonZero", "RoiAlign", "TopK")
"""Operators that begin the second part."""


def split(file: Path) -> tuple[ir.Model, ir.Model]:
    """Cut an ONNX file before any of :data:`DATA_DEPENDENT_OPS`: the part before them, and the second stage.

    The second stage takes what the first part gives, by the same names. Both carry the metadata.

    Raises:
        ExportError: nothing of a network lies before them, or nothing behind.
    """
    model = _typed(file)
    behind: set[str] = set()
    for node in model.graph:  # in the graph's order: producers come first
        takes = (value.name for value in node.inputs if value is not None)
        if node.op_type in DATA_DEPENDENT_OPS or any(name in behind for name in takes):
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
    rest = _typed(file)
    _end_at(model, list(borders))
    _begin_at(rest, list(borders))
    return model, rest


def _typed(file: Path) -> ir.Model:
    """The graph with the types and shapes of its inner tensors, which files are written without."""
    model = ir.load(file)
    common.ShapeInferencePass()(model)
    return model


def _fed_by(model: ir.Model, given: set[str]) -> set[str]:
    """The tensors that depend on the graph's inputs: what does not is computed again on either side."""
    found = set(given)
    for node in model.graph:
        if any(value is not None and value.name in found for value in node.inputs):
            found.update(str(value.name) for value in node.outputs)
    return found


def _end_at(model: ir.Model, names: list[str]) -> None:
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in names)
    _clean(model)


def _begin_at(model: ir.Model, names: list[str]) -> None:
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
