"""ONNX files: bytes, protocol buffers, and graphs that are built to harm."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from deploykit.errors import DeployError
from deploykit.export.inspection import inspect_file
from deploykit.export.preflight.graph import read_graph
from deploykit.export.preflight.rules import findings_of
from deploykit.facade import load
from deploykit.spec import METADATA_KEY
from tests.cell_model import cell_spec, write_cell_model
from tests.fuzz.mutate import INTEGERS, changed_bytes, changed_json, json_text
from tests.fuzz.protobuf import changed_message
from tests.fuzz.target import Files, Target
from tests.runtime.test_run_limit import write_endless_model

IMAGE = np.zeros((64, 64, 3), np.uint8)
SIZES = (0, 1, 2, 3, 64, -1, 2**16, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
OPERATORS = (
    "Identity", "Relu", "Conv", "MatMul", "Gemm", "Loop", "If", "Scan", "Resize", "Pad", "Tile", "Expand", "Range",
    "Gather", "ScatterND", "TopK", "NonMaxSuppression", "ConstantOfShape", "SequenceConstruct", "Optional",
    "StringNormalizer", "RandomNormal", "Einsum", "Reshape", "Concat", "Split", "Slice", "QuantizeLinear",
    "NotAnOperator", "",
)  # fmt: skip
PIPE = "pipe.data"
LOCATIONS = (
    "x.onnx.data", "../outside.data", "/etc/passwd", "/dev/zero", "/dev/null", PIPE, "link.data", "folder",
    "", ".", "..", "missing.data", "a/../x.onnx.data", "*/_ORT_MEM_ADDR_/*", "http://127.0.0.1:9/x", "x.onnx", "x\x00y",
    "\udc80", "n" * 5000,
)  # fmt: skip


class OnnxFiles(Target):
    """A file from outside that is inspected, loaded and run once, under a time limit."""

    # ONNX Runtime has no bound of its own: its process has one, and an allocation that fails is an error of the tree.
    name, memory, room = "onnx_files", 1 << 30, 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        spec = cell_spec()
        plain = write_cell_model(folder / "x.onnx", spec=spec).read_bytes()
        foreign = write_cell_model(folder / "x.onnx").read_bytes()
        dynamic = write_cell_model(folder / "x.onnx", batch="n", spec=cell_spec(dynamic=True)).read_bytes()
        self.external = write_cell_model(folder / "x.onnx", spec=spec, external=True).read_bytes()
        self.weights = (folder / "x.onnx.data").read_bytes()
        self.endless = write_endless_model(folder / "x.onnx").read_bytes()
        few = write_endless_model(folder / "x.onnx", trips=3).read_bytes()
        self.seeds = [*[plain, foreign, dynamic] * 3, few]
        (folder / "x.onnx.data").unlink()
        (folder / "folder").mkdir()
        (folder.parent / "outside.data").write_bytes(bytes(4096))
        (folder / "link.data").symlink_to(folder.parent / "outside.data")
        os.mkfifo(folder / PIPE)

    def make(self, random: Random) -> Files:
        kind = random.randrange(20)
        if kind < 3:
            return {"x.onnx": changed_bytes(random, random.choice(self.seeds))}
        if kind < 10:
            return {"x.onnx": changed_message(random, random.choice(self.seeds))}
        if kind < 12:
            data = self.weights if random.random() < 0.5 else changed_bytes(random, self.weights)
            if random.random() < 0.5:
                return {"x.onnx": changed_message(random, self.external), "x.onnx.data": data}
            return {"x.onnx": self._elsewhere(random), "x.onnx.data": data}
        if random.randrange(2000) == 0:
            return {"x.onnx": self.endless}
        model = onnx.load_from_string(random.choice(self.seeds))
        for _ in range(random.choice((1, 1, 2, 3))):
            random.choice(CHANGES)(random, model)
        try:
            return {"x.onnx": model.SerializeToString()}
        except ValueError:  # half a surrogate pair
            return {"x.onnx": self.seeds[0]}

    def _elsewhere(self, random: Random) -> bytes:
        """A file whose weights are said to lie somewhere else, or to be larger or shorter than they are."""
        model = onnx.load_from_string(self.external)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = random.choice(LOCATIONS).encode("utf-8", "replace").decode()
                elif random.random() < 0.5:
                    entry.value = str(random.choice(INTEGERS))
            if random.random() < 0.2:
                tensor.dims[:] = [random.choice(SIZES) for _ in tensor.dims]
        changed: bytes = model.SerializeToString()
        return changed

    def take(self, files: Files) -> None:
        (self.folder / "x.onnx.data").unlink(missing_ok=True)
        path = self.written(files)
        with contextlib.suppress(DeployError):  # what is refused by rules may load, and the other way round
            findings_of(read_graph(path))
        with load(path, threads=1, time_limit=0.1) as predictor:
            result = predictor(IMAGE)
            json.dumps(result.to_dict(), allow_nan=False)
        json.dumps(inspect_file(path).to_dict(), allow_nan=False)


def _dims(random: Random, model: Any) -> None:
    tensor = random.choice(model.graph.initializer)
    tensor.dims[:] = [random.choice(SIZES) for _ in range(random.randint(0, 4))]


def _type(random: Random, model: Any) -> None:
    places = [*model.graph.initializer, *(each.type.tensor_type for each in (*model.graph.input, *model.graph.output))]
    place = random.choice(places)
    setattr(place, "data_type" if hasattr(place, "data_type") else "elem_type", random.choice((*range(25), 99, -1)))


def _shape(random: Random, model: Any) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    sizes = [random.choice((*SIZES, "n", "batch", None)) for _ in range(random.randint(0, 6))]
    value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, sizes))


def _cycle(random: Random, model: Any) -> None:
    nodes = model.graph.node
    node = random.choice(nodes)
    if node.input:
        node.input[random.randrange(len(node.input))] = random.choice(nodes).output[0]


def _operator(random: Random, model: Any) -> None:
    node = random.choice(model.graph.node)
    node.op_type = random.choice(OPERATORS)
    if random.random() < 0.3:
        node.domain = random.choice(("deploykit", "com.microsoft", "ai.onnx.ml", "custom", "\n"))


def _attribute(random: Random, model: Any) -> None:
    node = random.choice(model.graph.node)
    value: Any = random.choice((0, -1, 2**31, [0], [2**40, 2**40], [-1, -1], 0.5, "text", [], [1] * 300))
    names = [each.name for each in node.attribute] or ["axis"]
    name = random.choice((*names, "axis", "kernel_shape", "perm", "keepdims", "pads"))
    if value != []:
        node.attribute.append(helper.make_attribute(name, value))


def _remove(random: Random, model: Any) -> None:
    graph = model.graph
    del random.choice([part for part in (graph.node, graph.initializer, graph.input, graph.output) if part])[0]


def _twice(random: Random, model: Any) -> None:
    graph = model.graph
    part = random.choice([part for part in (graph.node, graph.initializer, graph.input, graph.output) if part])
    part.append(random.choice(part))


def _giant(random: Random, model: Any) -> None:
    """A value of a giant shape, computed by the graph and added to what it gives."""
    graph = model.graph
    if not graph.output:
        return
    name = graph.output[0].name
    count = random.choice((2**20, 2**24, 2**30, 2**40, 2**62))
    graph.initializer.append(helper.make_tensor("giant shape", TensorProto.INT64, [1], [count]))
    graph.node.append(helper.make_node("ConstantOfShape", ["giant shape"], ["giant"]))
    graph.node.append(helper.make_node("ReduceSum", ["giant"], ["giant sum"], keepdims=0))
    for node in graph.node:
        node.output[:] = ["before" if each == name else each for each in node.output]
    graph.node.append(helper.make_node("Add", ["before", "giant sum"], [name]))


def _deep(random: Random, model: Any) -> None:
    """Graphs within graphs."""
    inner = helper.make_graph([], "g", [], [])
    for _ in range(random.choice((1, 5, 20, 30))):
        node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=helper.make_graph([], "e", [], []))
        inner = helper.make_graph([node], "g", [], [])
    model.graph.node.extend(inner.node)


def _function(random: Random, model: Any) -> None:
    """A function of the model's own, which may call itself."""
    node = random.choice(model.graph.node)
    called = random.choice((node.op_type, "Identity", "F"))
    body = [helper.make_node(called, ["a"], ["b"], domain=random.choice(("", "own")))]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node.domain, node.op_type = "own", "F"


def _versions(random: Random, model: Any) -> None:
    if random.random() < 0.5 or not model.opset_import:
        model.ir_version = random.choice(INTEGERS) % 2**63
    else:
        model.opset_import[0].version = random.choice((0, 1, 6, 12, 17, 22, 99, 2**31, -1))


def _spec(random: Random, model: Any) -> None:
    spec = json.loads(cell_spec().to_json())
    text = json_text(random, changed_json(random, spec)).decode("utf-8", "replace")
    helper.set_model_props(model, {METADATA_KEY: text})


def _metadata(random: Random, model: Any) -> None:
    """The metadata of other projects' files."""
    names = random.choice(
        ("{0: 'a', 1: 'b'}", "['a']", "[" * 2000, "{0: 'a'", "9" * 5000, "{0: [1]}", "\x1b[2J", "-" * 9000)
    )
    facts = {
        "names": names,
        "stride": random.choice(("32", "-1", "[8]", "1e400", "0")),
        "task": "detect",
        "version": "8",
    }
    helper.set_model_props(model, {**facts, "imgsz": random.choice(("[64, 64]", "64", "[0]", "[9999999999, 1]"))})


CHANGES: tuple[Callable[[Random, Any], None], ...] = (
    _dims, _type, _shape, _cycle, _operator, _attribute, _remove, _twice, _giant, _deep, _function, _versions, _spec,
    _metadata, _metadata,
)  # fmt: skip

TARGET = OnnxFiles
