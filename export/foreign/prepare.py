"""An fp32 ONNX file of any project in the form that the conversions know, with the same numbers.

Exporters differ in what they leave in a graph: weights in Constant nodes, or behind an Identity, a Transpose or a
function; sizes that are computed from constants; batch norms beside the convolutions that they scale; nodes without
names. Afterwards weights are initializers, constants are folded and so are batch norms, and every node has a name.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import rewriter, version_converter
from onnxscript.rewriter.rules import common as rules

from deploykit.errors import ArtefactError, ExportError, UsageError
from deploykit.export.graph import passes
from deploykit.export.graph.versions import lowest_ir_version
from deploykit.export.options import MIN_OPSET, TRACED, Precision
from deploykit.export.precision.half_rules import COMPUTE

__all__ = ["OLDEST", "Prepared", "prepared_graph"]

OLDEST = 7
"""The oldest opset that is read: before it, sides that do not fit were stretched by attributes."""

RESIZE_CHANGED = 11
"""The opset since which Resize says where pixels lie; before, the first ones lay on each other."""

QUANTIZED = {
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "QuantizeLinear",
}
"""Operators of a graph that is quantized, beside those whose names begin with ``QLinear``."""

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
"""Operators whose values are others in each run."""

BATCH_NORM_RULES = (
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A graph that is ready for a conversion, and what was done for that, a phrase each.

    ``metadata`` is what the file says of itself; ``parts`` are the files that hold its weights, if they are apart.
    """

    graph: ir.Model
    done: tuple[str, ...]
    metadata: dict[str, str]
    parts: tuple[Path, ...]


def prepared_graph(file: Path, precision: Precision) -> Prepared:
    """Read an ONNX file of fp32, with its external data, and prepare it for a precision.

    Raises:
        UsageError: it is no ``.onnx`` file. ArtefactError: it cannot be read. ExportError: it is not in fp32, its opset
            is older than :data:`OLDEST`, or it cannot be raised to the opset that is needed.
    """
    if file.suffix.lower() != ".onnx":
        raise UsageError(f"expected an .onnx file, got {file}: a checkpoint becomes one with deploykit export")
    try:
        graph = ir.load(file)
        parts = tuple(dict.fromkeys(Path(tensor.path) for tensor in _external(graph)))
        graph = ir.external_data.load_to_model(graph)
    except Exception as e:  # protobuf's errors have no base class of their own
        if told := next((str(each) for each in _causes(e) if isinstance(each, NotImplementedError)), ""):
            raise ExportError(
                f"{file} has values that are no tensors ({told.partition('.')[0]}): export it without them (ZipMap)"
            ) from e
        raise ArtefactError(f"{file} is not a whole ONNX file: {str(e).splitlines()[0]}") from e
    _check_not_quantized(graph, file)
    _check_not_random(graph, file)
    done = []
    if graph.functions:
        common.InlinePass()(graph)
        done.append("functions inlined")
    common.RemoveInitializersFromInputsPass()(graph)
    done += _raise_opset(graph, file, precision)
    before = sum(1 for _ in graph.graph)
    _fold_constants(graph)
    norms = _count(graph, "BatchNormalization")
    with _quiet():
        rewriter.rewrite(graph, BATCH_NORM_RULES)
    if folded := norms - _count(graph, "BatchNormalization"):
        done.append(f"{folded} batch norm{'s' * (folded > 1)} folded")
    if removed := before - folded - sum(1 for _ in graph.graph):
        done.append(f"{removed} node{'s' * (removed > 1)} of constants folded")
    if guards := _unguard_softmax(graph):
        done.append(f"{guards} softmax{'es' * (guards > 1)} without a guard against NaN")
    _name_nodes(graph)
    _check_weights(graph, file)
    graph.ir_version = max(graph.ir_version or 0, lowest_ir_version(graph))  # before 4, inputs have to list weights
    return Prepared(graph, tuple(done), dict(graph.metadata_props), parts)


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def _external(graph: ir.Model) -> Iterator[ir.ExternalTensor]:
    """The stored tensors whose bytes are in other files."""
    for value in graph.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value


def _check_not_quantized(graph: ir.Model, file: Path) -> None:
    """Refuse a graph that is quantized."""
    for node in graph.graph.all_nodes():
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear"):
            raise ExportError(
                f"{file} is quantized already (node {node.name or node.op_type!r}, {node.op_type}): give the fp32 file "
                "that it was made from"
            )


def _check_not_random(graph: ir.Model, file: Path) -> None:
    """Refuse a graph with which nothing can be compared, because it gives other values in each run."""
    for node in graph.graph.all_nodes():
        if not node.domain and (node.op_type in RANDOM or _drops_out(node)):
            raise ExportError(
                f"{file} gives other values in each run (node {node.name or node.op_type!r}, {node.op_type}): export "
                "the model in its evaluation mode, as model.eval() in PyTorch sets it"
            )


def _drops_out(node: ir.Node) -> bool:
    """Whether a node is a Dropout in training mode."""
    mode = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    training = None if mode is None else ir.convenience.get_const_tensor(mode)
    return training is not None and bool(training.numpy().all())


def _check_weights(graph: ir.Model, file: Path) -> None:
    """Refuse weights of another type than float32, which would be converted twice, or not at all."""
    for node in graph.graph:
        for value in node.inputs[:2] if node.op_type in COMPUTE and not node.domain else ():
            tensor = None if value is None else value.const_value
            if tensor is not None and tensor.dtype != ir.DataType.FLOAT:
                kind = str(tensor.dtype.name).lower()
                raise ExportError(
                    f"{file} is not in fp32: the weight of {node.name!r} is {kind}; give the fp32 file that it was "
                    "made from, or export it in fp32"
                )


def _raise_opset(graph: ir.Model, file: Path, precision: Precision) -> list[str]:
    """Raise the opset to the lowest one in which the conversions are written; a newer one stays."""
    own = graph.opset_imports.get("", 0) or 0
    wanted = max(own, TRACED, MIN_OPSET.get(precision, 0))
    if own < OLDEST:
        raise ExportError(f"{file} has opset {own}, and opsets from {OLDEST} on are read: export it with a newer one")
    if own == wanted:
        return []
    try:
        with _quiet():
            version_converter.convert_version(graph, wanted, fallback=True)
    except Exception as e:  # onnx raises what its many adapters raise
        raise ExportError(f"opset {own} of {file} cannot be raised to {wanted}: {str(e).splitlines()[0]}") from e
    if graph.opset_imports.get("") != wanted:
        unknown = next((kind for kind in _kinds(graph) if not onnx.defs.has(kind, domain="")), None)
        why = f"ONNX has no operator {unknown}" if unknown else f"export it with opset {wanted}"
        raise ExportError(f"opset {own} of {file} cannot be raised to {wanted}: {why}")
    if own < RESIZE_CHANGED:
        _place_pixels(graph)
    return [f"opset {own} raised to {wanted}"]


def _place_pixels(graph: ir.Model) -> None:
    """Let each Resize place pixels as it did before opset 11, which onnx's conversion leaves to the new default."""
    for node in graph.graph.all_nodes():
        if node.op_type == "Resize" and not node.domain:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "floor"))


def _fold_constants(graph: ir.Model) -> None:
    """Make every constant an initializer, and fold what follows from constants; subgraphs keep their own."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    with contextlib.suppress(Exception):  # shapes only help folding, and unknown operators may stop the inference
        common.ShapeInferencePass()(graph)
    if any(node.graph is not graph.graph for node in graph.graph.all_nodes()):
        common.RemoveUnusedNodesPass()(graph)  # folding would take away nodes between a graph and one inside of it
    else:
        passes.simplify(graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)


def _unguard_softmax(graph: ir.Model) -> int:
    """Take away what replaces NaN after a softmax whose mask, if it has one, is a constant without an infinity.

    torch's exporter guards every attention so, for rows of which a mask hides all. Without such a row it changes
    nothing, and runtimes do not know an attention with a guard in its middle.

    Returns:
        How many were taken away.
    """
    found = [node for node in graph.graph if _guards_in_vain(node)]
    for node in found:
        kept, test = node.inputs[2], node.inputs[0]
        assert kept is not None and test is not None  # noqa: PT018  # it would not guard
        for user, place in list(node.outputs[0].uses()):
            user.replace_input_with(place, kept)
        graph.graph.remove(node, safe=True)
        if (tester := test.producer()) is not None and not test.uses():
            graph.graph.remove(tester, safe=True)
    return len(found)


def _guards_in_vain(node: ir.Node) -> bool:
    if node.op_type != "Where" or node.domain or node.outputs[0].is_graph_output() or None in node.inputs:
        return False
    test, other, value = node.inputs
    assert test is not None and other is not None and value is not None  # noqa: PT018  # None in node.inputs, above
    tester, softmax = test.producer(), value.producer()
    zero = other.const_value is not None and not other.const_value.numpy().any()
    return (
        zero
        and tester is not None
        and (tester.op_type, tester.inputs[0]) == ("IsNaN", value)
        and softmax is not None
        and softmax.op_type == "Softmax"
        and _is_finite(softmax.inputs[0])
    )


def _is_finite(logits: ir.Value | None) -> bool:
    """Whether logits are a product of matrices, to which only finite constants are added or multiplied."""
    maker = None if logits is None else logits.producer()
    if maker is None or maker.domain or maker.op_type not in ("Add", "Mul", "MatMul"):
        return False
    if maker.op_type == "MatMul":
        return True
    stored = [value for value in maker.inputs if value is not None and value.const_value is not None]
    varying = [value for value in maker.inputs if value not in stored]
    finite = all(np.isfinite(value.const_value.numpy()).all() for value in stored if value.const_value is not None)
    return finite and len(varying) == 1 and _is_finite(varying[0])


def _name_nodes(graph: ir.Model) -> None:
    """Give every node a name of its own: by names layers are kept, and reported."""
    names: set[str] = set()
    for number, node in enumerate(graph.graph):
        base = node.name or node.op_type
        name = base if node.name and base not in names else f"{base}_{number}"
        while name in names:
            name += "_"
        node.name = name
        names.add(name)


def _kinds(graph: ir.Model) -> list[str]:
    """The operators of ONNX's own domain."""
    return [node.op_type for node in graph.graph.all_nodes() if not node.domain]


def _count(graph: ir.Model, kind: str) -> int:
    return sum(node.op_type == kind for node in graph.graph)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what onnxscript says of its own ways from the user."""
    log: Any = logging.getLogger("onnxscript")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
