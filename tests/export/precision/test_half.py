"""Half precision as a pass over the graph: what becomes half, what stays, and that the graph is whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from deploykit.errors import ExportError
from deploykit.export.precision.half import HalfType, to_half
from deploykit.export.precision.half_rules import LARGEST, LARGEST_LOGIT, LARGEST_SQUARED
from deploykit.export.precision.read_back import check_precision, precisions_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import open_session

X = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)


def network(*, scale: float = 1.0, opset: int = 18, middle: str = "Relu") -> ir.Model:
    """Conv, an operator, Conv, then a decode: two outputs side by side, times a constant, plus a constant."""
    chance = np.random.default_rng(1)
    weights = {
        "w1": chance.normal(size=(8, 4, 3, 3)) * scale,
        "w2": chance.normal(size=(64, 8, 3, 3)) * 0.1 / scale,
        "w3": chance.normal(size=(2, 64, 1, 1)) * 0.1,
        "grid": np.arange(128.0).reshape(1, 2, 8, 8) * 8,
        "stride": np.array([8.0]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1] * 4),
        helper.make_node(middle, ["a"], ["b"], name="middle"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1] * 4),
        helper.make_node("Conv", ["c", "w3"], ["d"], name="third"),
        helper.make_node("Transpose", ["d"], ["e"], name="turn", perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["e"], ["f"], name="back", perm=[0, 3, 1, 2]),
        helper.make_node("Sigmoid", ["f"], ["g"], name="sigmoid"),
        helper.make_node("Mul", ["g", "stride"], ["h"], name="times"),
        helper.make_node("Add", ["h", "grid"], ["y"], name="plus"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 8, 8))],
        [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.astype(np.float32).ravel()) for n, v in weights.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def measured(model: ir.Model) -> dict[str, float]:
    found: dict[str, float] = {}
    OnnxInTorchSession(model, observe=lambda n, v: found.update({n: float(v.abs().max())})).run({"x": X})
    return found


def output(model: ir.Model) -> Array:
    return OnnxInTorchSession(model).run({"x": X})["y"]


def stored(model: ir.Model) -> dict[str, str]:
    return {str(n): str(v.dtype.name) for n, v in model.graph.initializers.items() if v.dtype is not None}


def valid(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize(("dtype", "opset", "near"), [("fp16", 18, 0.02), ("bf16", 22, 0.2)])
def test_layers_are_half_and_the_decode_is_not(dtype: HalfType, opset: int, near: float) -> None:
    model = network(opset=opset)
    expected = output(model)
    report = to_half(model, dtype, largest=measured(model))
    valid(model)
    assert precisions_of(model) == {dtype: ["first", "second", "third"]}
    assert report.kept == {"decode": ("sigmoid", "times", "plus")}  # what only moves half values stays half
    assert report.casts == 2  # the image on its way in, and before the sigmoid
    kinds = stored(model)
    assert kinds.pop("grid") == kinds.pop("stride") == "FLOAT"
    assert set(kinds.values()) == {"FLOAT16" if dtype == "fp16" else "BFLOAT16"}
    found = output(model)
    assert 0 < np.abs(found - expected).max() < near


def test_onnx_runtime_runs_it(tmp_path: Path) -> None:
    model = network()
    expected = output(model)
    to_half(model, "fp16", largest={})
    file = tmp_path / "half.onnx"
    ir.save(model, file)
    with open_session(file) as session:
        found = session.run({"x": X})["y"]
    assert 0 < np.abs(found - expected).max() < 0.02


def test_what_has_not_the_range_stays_fp32_and_is_stored_as_half() -> None:
    model = network(scale=2e4)
    largest = measured(model)
    assert largest["a"] > LARGEST
    expected = output(model)
    report = to_half(model, "fp16", largest=largest)
    valid(model)
    assert report.kept["range"] == ("first", "middle", "second")
    assert report.stored == ("second",)  # the first one's weight is too small a tensor to be worth it
    assert stored(model)["w2_fp16"] == "FLOAT16"
    assert report.largest[0] <= LARGEST
    assert np.abs(output(model) - expected).max() < 0.1  # its weights are so small that fp16 has few bits for them

    fully = network(scale=2e4)
    assert to_half(fully, "fp16", largest=largest, store=False).stored == ()
    assert stored(fully)["w2"] == "FLOAT"

    unseen = network(scale=2e4)  # without the measurement it overflows, and torch shows it
    to_half(unseen, "fp16", largest={})
    seen: list[bool] = []
    OnnxInTorchSession(unseen, observe=lambda _, v: seen.append(bool(v.isinf().any()))).run({"x": X})
    assert any(seen)


def test_bf16_has_the_range() -> None:
    model = network(scale=2e4, opset=22)
    report = to_half(model, "bf16", largest=measured(model))
    assert "range" not in report.kept


@pytest.mark.parametrize("operator", ["Exp", "GlobalAveragePool"])
def test_operators_that_lose_much_stay_fp32(operator: str) -> None:
    model = network(middle=operator, scale=0.05)
    report = to_half(model, "fp16", largest=measured(model))
    valid(model)
    assert report.kept["operator"] == ("middle",)
    assert Counter(n.op_type for n in model.graph)["Cast"] == report.casts == 4


def attention(*, logits: float = 1.0, mask: bool = False, stream: float = 1.0, stash: int = 1) -> ir.Model:
    """A norm, a product, perhaps a mask, a softmax and a product; ``logits`` and ``stream``: how large values are."""
    chance = np.random.default_rng(2)
    wall = np.where(chance.random((8, 8)) < 0.5, 0, -100)
    wall[:, 0] = 0
    weights = {
        "first": chance.normal(size=(8, 64)) * 0.3 * stream,
        "scale": np.ones(64),
        "shift": np.full(64, 3.0),
        "k": logits / (3 * 64) + chance.normal(size=(1, 4, 64, 8)) / 16,  # all logits are near the largest one
        "wall": wall,
        "v": chance.normal(size=(8, 3)),
        "last": np.eye(3),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="first"),
        helper.make_node("LayerNormalization", ["a", "scale", "shift"], ["b"], name="norm", axis=-1, stash_type=stash),
        helper.make_node("MatMul", ["b", "k"], ["c"], name="product"),
        *([helper.make_node("Add", ["c", "wall"], ["d"], name="mask")] if mask else []),
        helper.make_node("Softmax", ["d" if mask else "c"], ["e"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["e", "v"], ["f"], name="values"),
        helper.make_node("MatMul", ["f", "last"], ["y"], name="last"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 8, 3))],
        [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.astype(np.float32).ravel()) for n, v in weights.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


@pytest.mark.parametrize("mask", [False, True])
def test_attention_is_half_from_end_to_end(mask: bool) -> None:
    model = attention(mask=mask)
    expected = output(model)
    report = to_half(model, "fp16", largest=measured(model))
    valid(model)
    assert report.kept == {}
    assert report.casts == 2  # on the way in and on the way out: nothing stands between its products
    assert 0 < np.abs(output(model) - expected).max() < 0.01


def test_attention_with_large_logits_stays_fp32() -> None:
    model, rounded = attention(logits=100, mask=True), attention(logits=100, mask=True)
    largest = measured(model)
    assert largest["c"] > LARGEST_LOGIT
    expected = output(model)
    report = to_half(model, "fp16", largest=largest)
    valid(model)
    assert set(report.kept["range"]) == {"product", "mask", "softmax"}
    to_half(rounded, "fp16", largest={})
    assert np.abs(output(model) - expected).mean() < 0.5 * np.abs(output(rounded) - expected).mean()


def test_a_norm_whose_squares_are_large_stays_fp32() -> None:
    model = attention(stream=200)
    largest = measured(model)
    assert LARGEST_SQUARED < largest["a"] < LARGEST
    report = to_half(model, "fp16", largest=largest)
    valid(model)
    assert report.kept == {"range": ("norm",)}


def test_a_norm_whose_statistics_are_not_told_to_be_float32_stays_fp32() -> None:
    model = attention(stash=TensorProto.FLOAT16)
    assert to_half(model, "fp16", largest={}).kept == {"operator": ("norm",)}
    assert to_half(attention(stash=TensorProto.FLOAT), "fp16", largest={}).kept == {}


def test_a_node_may_be_kept_by_name() -> None:
    model = network()
    report = to_half(model, "fp16", largest={}, nodes_to_exclude=["second"])
    valid(model)
    assert report.kept["asked"] == ("second",)
    assert precisions_of(model) == {"fp16": ["first", "third"], "fp32": ["second"]}


def test_inputs_and_outputs_keep_their_names_and_may_be_half() -> None:
    for half_io, kinds in (("none", ("FLOAT", "FLOAT")), ("input", ("FLOAT16", "FLOAT")), ("both", ("FLOAT16",) * 2)):
        model = network()
        to_half(model, "fp16", largest={}, half_io=half_io)  # type: ignore[arg-type]  # a literal of this loop
        proto = valid(model)
        found = [*proto.graph.input, *proto.graph.output]
        assert [v.name for v in found] == ["x", "y"]
        assert tuple(TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in found) == kinds


def test_resize_keeps_its_float_scales() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resize", mode="nearest"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="last"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 16, 16))],
        [
            helper.make_tensor("w", TensorProto.FLOAT, (4, 4, 1, 1), np.ones(16, np.float32)),
            helper.make_tensor("scales", TensorProto.FLOAT, (4,), [1.0, 1.0, 2.0, 2.0]),
        ],
    )
    model = ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    to_half(model, "fp16", largest={})
    valid(model)
    assert stored(model) == {"w_fp16": "FLOAT16", "scales": "FLOAT"}


def test_bf16_below_opset_22_is_refused() -> None:
    with pytest.raises(ExportError, match=r"opset 18 \(bf16 needs opset 22\): 3 kept by type"):
        to_half(network(), "bf16", largest={})


def test_another_precision_than_was_asked_for_is_refused() -> None:
    with pytest.raises(ExportError, match=r"x\.onnx must compute in fp16, but .* 3 in fp32"):
        check_precision({"fp32": 3}, "fp16", "x.onnx")
    with pytest.raises(ExportError, match="4 in fp32, 2 in fp16"):
        check_precision({"fp32": 4, "fp16": 2}, "fp16", "x.onnx")
    with pytest.raises(ExportError, match="none at all"):
        check_precision({}, "int8", "x.onnx")
    check_precision({"fp32": 4, "int8": 2}, "int8", "x.onnx")
    check_precision({"fp32": 3}, "fp32", "x.onnx")
    check_precision({}, "fp32", "x.onnx")  # a network without layers has no precision to miss
