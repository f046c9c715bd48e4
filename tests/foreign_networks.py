"""Small real networks in the forms of other projects' exports, which find coloured blocks.

An image of 64 x 64 pixels has 8 x 8 cells. A convolution takes the mean of each channel of a cell, and two more make of
it how red and how blue the cell is. A cell of pure colour is one certain object of 8 x 8 pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SIDE, CELL, CELLS = 64, 8, 64
CHOSEN = 20
"""How many detections an end-to-end head gives."""

Head = Literal["chosen", "maps", "nms", "classes"]


class Blocks(nn.Module):
    """The network, with batch norms that are not folded, in front of a head."""

    def __init__(self, head: Head = "chosen") -> None:
        super().__init__()
        self.head = head
        chance = torch.Generator().manual_seed(0)
        self.cells = nn.Conv2d(3, 12, CELL, CELL, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.mix = nn.Conv2d(12, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 1, groups=12)
        self.score = nn.Conv2d(12, 2, 1)
        self.linear = nn.Linear(2, 3)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        colours = torch.zeros(12, 3, CELL, CELL)
        for channel in range(12):  # each colour four times
            colours[channel, channel % 3] = 1 / CELL**2
        variance = torch.rand(12, generator=chance) + 0.5
        mixed = torch.eye(12)[..., None, None] + 0.02 * torch.randn(12, 12, 1, 1, generator=chance)
        red, blue = torch.tensor([1.0, -1.0, -1.0] * 4), torch.tensor([-1.0, -1.0, 1.0] * 4)
        weights = {
            "cells.weight": colours,
            "norm.running_var": variance,
            "norm.weight": (variance + self.norm.eps).sqrt(),  # together they change nothing
            "mix.weight": mixed,
            "mix.bias": torch.zeros(12),
            "depthwise.weight": torch.ones(12, 1, 1, 1),
            "depthwise.bias": torch.zeros(12),
            "score.weight": torch.stack((red, blue))[..., None, None] * 3.0,
            "score.bias": torch.full((2,), -6.0),
        }
        self.load_state_dict({**self.state_dict(), **weights})
        self.eval()

    def forward(self, images: Tensor) -> Any:
        features = torch.relu(self.mix(torch.relu(self.norm(self.cells(images)))))
        logits = self.score(self.depthwise(features))
        if self.head == "maps":
            return logits, features
        if self.head == "classes":
            return self.linear(logits.mean((2, 3)))
        scores = logits.flatten(2).transpose(1, 2).sigmoid()
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        corners = torch.stack((x, y, x + 1, y + 1), -1).reshape(1, CELLS, 4) * CELL
        boxes = corners + 0 * scores[..., :1]
        if self.head == "nms":
            return boxes, scores.transpose(1, 2)
        best, labels = scores.max(-1)
        values, order = best.topk(CHOSEN)
        picked = torch.gather(boxes, 1, order[..., None].expand(-1, -1, 4))
        classes = torch.gather(labels, 1, order).to(scores.dtype)
        return torch.cat((picked, values[..., None], classes[..., None]), -1)


def write_blocks(
    file: Path,
    head: Head = "chosen",
    *,
    opset: int = 17,
    free: bool = False,
    folded: bool = False,
    outputs: Sequence[str] = ("output0",),
    metadata: dict[str, str] | None = None,
) -> Path:
    """Export the network by torch's exporter of scripts, with batch norms and Constant nodes left as they are."""
    with warnings.catch_warnings():  # this exporter is an old one
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Blocks(head),
            (torch.rand(1, 3, SIDE, SIDE),),
            str(file),
            input_names=["images"],
            output_names=list(outputs),
            opset_version=opset,
            dynamo=False,
            do_constant_folding=folded,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
            dynamic_axes={name: {0: "batch"} for name in ("images", *outputs)} if free else None,
        )
    model = onnx.load(str(file))
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(file))
    return file


Form = Literal["plain", "channels last", "bytes", "two inputs", "nms", "if", "external", "stranger"]


def write_by_hand(file: Path, form: Form = "plain", *, opset: int = 11, kind: type = np.float32) -> Path:
    """Write a network as other tools do: weights in Constant nodes, and nodes without names.

    It gives 3 values and 6 features of 8 x 8 cells. The forms differ in what comes before or after: ``two inputs`` has
    a factor, ``nms`` chooses cells by NonMaxSuppression, ``if`` ends in control flow, ``external`` has its weights in
    another file, and ``stranger`` has an operator that nobody knows.
    """
    chance = np.random.default_rng(3)
    weight: Any = chance.normal(0, 0.05, (6, 3, CELL, CELL)).astype(kind)
    constants = {
        "w": weight,
        "b": chance.normal(0, 0.1, 6).astype(kind),
        "w2": chance.normal(0, 0.4, (3, 6)).astype(kind),
        "b2": np.zeros(3, kind),
        "w3": (np.eye(6) + chance.normal(0, 0.05, (6, 6)))[..., None, None].astype(kind),
    }
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    stored: list[Any] = tensors if form == "external" else []
    nodes = [] if stored else [helper.make_node("Constant", [], [each.name], value=each) for each in tensors]
    shape: list[int | str] = [1, 3, SIDE, SIDE]
    inputs = [helper.make_tensor_value_info("x", number, shape)]
    first = "x"
    if form in ("channels last", "bytes"):
        element = TensorProto.UINT8 if form == "bytes" else number
        inputs = [helper.make_tensor_value_info("x", element, [1, SIDE, SIDE, 3])]
        if form == "bytes":
            nodes.append(helper.make_node("Cast", ["x"], ["cast"], to=number))
            nodes.append(helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(kind(1 / 255))))
            nodes.append(helper.make_node("Mul", ["cast", "scale"], ["scaled"]))
        nodes.append(
            helper.make_node("Transpose", ["scaled" if form == "bytes" else "x"], ["turned"], perm=[0, 3, 1, 2])
        )
        first = "turned"
    nodes += [
        helper.make_node("Conv", [first, "w", "b"], ["c"], strides=[CELL, CELL]),
        helper.make_node("Relu", ["c"], ["first_features"]),
        helper.make_node("Conv", ["first_features", "w3"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["values"], transB=1),
    ]
    outputs = [
        helper.make_tensor_value_info("values", number, [1, 3]),
        helper.make_tensor_value_info("features", number, [1, 6, 8, 8]),
    ]
    if form == "two inputs":
        inputs.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1, 2]))
        nodes.append(helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1.0], kind))))
        nodes.append(helper.make_node("ReduceSum", ["factor"], ["sum"], axes=[1], keepdims=1))
        nodes.append(helper.make_node("Mul", ["values", "sum"], ["scaled_values"]))
        outputs[0] = helper.make_tensor_value_info("scaled_values", number, [1, 3])
    if form == "nms":
        stored, more, outputs = _nms(number)
        nodes += more
    if form == "if":
        more, outputs = _control_flow(number)
        nodes += more
    if form == "stranger":
        nodes.append(helper.make_node("Unheard", ["values"], ["answer"], domain="nobody"))
        outputs = [helper.make_tensor_value_info("answer", number, [1, 3])]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("nobody", 1)][: 2 if form == "stranger" else 1]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, stored), opset_imports=opsets, ir_version=6
    )
    if form == "external":
        onnx.external_data_helper.convert_model_to_external_data(model, location=f"{file.name}.data", size_threshold=64)
    onnx.save(model, str(file))
    return file


def _nms(number: int) -> tuple[list[Any], list[Any], list[Any]]:
    """NMS of the cells, as the graph of an exporter has it: numbers of the cells, and their boxes."""
    x, y = np.meshgrid(np.arange(8.0), np.arange(8.0))
    boxes = np.stack((x, y, x + 1, y + 1), -1).reshape(1, CELLS, 4).astype(np.float32) * CELL
    settings: dict[str, Any] = {
        "most": np.array([5], np.int64),
        "iou": np.array([0.5], np.float32),
        "conf": np.array([0.1], np.float32),
    }
    stored = [
        numpy_helper.from_array(v, n)
        for n, v in {**settings, "boxes": boxes, "flat_cells": np.array([1, 6, 64])}.items()
    ]
    nodes = [
        helper.make_node("Reshape", ["features", "flat_cells"], ["cell_scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "cell_scores", "most", "iou", "conf"], ["selected"]),
        helper.make_node("Cast", ["selected"], ["found"], to=number),
    ]
    return stored, nodes, [helper.make_tensor_value_info("found", number, ["n", 3])]


def _control_flow(number: int) -> tuple[list[Any], list[Any]]:
    """The values, or twice the values where the first one is over 0; a graph inside takes them from outside."""
    one = numpy_helper.from_array(np.array(0, np.int64), "first")
    branches = {
        name: helper.make_graph(
            [helper.make_node(*node)], name, [], [helper.make_tensor_value_info(f"{name}_out", number, [1, 3])]
        )
        for name, node in {
            "then": ("Add", ["values", "values"], ["then_out"]),
            "otherwise": ("Identity", ["values"], ["otherwise_out"]),
        }.items()
    }
    nodes = [
        helper.make_node("Constant", [], ["first"], value=one),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.float32))),
        helper.make_node("Gather", ["flat", "first"], ["chosen"], axis=1),
        helper.make_node("Squeeze", ["chosen"], ["alone"]),
        helper.make_node("Greater", ["alone", "zero"], ["over"]),
        helper.make_node("If", ["over"], ["answer"], then_branch=branches["then"], else_branch=branches["otherwise"]),
    ]
    return nodes, [helper.make_tensor_value_info("answer", number, [1, 3])]
