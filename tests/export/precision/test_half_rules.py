"""The rules of what half precision leaves in fp32, each on graphs of a few nodes; limits as docs/precision.md says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper

from deploykit.export.precision import half_rules
from deploykit.export.precision.half import to_half
from deploykit.export.precision.read_back import precisions_of


def graph(
    nodes: Sequence[NodeProto], inputs: Sequence[str], output: str, constants: Mapping[str, np.ndarray] | None = None
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 4)) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [
            helper.make_tensor("axis", TensorProto.INT64, (1,), [1]),
            helper.make_tensor("eps", TensorProto.FLOAT, (1,), [1e-6]),
            helper.make_tensor("weight", TensorProto.FLOAT, (4, 4), np.eye(4, dtype=np.float32).ravel()),
            *(helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.ravel()) for k, v in (constants or {}).items()),
        ],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def names(found: set[ir.Node]) -> set[str]:
    return {str(node.outputs[0].name) for node in found}


def test_a_running_sum_is_wide_up_to_the_difference_of_two_of_its_values_and_no_further() -> None:
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["right"]),
        helper.make_node("Concat", ["sum", "right"], ["both"], axis=1),
        helper.make_node("Sub", ["both", "both"], ["window"]),
        helper.make_node("Identity", ["window"], ["after"]),
        helper.make_node("Sub", ["after", "window"], ["more"]),
        helper.make_node("Mul", ["sum", "eps"], ["product"]),  # not one of those that only move values
        helper.make_node("Sub", ["product", "eps"], ["y"]),
    ]
    assert names(half_rules.running_sums(graph(nodes, ["x"], "y").graph)) == {"right", "both", "window"}


def test_a_length_is_wide_with_what_is_computed_of_it_alone() -> None:
    nodes = [
        helper.make_node("ReduceL2", ["x", "axis"], ["length"]),
        helper.make_node("Mul", ["length", "length"], ["square"]),
        helper.make_node("Add", ["square", "eps"], ["more"]),
        helper.make_node("Sqrt", ["more"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["divided"]),  # of the values too
        helper.make_node("Relu", ["x"], ["other"]),
        helper.make_node("Mul", ["other", "length"], ["scaled"]),
        helper.make_node("Relu", ["root"], ["y"]),
    ]
    assert names(half_rules.lengths(graph(nodes, ["x"], "y").graph)) == {"square", "more", "root"}


@pytest.mark.parametrize(("largest", "half"), [(16_375.0, True), (16_377.0, False), (65_000.0, False)])
def test_a_tensor_over_a_quarter_of_the_range_is_not_fp16(largest: float, half: bool) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="middle"),
        helper.make_node("MatMul", ["b", "weight"], ["y"], name="last"),
    ]
    model = graph(nodes, ["x"], "y")
    values = {"x": 1.0, "a": largest, "b": 1.0, "y": 1.0}
    to_half(model, "fp16", largest=values)
    assert ("first" in precisions_of(model)["fp16"]) is half


@pytest.mark.parametrize(("largest", "wide"), [(127.0, False), (129.0, True)])
def test_a_norm_of_what_is_over_128_is_wide(largest: float, wide: bool) -> None:
    norm = helper.make_node("LayerNormalization", ["x", "weight"], ["y"])
    told, found = half_rules.norms(graph([norm], ["x"], "y").graph, 18, {"x": largest})
    assert not told
    assert names(found) == ({"y"} if wide else set())


@pytest.mark.parametrize(("largest", "wide"), [(63.0, False), (65.0, True)])
def test_attention_is_wide_where_its_logits_are_over_64(largest: float, wide: bool) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"]),
    ]
    values = {"product": largest, "masked": 1000.0, "mask": 1000.0}  # a mask does not make logits large
    found = half_rules.sharp_attention(graph(nodes, ["x", "mask"], "y").graph, values)
    assert names(found) == ({"product", "masked", "y"} if wide else set())


BINS = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize("moved", [False, True], ids=["straight", "moved"])
@pytest.mark.parametrize(
    ("op", "shape", "layer"),
    [
        ("MatMul", (4,), False),
        ("MatMul", (4, 1), False),
        ("MatMul", (4, 2), True),
        ("Conv", (1, 4, 1, 1), False),
        ("Conv", (2, 4, 1, 1), True),
    ],
)
def test_a_mean_of_bins_is_no_layer(op: str, shape: tuple[int, ...], layer: bool, moved: bool) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"]),
        helper.make_node("Softmax", ["a"], ["shares"]),
        helper.make_node("Transpose", ["shares"], ["other"]),
        helper.make_node(op, ["other" if moved else "shares", "bins"], ["y"]),
    ]
    model = graph(nodes, ["x"], "y", {"bins": np.resize(BINS, shape)})
    assert names(set(half_rules.compute_nodes(model.graph))) == ({"a", "y"} if layer else {"a"})


def test_a_mean_of_bins_is_wide_with_its_softmax() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"], name="layer"),
        helper.make_node("Softmax", ["a"], ["shares"], name="shares"),
        helper.make_node("MatMul", ["shares", "bins"], ["y"], name="mean"),
    ]
    report = to_half(graph(nodes, ["x"], "y", {"bins": BINS}), "fp16", largest={})
    assert report.kept == {"decode": ("shares", "mean")}
