"""The node ``deploykit::DecodeRows``, which decodes the rows of an anchor head natively before ``deploykit::NmsKpt``.

An export with ``--nms plugin`` uses it where the network has an anchor head. Its contract is in
``cpp_plugins/decode/README.md``; its definition is :mod:`deploykit.models.layers.anchor_head`.
:func:`expand_decode_nodes` gives the same in ONNX's own operators, so that a file is verified where no library has it.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import onnx
import onnx_ir as ir
import torch
from onnx import helper, parser
from torch import Tensor, nn

from deploykit.models.layers.anchor_head import Detect, Keypoint
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import RawDetections

__all__ = ["append_decode", "expand_decode_nodes", "up_to_raw_head"]

DOMAIN, OPERATOR = "deploykit", "DecodeRows"


class _Levels(nn.Module):
    """An anchor head without its decoding: one tensor ``(B, anchors * columns, H, W)`` per level.

    ``rows``: the rows that they decode to come first.
    """

    def __init__(self, head: Detect, rows: bool) -> None:
        super().__init__()
        self.head, self.rows = head, rows

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        raw = [self.head.raw(x, level) for level, x in enumerate(features[: self.head.num_levels])]
        if not self.rows:
            return tuple(raw)
        return torch.cat([self.head.decode(each, level) for level, each in enumerate(raw)], 1), *raw


def up_to_raw_head(fused: nn.Module, *, rows: bool = False) -> tuple[nn.Module, tuple[str, ...]] | None:
    """The network without its head's decoding and the names of its raw levels; None where it has no anchor head.

    ``rows``: the network gives its rows too, before the levels.
    """
    head = fused.model[-1] if isinstance(fused, LayerGraph) else None
    if type(head) not in (Detect, Keypoint):  # a subclass may decode in another way
        return None
    graph, head = cast(LayerGraph, fused), cast(Detect, head)
    new = copy.copy(graph)
    new._modules = {**graph._modules, "model": nn.Sequential(*list(graph.model)[:-1], _Levels(head, rows))}
    return new, tuple(f"level_{i}" for i in range(head.num_levels))


def append_decode(model: ir.Model, fused: nn.Module, layout: RawDetections) -> None:
    """Append the node to a graph whose outputs are the raw levels of ``fused``'s head; its output is the rows."""
    head = cast(Detect, cast(LayerGraph, fused).model[-1])
    points = head.num_keypoints if isinstance(head, Keypoint) else 0
    attributes = [
        ir.AttrInt64("num_classes", head.num_classes),
        ir.AttrInt64("num_keypoints", points),
        ir.AttrInt64s("strides", list(head.stride)),
        ir.AttrFloat32s("anchors", head.anchor_grid.flatten().tolist()),
        ir.AttrString("plugin_version", "1"),
        ir.AttrString("plugin_namespace", DOMAIN),
    ]
    levels = list(model.graph.outputs)
    node = ir.Node(DOMAIN, OPERATOR, levels, attributes, num_outputs=1, name="decode_rows")
    rows = node.outputs[0]
    rows.name, rows.type = layout.name, ir.TensorType(ir.DataType.FLOAT)
    batch = levels[0].shape[0] if levels[0].shape is not None else None
    rows.shape = ir.Shape((batch, None, head.columns))
    model.graph.append(node)
    model.opset_imports[DOMAIN] = 1
    model.graph.outputs.clear()
    model.graph.outputs.append(rows)


_LEVEL = """
    {p}size = Shape<start = 2, end = 4>({raw})
    {p}lines, {p}width = Split<axis = 0, num_outputs = 2>({p}size)
    {p}area = Mul({p}lines, {p}width)
    {p}area_0 = Squeeze({p}area)
    {p}cell = Range(zero, {p}area_0, one)
    {p}y = Div({p}cell, {p}width)
    {p}before = Mul({p}y, {p}width)
    {p}x = Sub({p}cell, {p}before)
    {p}x_1 = Unsqueeze({p}x, last)
    {p}y_1 = Unsqueeze({p}y, last)
    {p}place = Concat<axis = -1>({p}x_1, {p}y_1)
    {p}place_f = Cast<to = 1>({p}place)
    {p}begin = Mul({p}place_f, {p}stride)
    {p}offset = Sub({p}begin, {p}half_stride)
    {p}columns = Reshape({raw}, cells)
    {p}values = Transpose<perm = [0, 1, 3, 2]>({p}columns)
    {p}sure = Sigmoid({p}values)
    {p}xy, {p}wh, {p}probabilities, {p}rest = Split<axis = -1>({p}sure, parts)
    {p}xy_far = Mul({p}xy, {p}double_stride)
    {p}centre = Add({p}xy_far, {p}offset)
    {p}wh_2 = Mul({p}wh, {p}wh)
    {p}sides = Mul({p}wh_2, {p}anchor)
"""
_POINTS = """
    {p}box, {p}kpt = Split<axis = -1>({p}values, boxes_and_points)
    {p}points = Reshape({p}kpt, apart)
    {p}points_xy, {p}unsure = Split<axis = -1>({p}points, two_and_one)
    {p}points_far = Mul({p}points_xy, {p}double_stride)
    {p}offset_1 = Unsqueeze({p}offset, second)
    {p}points_at = Add({p}points_far, {p}offset_1)
    {p}visible = Sigmoid({p}unsure)
    {p}points_all = Concat<axis = -1>({p}points_at, {p}visible)
    {p}points_flat = Reshape({p}points_all, together)
    {p}row = Concat<axis = -1>({p}centre, {p}sides, {p}probabilities, {p}points_flat)
    {p}rows = Reshape({p}row, flat)
"""
_NO_POINTS = """
    {p}row = Concat<axis = -1>({p}centre, {p}sides, {p}probabilities)
    {p}rows = Reshape({p}row, flat)
"""


def expand_decode_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every DecodeRows node replaced by ONNX's own operators; float32 only."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    nodes = list(new.graph.node)
    del new.graph.node[:]
    for node in nodes:
        if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
            parts, constants = _operators(node)
            new.graph.node.extend(parts)
            new.graph.initializer.extend(constants)
        else:
            new.graph.node.append(node)
    return new


def _operators(node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    given: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    classes, points, strides = given["num_classes"], given["num_keypoints"], list(given["strides"])
    anchors = len(given["anchors"]) // (2 * len(strides))
    columns = 5 + classes + 3 * points
    whole, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    constants: dict[str, tuple[int, list[int], list[float]]] = {
        "zero": (whole, [], [0]), "one": (whole, [], [1]), "last": (whole, [1], [-1]), "second": (whole, [1], [1]),
        "cells": (whole, [4], [0, anchors, columns, -1]), "flat": (whole, [3], [0, -1, columns]),
        "parts": (whole, [4], [2, 2, 1 + classes, 3 * points]),
        "boxes_and_points": (whole, [2], [5 + classes, 3 * points]),
        "apart": (whole, [5], [0, 0, 0, points, 3]), "two_and_one": (whole, [2], [2, 1]),
        "together": (whole, [4], [0, 0, 0, 3 * points]),
    }  # fmt: skip
    body = ""
    for i, stride in enumerate(strides):
        p = f"l{i}_"
        body += (_LEVEL + (_POINTS if points else _NO_POINTS)).format(p=p, raw=f"raw{i}")
        its_own = given["anchors"][2 * anchors * i : 2 * anchors * (i + 1)]
        constants |= {
            f"{p}stride": (real, [], [stride]),
            f"{p}double_stride": (real, [], [2.0 * stride]),
            f"{p}half_stride": (real, [], [0.5 * stride]),
            f"{p}anchor": (real, [1, anchors, 1, 2], [4.0 * side for side in its_own]),
        }
    levels = ", ".join(f"l{i}_rows" for i in range(len(strides)))
    body += f"    rows = Concat<axis = 1>({levels})\n"
    takes = ", ".join(f"float raw{i}" for i in range(len(strides)))
    graph = parser.parse_graph(f"decode ({takes}) => (float rows)\n{{{body}}}")
    prefix = f"{node.name}_"
    outside = {**{f"raw{i}": name for i, name in enumerate(node.input)}, "rows": node.output[0]}
    for part in graph.node:
        for names in (part.input, part.output):
            names[:] = [outside.get(name, prefix + name) for name in names]
    tensors = [helper.make_tensor(prefix + name, *value) for name, value in constants.items()]
    used = {name for part in graph.node for name in part.input}
    return list(graph.node), [t for t in tensors if t.name in used]
