"""int8 for a CPU's integer kernels: what is rounded, to which grid, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from deploykit.errors import ExportError, UsageError
from deploykit.export.formats import export_formats
from deploykit.export.options import Calibration, OnnxOptions, PrecisionOptions
from deploykit.export.precision.cpu_int8 import quantize_for_cpu, rounded_tensors
from deploykit.export.precision.qdq import quantisable, quantize
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array
from deploykit.spec import InputSpec

POSITIVE = InputSpec(name="x", size=(16, 16))
SIGNED = InputSpec(name="x", size=(16, 16), mean=(0.5, 0.5, 0.5))
SHAPE = (1, 3, 16, 16)


def network(seed: int = 0) -> ir.Model:
    """Two branches of layers with everything that may lie between, a head, and a decode that must stay float."""
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    def conv(source: str, to: str, stride: int = 1) -> onnx.NodeProto:
        pads = [1, 1, 1, 1]
        return helper.make_node("Conv", [source, f"{to}.weight"], [to], to, pads=pads, strides=[stride] * 2)

    def node(kind: str, sources: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, sources, list(outputs), outputs[0], **attributes)

    nodes = [
        conv("x", "stem"),
        node("Sigmoid", ["stem"], "gate"),
        node("Mul", ["stem", "gate"], "silu"),
        conv("silu", "plain"),
        node("Relu", ["plain"], "relu"),
        node("Split", ["relu"], "left", "right", axis=1, num_outputs=2),
        node("Concat", ["right", "left"], "turned", axis=1),
        node("Add", ["silu", "turned"], "sum"),
        conv("sum", "down", 2),
        node("LeakyRelu", ["down"], "leaky", alpha=0.1),
        node("MaxPool", ["leaky"], "pooled", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Resize", ["pooled", "", "scales"], "large", mode="nearest"),
        node("Concat", ["large", "sum"], "both", axis=1),
        conv("both", "head"),
        node("Sigmoid", ["head"], "scores"),
        node("Mul", ["scores", "hundred"], "y"),
    ]
    weights = [
        weight("stem.weight", 8, 3, 3, 3), weight("plain.weight", 8, 8, 3, 3), weight("down.weight", 8, 8, 3, 3),
        weight("head.weight", 6, 16, 3, 3), numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales"),
        numpy_helper.from_array(np.float32(100.0), "hundred"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, SHAPE)],
        [helper.make_tensor_value_info("y", 1, (1, 6, 16, 16))], weights,
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def residual(shortcuts: list[str]) -> ir.Model:
    """Blocks of two layers and a shortcut each: the block's input (""), or an operator that has no integer kernel."""
    nodes, weights, x = [], [], "x"
    for i, kind in enumerate(shortcuts):
        for one, source in (("a", x), ("b", f"a{i}")):
            weights.append(numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), f"{one}{i}.weight"))
            nodes.append(helper.make_node("Conv", [source, f"{one}{i}.weight"], [f"{one}{i}"], f"{one}{i}"))
        if kind:
            nodes.append(helper.make_node(kind, [x], [f"short{i}"], f"short{i}"))
        nodes.append(helper.make_node("Add", [f"b{i}", f"short{i}" if kind else x], [f"sum{i}"], f"sum{i}"))
        nodes.append(helper.make_node("Relu", [f"sum{i}"], [f"relu{i}"], f"relu{i}"))
        x = f"relu{i}"
    sides = [helper.make_tensor_value_info(name, 1, SHAPE) for name in ("x", x)]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def image(seed: int = 1) -> Array:
    return np.random.default_rng(seed).random(SHAPE, np.float32)


def measured(model: ir.Model, names: list[str], pixels: Array) -> dict[str, float]:
    found: dict[str, float] = {"x": float(np.abs(pixels).max())}

    def see(name: str, value: Any) -> None:
        if name in names:
            found[name] = max(found.get(name, 0.0), float(value.abs().max()))

    with OnnxInTorchSession(model, observe=see) as session:
        session.run({"x": pixels})
    return found


def quantised(seed: int = 0, canvas: InputSpec = POSITIVE, **options: Any) -> tuple[ir.Model, Any]:
    model = network(seed)
    ranges = measured(network(seed), rounded_tensors(model.graph), image())
    return model, quantize_for_cpu(model, ranges, canvas, **options)


def grids(model: ir.Model) -> dict[str, tuple[float, int]]:
    """Scale and zero point by the tensor that is rounded."""
    return {
        str(node.inputs[0].name): (float(node.inputs[1].const_value.numpy()), int(node.inputs[2].const_value.numpy()))
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    }  # type: ignore[union-attr]


def ran(model: ir.Model, pixels: Array, optimised: Path | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    found: Array = session.run(None, {"x": pixels})[0]
    return found


def test_everything_between_layers_is_rounded_and_the_head_is_not() -> None:
    model, done = quantised()
    found = grids(model)
    assert set(found) == set(done.tensors) == {
        "x", "stem", "gate", "silu", "relu", "left", "right", "turned", "sum", "down", "leaky", "pooled", "large",
        "both",
    }  # fmt: skip
    assert done.layers == ("stem", "plain", "down", "head")
    assert not done.kept
    assert done.weights == 8 * 3 * 9 + 2 * 8 * 8 * 9 + 6 * 16 * 9
    assert precisions_of(model) == {"int8": ["stem", "plain", "down", "head"]}


def test_zero_points_follow_from_the_operators() -> None:
    model, _ = quantised()
    found = grids(model)
    assert found["x"][1] == 0
    assert found["relu"][1] == 0
    assert found["gate"] == pytest.approx((1 / 255, 0))
    scale, zero = found["silu"]
    assert zero == round(0.2785 / scale)
    assert found["stem"][1] in (127, 128)  # nothing is known of a sum of products
    assert 0 < found["sum"][1] < 127  # a SiLU and a ReLU
    for name in ("left", "right"):
        assert found[name] == found["relu"]
    assert found["leaky"] == found["pooled"] == found["large"]
    assert grids(quantised(canvas=SIGNED)[0])["x"][1] in (127, 128)


def test_onnx_runtime_computes_on_integers_alone(tmp_path: Path) -> None:
    model, _ = quantised()
    ran(model, image(), tmp_path / "optimised.onnx")
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["QLinearConv"] == 3
    assert counts["QLinearSigmoid"] == counts["QLinearMul"] == counts["QLinearAdd"] == counts["QLinearLeakyRelu"] == 1
    assert counts["QLinearConcat"] == 2
    assert counts["Relu"] == 0
    assert counts["Conv"] + counts["FusedConv"] == 1  # the head
    assert counts["QuantizeLinear"] == 1  # of the image
    plain = network()
    names = list(dict.fromkeys(str(node.inputs[0].name) for node in quantisable(plain.graph)))  # type: ignore[union-attr]
    quantize(plain, measured(network(), names, image()))
    ran(plain, image(), tmp_path / "plain.onnx")
    assert "QLinearConv" not in {node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node}


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_outputs_stay_near_and_torch_agrees_with_onnx_runtime(seed: int) -> None:
    exact = ran(network(seed), image())
    model, _ = quantised(seed)
    with OnnxInTorchSession(model) as session:
        by_types = session.run({"x": image()})["y"]
    found = ran(model, image())
    assert np.abs(found - exact).mean() < 3.0  # of 100
    assert np.abs(found - by_types).mean() < 1.0


def test_a_layer_that_stays_is_float_until_the_next_rounding() -> None:
    model, done = quantised(nodes_to_exclude=("plain",))
    assert done.kept == ("plain",)
    found = grids(model)
    assert not {"plain", "relu", "left", "right"} & set(found)
    assert {"stem", "silu", "turned", "sum", "down", "large", "both"} <= set(found)
    assert precisions_of(model) == {"int8": ["stem", "down", "head"], "fp32": ["plain"]}


def test_without_layers_nothing_changes() -> None:
    every, nothing = quantised(nodes_to_exclude=("stem", "plain", "down", "head"))
    assert not nothing.layers
    np.testing.assert_array_equal(ran(every, image()), ran(network(), image()))


def test_seven_bits_for_kernels_that_saturate() -> None:
    model, _ = quantised(reduce_range=True)
    weights = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith("weight_int8")]  # type: ignore[union-attr]
    assert len(weights) == 4
    assert {int(np.abs(weight).max()) for weight in weights} == {63}


@given(st.lists(st.sampled_from(["", "Sin", "Relu"]), min_size=1, max_size=5), st.sets(st.integers(0, 9)))
def test_no_other_range_is_asked_for(shortcuts: list[str], kept: set[int]) -> None:
    model = residual(shortcuts)
    layers = [str(node.name) for node in quantisable(model.graph)]
    ranges = dict.fromkeys(rounded_tensors(model.graph), 1.0)
    out = {layers[i] for i in kept if i < len(layers)}
    done = quantize_for_cpu(model, ranges, POSITIVE, nodes_to_exclude=out)
    assert set(done.kept) == out


def test_a_range_that_is_missing_is_named() -> None:
    with pytest.raises(ExportError, match="no range was measured for the tensor 'x'"):
        quantize_for_cpu(network(), {}, POSITIVE)


def test_the_target_goes_with_int8_and_not_with_engines(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--target cpu goes with --precision int8, not with fp16"):
        PrecisionOptions("fp16", target="cpu")
    with pytest.raises(UsageError, match="must be any or cpu, got 'gpu'"):
        PrecisionOptions("int8", target="gpu", calibration=Calibration(tmp_path))  # type: ignore[arg-type]
    options = OnnxOptions(precision=PrecisionOptions("int8", target="cpu", calibration=Calibration(tmp_path)))
    with pytest.raises(UsageError, match="TensorRT refuses"):
        export_formats(tmp_path / "m.pt", ["tensorrt"], onnx=options)
