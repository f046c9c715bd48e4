"""NMS as ONNX operators that follow the candidates; :mod:`deploykit.runtime.postprocess.nms` is the definition.

The candidates of an image arrive sorted, the best first (see :mod:`deploykit.export.nms.candidates`):
``boxes (B,k,4)`` xyxy, ``scores (B,k)`` with -1 for no candidate, ``labels (B,k)`` int64, ``keypoints (B,k,K,3)``,
``angles (B,k,1)`` of oriented boxes (which are cx, cy, w, h), ``coefficients (B,k,P)`` of masks, and
``all_scores (B,N)`` of every row. The appended nodes give the outputs of :class:`deploykit.spec.NmsOutputs`; prototypes
stay as they are.

* ``graph`` uses ONNX's NonMaxSuppression on scores that are one-hot in the class. ONNX Runtime computes the overlap as
  the definition does, ties included. It would swap the corners of a box with negative sides, which overlaps nothing by
  the definition, so such a box becomes a point.
* ``basic`` needs only arithmetic, TopK, MatMul and a Loop. It starts with every candidate kept; each round keeps those
  that no better kept candidate overlaps. After n rounds every decision is that of greedy NMS whose chain of suppression
  has up to n links. The loop ends when a round changes nothing, so no fixed number of rounds can be too small.
* Oriented boxes have one form for both, by :mod:`deploykit.runtime.postprocess.rotated_nms`: ONNX has no such operator,
  and their rule needs no order of decisions. All pairs are compared at once, in float32.
* ``plugin`` is the node ``deploykit::NmsKpt`` on the raw rows; its contract is in ``cpp_plugins/nms_kpt/README.md``.
"""

from __future__ import annotations

import re
from typing import cast

import numpy as np
import onnx_ir as ir

from deploykit.errors import UsageError
from deploykit.export.nms.nodes import ANGLES, APARTS, BASIC, COEFFICIENTS, END, GRAPH, KEYPOINTS, ROTATED, START
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec, NmsOutputs, RawDetections, Thresholds

__all__ = [
    "CANDIDATES",
    "CONF",
    "DOMAIN",
    "IOU",
    "MODES",
    "NMS_NODE",
    "append_nms",
    "append_plugin",
    "candidates_for",
    "check_thresholds",
]

MODES = ("none", "graph", "basic", "plugin")
DOMAIN, NMS_NODE = "deploykit", "NmsKpt"
CONF, IOU = "nms_conf", "nms_iou"
"""Names of the stored thresholds, which the parity check overrides."""

CANDIDATES = ("boxes", "scores", "labels", "all_scores", "keypoints", "coefficients", "angles")
"""The parts of :class:`deploykit.export.nms.candidates.Candidates`;
the last three only where there are such outputs."""
MAX_CANDIDATES = 3840  # the limit of TensorRT's TopK


def check_thresholds(thresholds: Thresholds) -> None:
    """Refuse thresholds that no graph can hold.

    Raises:
        UsageError: more candidates or detections than TensorRT's TopK supports.
    """
    for name in ("pre_nms_topk", "max_det"):
        if getattr(thresholds, name) > MAX_CANDIDATES:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is at most {MAX_CANDIDATES} inside a graph, got {getattr(thresholds, name)}")


def append_nms(model: ir.Model, mode: str, spec: ModelSpec, candidates: int) -> None:
    """Append NMS to a graph whose outputs are the candidates, named as in :data:`CANDIDATES`, and replace its outputs.

    Args:
        model: the graph.
        mode: ``graph`` or ``basic``.
        spec: of the export, whose output is :class:`NmsOutputs`.
        candidates: k, the number of candidates per image.
    """
    names = cast(NmsOutputs, spec.output)
    thresholds, angles = spec.thresholds, names.angles is not None
    given = {str(value.name): value for value in model.graph.outputs}
    inputs = [name for name in candidates_for(names) if name in given and name != names.prototypes]
    for name, value in given.items():  # NMS gives an output of that name
        value.name = f"candidate_{name}"
    decision = ROTATED if angles else GRAPH if mode == "graph" else BASIC
    parts = {"keypoints": KEYPOINTS, "coefficients": COEFFICIENTS, "angles": ANGLES}
    parts = {part: nodes for part, nodes in parts.items() if getattr(names, part) is not None}
    body = START + decision + END + "".join(parts.values())
    body = body.format(conf=CONF, iou=IOU, **APARTS)
    words = set(re.findall(r"\w+", body))
    constants = _constants(thresholds, len(spec.classes), candidates)
    values = {name: value for name, value in constants.items() if name in words}
    produced = ["num_dets", "out_boxes", "out_scores", "out_labels", *(f"out_{part}" for part in parts)]
    produced.append("num_candidates")
    kinds = {"labels": "int64", "num_dets": "int32", "out_labels": "int32", "num_candidates": "int32"}
    takes, gives = (
        ", ".join(f"{kinds.get(name, 'float')} {name}" for name in side) for side in ((*inputs, *values), produced)
    )
    opset = model.opset_imports[""]
    added = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\nnms ({takes}) => ({gives})\n{{{body}}}')
    for value in list(added.graph.inputs):
        name = str(value.name)
        source = given[name] if name in given else _stored(model, name, values[name])
        ir.convenience.replace_all_uses_with(value, source)
    outputs = list(added.graph.outputs)
    if names.prototypes is not None:
        outputs.append(given[names.prototypes])
    added.graph.outputs.clear()
    _move(added.graph, model.graph)
    _set_outputs(model, outputs, _output_names(names), spec)


def _output_names(names: NmsOutputs) -> list[str]:
    """The names of the outputs in their order; NMS of ours counts its candidates."""
    assert names.num_candidates is not None
    more = [name for name in (names.keypoints, names.coefficients, names.angles) if name is not None]
    last = [names.prototypes] if names.prototypes is not None else []
    return [names.num_dets, names.boxes, names.scores, names.labels, *more, names.num_candidates, *last]


def candidates_for(names: NmsOutputs) -> tuple[str, ...]:
    """Return the parts of the candidates that NMS with these outputs takes, and the output of prototypes if it is one
    of them."""
    unused = {name for name in ("keypoints", "coefficients", "angles") if getattr(names, name) is None}
    last = () if names.prototypes is None else (names.prototypes,)
    return (*(name for name in CANDIDATES if name not in unused), *last)


def _constants(thresholds: Thresholds, classes: int, candidates: int) -> dict[str, Array]:
    k, m = candidates, thresholds.max_det
    numbers = np.arange(k)
    return {
        CONF: np.array([thresholds.conf], np.float32),
        IOU: np.array([thresholds.iou], np.float32),
        "zero": np.zeros((), np.float32),
        "zero1": np.zeros(1, np.float32),
        "zero_scalar": np.zeros((), np.float32),
        "half": np.full((), 0.5, np.float32),
        "unit": np.ones((), np.float32),
        "two": np.full((), 2, np.float32),
        "four": np.full((), 4, np.float32),
        "twelve": np.full((), 12, np.float32),
        "minus_one": np.full((), -1, np.float32),
        "zero_index": np.zeros((), np.int64),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "axis3": np.array([3], np.int64),
        "most": np.array([m], np.int64),
        "rounds": np.array(k + 1, np.int64),
        "go_on": np.array(True),
        "batch_and_box": np.array([0, 2], np.int64),
        "classes": np.arange(classes, dtype=np.int64).reshape(1, classes, 1),
        "rank_column": numbers.astype(np.int32).reshape(1, k, 1),
        "rank_row": numbers.astype(np.int32).reshape(1, 1, k),
        "countdown": (k - numbers).astype(np.float32).reshape(1, k),
        "room": np.array([0, 0, 0, max(0, m - k)], np.int64),
    }


def _stored(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Register a constant as an initializer."""
    full = name if name in (CONF, IOU) else f"nms_{name}"
    tensor = ir.tensor(array, name=full)
    value = ir.Value(name=full, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _move(source: ir.Graph, target: ir.Graph) -> None:
    """Move the nodes of one graph to the end of another, under names that no exporter uses."""
    for node in ir.traversal.RecursiveGraphIterator(source):
        node.name = f"nms_{node.outputs[0].name}"
        for value in node.outputs:
            value.name = f"nms_{value.name}"
    nodes = list(source)
    source.remove(nodes)
    target.extend(nodes)


def append_plugin(model: ir.Model, layout: RawDetections, spec: ModelSpec) -> None:
    """Append the node ``deploykit::NmsKpt`` to a graph whose first output is raw rows of ``layout``.

    The node carries the numbers behind the classes from a row to its detection as they are, so that coefficients of
    masks go through it as keypoints do, and get their shape after it. An output of prototypes stays as it is.

    Raises:
        UsageError: the columns are in another order than the node expects.
    """
    names, thresholds = cast(NmsOutputs, spec.output), spec.thresholds
    start = 4 if layout.obj is None else 5
    stop = start + len(spec.classes)
    expected = ((0, 4), None if layout.obj is None else (4, 5), (start, stop))
    carried = layout.keypoints or layout.coefficients or (stop, stop)
    if (layout.box, layout.obj, layout.cls) != expected or carried != (stop, layout.columns):
        raise UsageError(
            "--nms plugin takes rows of box, objectness, classes and keypoints or coefficients in this order, not "
            f"{layout}"
        )
    width = carried[1] - carried[0]
    dims = layout.kpt_dims if layout.keypoints or not width else next((d for d in (3, 2) if width % d == 0), 0)
    if not dims:
        raise UsageError(
            f"--nms plugin carries coefficients of masks as points of 2 or 3 numbers, and {width} are neither: use "
            "--nms graph or basic"
        )
    numbers = {
        "max_det": thresholds.max_det,
        "pre_nms_topk": thresholds.pre_nms_topk,
        "num_classes": len(spec.classes),
        "num_keypoints": width // dims,
        "kpt_dims": dims,
        "has_obj": int(layout.obj is not None),
    }
    if not layout.cls_counts:  # only then, so that libraries that do not know it read all other files
        numbers["cls_counts"] = 0
    attributes = [
        ir.AttrFloat32("conf", thresholds.conf),
        ir.AttrFloat32("iou", thresholds.iou),
        *(ir.AttrInt64(name, number) for name, number in numbers.items()),
        ir.AttrString("plugin_version", "1"),
        ir.AttrString("plugin_namespace", DOMAIN),
    ]
    called = _output_names(names)
    rows, *prototypes = model.graph.outputs
    count = len(called) - len(prototypes)
    node = ir.Node(DOMAIN, NMS_NODE, [rows], attributes, num_outputs=count, name="nms_kpt")
    model.graph.append(node)
    model.opset_imports[DOMAIN] = 1
    values = list(node.outputs)
    if names.coefficients is not None:
        place = called.index(names.coefficients)
        values[place] = _as_coefficients(model, values[place], thresholds.max_det, width // dims, dims)
    _set_outputs(model, [*values, *prototypes], called, spec)


def _as_coefficients(model: ir.Model, points: ir.Value, most: int, count: int, dims: int) -> ir.Value:
    """Append what makes coefficients ``(B, most, count * dims)`` of a node's keypoints ``(B, most, count, 3)``."""
    points.name, points.type = "nms_points", ir.TensorType(ir.DataType.FLOAT)  # ONNX Runtime does not infer its type
    if dims < 3:  # the node's third number is 1 then
        span = (np.array([number], np.int64) for number in (0, dims, 3))
        names = ("points_start", "points_stop", "points_axis")
        spans = [_stored(model, name, number) for name, number in zip(names, span, strict=True)]
        points = _appended(model, "Slice", [points, *spans])
    shape = _stored(model, "coefficients_shape", np.array([-1, most, count * dims], np.int64))
    return _appended(model, "Reshape", [points, shape])


def _appended(model: ir.Model, operator: str, inputs: list[ir.Value]) -> ir.Value:
    node = ir.Node("", operator, inputs, name=f"nms_{operator.lower()}")
    model.graph.append(node)
    node.outputs[0].name = f"nms_{operator.lower()}"
    return node.outputs[0]


def _set_outputs(model: ir.Model, values: list[ir.Value], called: list[str], spec: ModelSpec) -> None:
    """Make ``values`` the graph's outputs, with names and shapes from the spec, and those of prototypes as traced."""
    m = spec.thresholds.max_det
    points = len(spec.keypoints.names) if spec.keypoints else 0
    names = cast(NmsOutputs, spec.output)
    assert names.num_candidates is not None
    shapes: dict[str, tuple[int | str, ...]] = {
        names.num_dets: (1,),
        names.boxes: (m, 4),
        names.scores: (m,),
        names.labels: (m,),
        names.num_candidates: (1,),
    }
    if names.keypoints is not None:
        shapes[names.keypoints] = (m, points, 3)
    if names.angles is not None:
        shapes[names.angles] = (m,)
    if names.coefficients is not None and names.prototypes is not None:
        maps = values[called.index(names.prototypes)].shape
        assert maps is not None
        count, *sides = list(maps)[1:]
        assert isinstance(count, int)  # the number of maps; their sides are free where those of the image are
        shapes[names.prototypes] = (count, *(side if isinstance(side, int) else str(side.value) for side in sides))
        shapes[names.coefficients] = (m, count)
    whole = (names.num_dets, names.labels, names.num_candidates)
    batch: int | str = spec.input.batch if spec.input.dynamic == "none" else "batch"
    model.graph.outputs.clear()
    for value, name in zip(values, called, strict=True):
        value.name = name
        value.shape = ir.Shape((batch, *shapes[name]))
        value.type = ir.TensorType(ir.DataType.INT32 if name in whole else ir.DataType.FLOAT)
        model.graph.outputs.append(value)
