"""What can be said of a graph without a runtime: a rule reads it and gives findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx

from deploykit.export.preflight.graph import Graph, attribute
from deploykit.export.preflight.operators import (
    ADVICE,
    DATA_DEPENDENT,
    LATER,
    NEVER,
    OPSETS,
    OPSETS_OF_10_0,
    RTX_NEVER,
    SOURCE,
    STANDARD_PLUGINS,
    TRIED_TYPES,
    TYPES,
)
from deploykit.export.preflight.report import TARGETS, TENSORRT, Finding, Level, Target
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import exists

__all__ = ["findings_of"]

PROPER: tuple[Target, ...] = ("tensorrt-10", "tensorrt-11")
RTX: tuple[Target, ...] = ("tensorrt-rtx",)
OURS = "deploykit"
MAX_K = 3840
TENSORRT_TYPES = {
    "FLOAT", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT4E2M1", "INT4", "INT8", "INT32", "INT64", "UINT8", "BOOL",
    "DOUBLE",
}  # fmt: skip

Rule = Callable[[Graph], Iterator[Finding]]


def findings_of(graph: Graph) -> tuple[Finding, ...]:
    """Apply every rule; what stops a runtime comes first, then in the order of the graph."""
    found = [finding for rule in RULES for finding in rule(graph)]
    order: tuple[Level, ...] = ("refused", "unknown", "doubt", "note")
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.level)))


def _external(graph: Graph) -> Iterator[Finding]:
    """External weights that are missing, cut off, or outside of the file's folder."""
    needed: dict[str, int] = {}
    for tensor in graph.stored.values():
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            about = {entry.key: entry.value for entry in tensor.external_data}
            digits = [about.get(key, "0") for key in ("offset", "length")]
            end = sum(int(n) for n in digits if n.isdecimal() and len(n) < 20)
            name = about.get("location", "")
            needed[name] = max(needed.get(name, 0), end)
    for name, size in needed.items():
        place = Path(name)
        if not name or place.is_absolute() or ".." in place.parts:
            why = f"its weights lie in {name!r}, which is not in the folder of the file"
            yield Finding("refused", TARGETS, why, "save it again with its weights beside it")
            continue
        part = graph.file.parent / place
        if not exists(part) or not part.is_file():
            why = f"its weights lie in {name}, which is missing"
            yield Finding("refused", TARGETS, why, f"copy {name} beside {graph.file.name}")
        elif part.stat().st_size < size:
            why = f"its weights lie in {name}, which has {part.stat().st_size:,} bytes of {size:,}"
            yield Finding("refused", TARGETS, why, f"copy {name} again")


def _opset(graph: Graph) -> Iterator[Finding]:
    opset, (least, most) = graph.opset, OPSETS
    if opset > most or 0 < opset < least:
        why = f"it has opset {opset}, and the {SOURCE} is for {least} to {most}"
        level: Level = "refused" if opset < least else "doubt"  # a newer one is read as far as its operators are known
        yield Finding(level, TENSORRT, why, "export it with --opset 20, or convert it with onnx.version_converter")
    elif opset > OPSETS_OF_10_0[1]:
        why = f"it has opset {opset}: TensorRT 10.0 reads up to {OPSETS_OF_10_0[1]}, 10.15 up to {most}"
        yield Finding("note", ("tensorrt-10",), why, "for an older TensorRT 10 export it with --opset 18")


def _operators(graph: Graph) -> Iterator[Finding]:
    """Operators by the list, and those of other domains."""
    local = {(function.domain, function.name) for function in graph.model.functions}
    for node in graph.nodes:
        op, name = node.op_type, node.name
        if (node.domain, op) in local:
            continue
        if op in STANDARD_PLUGINS and op not in TYPES:
            why = "it is a plugin of TensorRT's own library, which has to be loaded (libnvinfer_plugin)"
            yield Finding("note", PROPER, why, "", name, op)
            yield Finding("refused", RTX, "it is a plugin, and TensorRT for RTX has none", _nms_advice(op), name, op)
        elif node.domain == OURS:
            yield from _own(name, op)
        elif node.domain not in ("", "ai.onnx"):
            why = f"it is of the domain {node.domain!r}, and TensorRT has only ONNX's own operators"
            yield Finding("refused", RTX, why, "rewrite it with ONNX's own operators", name, op)
            why += ", unless a plugin of this name is loaded"
            yield Finding("unknown", PROPER, why, "load a plugin, or rewrite it with ONNX's operators", name, op)
        elif op in NEVER:
            yield Finding(
                "refused", TENSORRT, f"TensorRT has no such operator ({SOURCE})", ADVICE.get(op, ""), name, op
            )
        elif op not in TYPES:
            yield Finding("unknown", TENSORRT, f"the {SOURCE} does not name it", "", name, op)
        else:
            if op in LATER:
                yield Finding("note", ("tensorrt-10",), f"it needs TensorRT {LATER[op]} or newer", "", name, op)
            if op in RTX_NEVER:
                yield Finding("refused", RTX, RTX_NEVER[op], ADVICE.get(op, ""), name, op)
            if op in DATA_DEPENDENT:
                why = "the size of its output depends on the data"
                yield Finding("note", PROPER, why, _allocation(graph), name, op)


def _allocation(graph: Graph) -> str:
    """What a program needs for the outputs of a network in which the size of a tensor depends on the data."""
    batch = any(graph.shapes.get(info.name, (None,))[:1] == (None,) for info in graph.model.graph.input)
    for info in graph.model.graph.output:
        shape = graph.shapes.get(info.name)
        if shape is None or None in shape[1 if batch else 0 :]:
            return f"its size may reach the output {info.name!r}, which then needs an output allocator"
    return "the outputs of the file have fixed sizes: buffers as for any other network"


def _own(name: str, op: str) -> Iterator[Finding]:
    graph_nms = "or export it with --nms graph or --nms basic"
    why = "it is deploykit's plugin, and TensorRT for RTX has no plugins"
    yield Finding("refused", RTX, why, "export it with --nms basic, or with --nms none", name, op)
    why = "it is deploykit's plugin, whose library must be built for this TensorRT"
    yield Finding("note", PROPER, why, f"deploykit plugins build --only tensorrt, {graph_nms}", name, op)


def _nms_advice(op: str) -> str:
    return "take NMS out of the graph: deploykit runs it outside, or export with --nms basic" if "NMS" in op else ""


def _quantization(graph: Graph) -> Iterator[Finding]:
    """Zero points that are not zero, and types that are not quantized types."""
    advice = "quantize symmetrically, int8 with zero points of 0: deploykit export --precision int8 does"
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain not in ("", "ai.onnx"):
            continue
        zero = node.input[2] if len(node.input) > 2 else ""
        narrow = graph.types.get(zero) or (graph.types.get(node.input[0]) if node.op_type[0] == "D" else None)
        value = graph.constant(zero) if zero else None
        if value is not None and np.any(value.astype(np.float32) != 0):
            why = f"its zero point is {value.ravel()[value.ravel() != 0][0]}, and TensorRT takes 0 only (symmetric)"
            yield Finding("refused", TENSORRT, why, advice, node.name, node.op_type)
        elif narrow in ("UINT8", "INT16", "UINT16", "UINT4", "FLOAT8E5M2"):
            why = f"it quantizes to {narrow.lower()}, and the {SOURCE} has int8, fp8 (e4m3), int4 and fp4"
            yield Finding("doubt", TENSORRT, why, advice, node.name, node.op_type)
        elif zero and value is None:
            why = "its zero point is no small constant, and TensorRT takes 0 only"
            yield Finding("doubt", TENSORRT, why, advice, node.name, node.op_type)


def _types(graph: Graph) -> Iterator[Finding]:
    """Types of inputs, outputs, weights and data."""
    faces = [*graph.model.graph.input, *graph.model.graph.output]
    for info in (info for info in faces if info.name not in graph.stored):
        kind = graph.types.get(info.name, "")
        if kind in ("INT64", "DOUBLE"):
            what = "callers give and take int64, not int32" if kind == "INT64" else "it becomes float32 inside"
            why = f"the input or output {info.name!r} is {kind.lower()}: {what}"
            yield Finding("note", TENSORRT, why, "export it as float32 or int32")
    bad = sorted({kind for kind in graph.types.values() if kind not in TENSORRT_TYPES} - {"UNDEFINED"})
    for kind in bad:
        where = next(name for name, found in graph.types.items() if found == kind)
        why = f"the tensor {where!r} is {kind.lower()}, a type that TensorRT does not have"
        yield Finding("refused", TENSORRT, why, "take float32, float16, int32 or bool there")
    if doubles := [name for name, tensor in graph.stored.items() if tensor.data_type == onnx.TensorProto.DOUBLE]:
        why = f"{len(doubles)} stored tensors are double, {doubles[0]!r} first: TensorRT computes them in float32"
        yield Finding("note", TENSORRT, why, "export it as float32")
    for node in graph.nodes:
        op = node.op_type
        allowed = TYPES[op] | TRIED_TYPES.get(op, frozenset()) if TYPES.get(op) else frozenset()
        kind = graph.types.get(node.input[0], "") if node.input else ""
        computed = any(name not in graph.stored for name in node.input)  # constants are folded
        if not allowed or op == "DequantizeLinear" or node.domain not in ("", "ai.onnx") or not computed:
            continue
        if kind in TENSORRT_TYPES - allowed - {"DOUBLE"}:
            listed = ", ".join(sorted(name.lower() for name in allowed))
            why = f"its data is {kind.lower()}, and the {SOURCE} has {listed}"
            advice = "export it with --precision fp16" if kind == "BFLOAT16" else "put a Cast before it"
            yield Finding("doubt", TENSORRT, why, advice, node.name, op)


def _onnx_types(graph: Graph) -> Iterator[Finding]:
    """Data whose type the operator has in a newer opset only, such as bf16 convolutions before opset 22."""
    seen = set()
    for node in graph.nodes:
        kind = graph.types.get(node.input[0], "") if node.input else ""
        if node.domain not in ("", "ai.onnx") or kind not in ("BFLOAT16", "FLOAT16", "FLOAT8E4M3FN"):
            continue
        if (node.op_type, kind) in seen or _takes(node.op_type, graph.opset, kind):
            continue
        seen.add((node.op_type, kind))
        since = next((n for n in range(graph.opset + 1, OPSETS[1] + 1) if _takes(node.op_type, n, kind)), None)
        told = f"from opset {since} on" if since else "in no opset"
        why = f"its data is {kind.lower()}, which ONNX gives this operator {told}, and the file has opset {graph.opset}"
        advice = f"export it with --opset {since}" if since else "export it with --precision fp32"
        yield Finding("doubt", TARGETS, why, advice, node.name, node.op_type)


def _takes(op: str, opset: int, kind: str) -> bool:
    """Whether ONNX allows this type for the first input of an operator."""
    try:
        first = onnx.defs.get_schema(op, opset, "").inputs[0]
    except (onnx.defs.SchemaError, IndexError):
        return True
    return f"tensor({kind.lower()})" in first.types or not first.types


def _attributes(graph: Graph) -> Iterator[Finding]:
    """Attributes and inputs that the list excludes."""
    for node in (node for node in graph.nodes if node.domain in ("", "ai.onnx")):
        for why, advice in _excluded(node, graph):
            yield Finding("refused", TENSORRT, f"{why} ({SOURCE})", advice, node.name, node.op_type)


def _excluded(node: onnx.NodeProto, graph: Graph) -> Iterator[tuple[str, str]]:
    op, outputs = node.op_type, [name for name in node.output if name]
    if op == "TopK":
        k = graph.constant(node.input[1]) if len(node.input) > 1 else None
        if k is not None and _first(k) > MAX_K:
            yield f"its K is {_first(k)}, and TensorRT's TopK gives at most {MAX_K}", f"--pre-nms-topk {MAX_K} or less"
        if attribute(node, "sorted", 1) == 0:
            yield "its result is not sorted, and TensorRT's always is", "set sorted to 1"
    if op in ("MaxPool", "AveragePool", "LpPool") and any(d != 1 for d in attribute(node, "dilations", [1])):
        yield "it has dilations, which TensorRT's pooling does not have", "pool without dilations, or shift by Slice"
    if op == "MaxPool" and len(outputs) > 1:
        yield "its output of indices is used, which TensorRT does not give", ADVICE["MaxUnpool"]
    if op == "LayerNormalization" and len(outputs) > 1:
        yield "more than its first output is used", "compute mean and deviation with ReduceMean"
    if op == "ScatterND" and attribute(node, "reduction", "none") != "none":
        yield "it has a reduction, which TensorRT's does not have", "take ScatterElements, or sum a one-hot product"
    if op == "Resize":
        if attribute(node, "antialias", 0):
            yield "it has antialiasing", "resize the image before the network"
        mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
        if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
            yield f"its coordinates are {mode}", "export it with half_pixel, asymmetric or align_corners"
        if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            yield "it keeps the aspect ratio", "resize to fixed sizes"


def _first(value: Array) -> int:
    return int(value.ravel()[0]) if value.size else 0


def _constants_needed(graph: Graph) -> Iterator[Finding]:
    """Inputs that TensorRT wants to know when it builds, and that the graph computes; ranks that are not listed."""
    wanted = {"CumSum": (1, "axis"), "OneHot": (1, "depth")}
    wanted |= {op: (1, "axes") for op in TYPES if op.startswith("Reduce")}
    produced = {name for node in graph.nodes if node.op_type != "Constant" for name in node.output}
    for node in graph.nodes:
        if node.op_type == "GridSample" and len(graph.shapes.get(node.input[0], (0,) * 4)) != 4:
            why = f"its input is not 4-dimensional, as the {SOURCE} wants it"
            yield Finding("doubt", TENSORRT, why, "sample each plane by itself", node.name, node.op_type)
        place, what = wanted.get(node.op_type, (0, ""))
        if what and len(node.input) > place and node.input[place] in produced:
            why = f"its {what} is computed, and TensorRT must be able to fold it to a constant"
            yield Finding(
                "doubt", TENSORRT, why, "export it with fixed shapes, or simplify it", node.name, node.op_type
            )


def _control(graph: Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "If":
            why = "both branches must have outputs of the same rank"
            advice = "export it with fixed shapes: the branch is then decided (onnxsim folds it)"
            ranks = [
                [len(graph.shapes[out.name]) if out.name in graph.shapes else None for out in branch.output]
                for branch in (attribute(node, "then_branch"), attribute(node, "else_branch"))
                if branch is not None
            ]
            differ = len(ranks) == 2 and any(
                None not in pair and pair[0] != pair[1] for pair in zip(*ranks, strict=False)
            )
            yield Finding("refused" if differ else "note", TENSORRT, why, advice, node.name, node.op_type)
        elif node.op_type in ("Loop", "Scan"):
            why = "its shapes must be the same in every round, and what it collects must have a fixed length"
            yield Finding("note", TENSORRT, why, "", node.name, node.op_type)


def _dynamic(graph: Graph) -> Iterator[Finding]:
    free = [i for i in graph.model.graph.input if i.name not in graph.stored and None in graph.shapes.get(i.name, ())]
    if free:
        names = ", ".join(repr(info.name) for info in free)
        why = f"the input {names} has a dynamic shape, and an engine needs a profile of its shapes"
        advice = "deploykit export makes one (--profile MIN OPT MAX for others); trtexec needs --minShapes and so on"
        yield Finding("note", TENSORRT, why, advice)


RULES: tuple[Rule, ...] = (
    _external, _opset, _operators, _quantization, _types, _onnx_types, _attributes, _constants_needed, _control,
    _dynamic,
)  # fmt: skip
