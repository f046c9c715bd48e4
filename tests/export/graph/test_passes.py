"""What the exporter leaves to be mended in its graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deploykit.export.graph import passes
from deploykit.export.graph.trace import example_input, export_to_ir
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.spec import DenseOutput, InputSpec, ModelSpec


class Clipped(nn.Module):
    """One value between several pairs of bounds, which are buffers."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(1, 4):
            self.register_buffer(f"low{i}", torch.tensor(-0.1 * i))
            self.register_buffer(f"high{i}", torch.tensor(0.2 * i))

    def forward(self, x: Tensor) -> Tensor:
        y = x.sin()
        pairs = [(self.get_buffer(f"low{i}"), self.get_buffer(f"high{i}")) for i in range(1, 4)]
        return torch.cat([y.clamp(low, high) for low, high in pairs], 1)


def test_each_clip_of_a_value_keeps_its_bounds() -> None:
    spec = ModelSpec("restore", InputSpec(size=(8, 8)), DenseOutput(name="image"))
    module = Clipped().eval()
    graph = export_to_ir(module, example_input(spec.input), spec, "dynamo", True, ["image"])
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    found = OnnxInTorchSession(graph).run({spec.input.name: x})["image"]
    np.testing.assert_array_equal(found, module(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("limit", [11, 12])
def test_what_is_computed_of_constants_is_stored_up_to_a_size(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "FOLD_GIVEN", limit)
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (float[3, 4] x) => (float[3, 4] y) <float[1, 4] row = {1.0, 2.0, 3.0, 4.0}, int64[2] shape = {3, 4}> {
        rows = Expand(row, shape)
        y = Add(x, rows)
    }"""
    model = ir.from_onnx_text(text)
    passes.simplify(model)
    assert [node.op_type for node in model.graph] == (["Add"] if limit == 12 else ["Expand", "Add"])


GELU = """<ir_version: 10, opset_import: ["" : 18]>
g (float[2, 4] x) => (float[2, 4] y) <float root = {1.4142135}, float one = {1.0}, float half = {FACTOR}> {
    scaled = Div(x, root)
    erf = Erf(scaled)
    total = Add(erf, one)
    halved = Mul(half, total)
    y = Mul(x, halved)
}"""


def operators_in_onnx_runtime(model: ir.Model, tmp_path: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def test_a_gelu_has_the_form_that_onnx_runtime_computes_as_one_operator(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    model = ir.from_onnx_text(GELU.replace("FACTOR", "0.5"))
    before = OnnxInTorchSession(model).run({"x": x})["y"]
    assert operators_in_onnx_runtime(model, tmp_path) != ["Gelu"]
    passes.arrange_gelu(model)
    assert operators_in_onnx_runtime(model, tmp_path) == ["Gelu"]
    np.testing.assert_array_equal(OnnxInTorchSession(model).run({"x": x})["y"], before)


@pytest.mark.parametrize(
    ("old", "new"),
    [("FACTOR", "0.25"), ("y = Mul(x, halved)", "y = Mul(halved, halved)"), ("y = Mul", "z = Mul(x, total) y = Mul")],
)
def test_what_is_no_gelu_stays_as_it_is(old: str, new: str) -> None:
    model = ir.from_onnx_text(GELU.replace(old, new).replace("FACTOR", "0.5"))
    before = ir.to_proto(model).SerializeToString()
    passes.arrange_gelu(model)
    assert ir.to_proto(model).SerializeToString() == before
