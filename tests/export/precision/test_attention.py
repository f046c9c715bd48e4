"""Attention in fp16 between quantized layers: which, how far off, and what ONNX Runtime says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from deploykit.export.options import QuantKind
from deploykit.export.precision.attention import attention_cores, attention_in_half, measured_of
from deploykit.export.precision.half_rules import LARGEST_LOGIT
from deploykit.export.precision.qdq import activations_of, quantisable, quantize
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.session import open_session
from tests.attention_graph import X, transformer


def measured(model: ir.Model) -> dict[str, float]:
    found: dict[str, float] = {}
    OnnxInTorchSession(model, observe=lambda n, v: found.update({n: float(v.abs().max())})).run({"x": X})
    return found | {"x": float(np.abs(X).max())}


def quantized(model: ir.Model, largest: dict[str, float], kind: QuantKind = "int8") -> ir.Model:
    names = {name for node in quantisable(model.graph) for name in activations_of(node, outputs=False)}
    if kind == "fp8":
        model.opset_imports[""] = 19
    quantize(model, {name: largest[name] for name in names}, kind=kind)
    return model


@pytest.mark.parametrize(("kind", "masked"), [("int8", False), ("int8", True), ("fp8", True)])
def test_attention_between_quantized_layers_is_fp16(tmp_path: Path, kind: QuantKind, masked: bool) -> None:
    model, before = (transformer(masked=masked, logits=0.01) for _ in range(2))
    (core,) = attention_cores(model.graph)
    assert [str(node.name) for node in core] == ["logits", *["mask"] * masked, "softmax", "values"]
    largest = measured(model)
    assert set(measured_of([core])) <= set(largest)
    assert attention_in_half(quantized(model, largest, kind), largest) == (1, 1)
    quantized(before, largest, kind)
    assert precisions_of(model) == {kind: ["embed", "qkv", "last"], "fp16": ["logits", "values"]}
    assert sum(node.op_type == "Cast" for node in model.graph) == 4  # of queries, keys, values, and what comes out
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found, expected = (OnnxInTorchSession(one).run({"x": X})["y"] for one in (model, before))
    step = np.abs(expected).max() / 127  # the last layer rounds what it takes: a value may fall to the next step
    assert np.abs(found - expected).mean() < 0.1 * step
    if kind == "fp8":  # not every such file runs in ONNX Runtime
        return
    file = tmp_path / "m.onnx"
    ir.save(model, file)
    with open_session(file) as session:
        assert np.abs(session.run({"x": X})["y"] - expected).mean() < 0.1 * step


def test_attention_with_large_logits_or_values_stays_fp32() -> None:
    sharp = transformer(logits=0.1)
    largest = measured(sharp)
    assert largest["logits"] > LARGEST_LOGIT
    for name, value in (("logits", largest["logits"]), ("v", 1e5)):
        model = transformer(logits=0.01)
        assert attention_in_half(model, {**measured(model), name: value}) == (0, 1)
        assert not any(node.op_type == "Cast" for node in model.graph)


def test_what_is_no_attention_is_none() -> None:
    used_twice = transformer()
    softmax = next(node for node in used_twice.graph if node.op_type == "Softmax")
    more = ir.node("Identity", [softmax.outputs[0]])
    more.outputs[0].name = "more"
    used_twice.graph.append(more)
    assert attention_cores(used_twice.graph) == []
    classifier = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (4, 4))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (4, 4))],
    )
    assert attention_cores(ir.from_proto(helper.make_model(classifier)).graph) == []
