"""Changed constants of a graph: who has them, and who keeps the old ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from deploykit.export.precision.folds import Scaled, apply_changes, joined_changes
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

X = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
FACTORS = np.array([2.0, 0.5, 4.0, 1.0], np.float32)


def two_products(weights: tuple[str, str]) -> ir.Model:
    nodes = [
        helper.make_node("MatMul", ["x", weights[0]], ["a"], name="first"),
        helper.make_node("MatMul", ["a", weights[1]], ["y"], name="second"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor(name, TensorProto.FLOAT, W.shape, W.ravel()) for name in dict.fromkeys(weights)],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def output(model: ir.Model) -> Array:
    return OnnxInTorchSession(model).run({"x": X})["y"]


def test_what_one_product_gives_more_the_next_takes_less() -> None:
    for weights in (("w", "v"), ("w", "w")):  # of a weight that two nodes use, each has its own afterwards
        model = two_products(weights)
        expected = output(model)
        apply_changes(model, {("first", 1): (Scaled(1, FACTORS),)})
        assert not np.allclose(output(model), expected)
        apply_changes(model, {("second", 1): (Scaled(0, 1 / FACTORS),)})
        assert np.array_equal(output(model), expected)  # powers of two change no bit
        assert set(model.graph.initializers) >= {weights[1]} - {"w"}


def test_changes_one_after_the_other_are_those_of_both() -> None:
    key = ("first", 1)
    first, second = {key: (Scaled(1, FACTORS),)}, {key: (Scaled(0, FACTORS),), ("second", 1): (Scaled(0, FACTORS),)}
    one, both = two_products(("w", "v")), two_products(("w", "v"))
    apply_changes(one, first)
    apply_changes(one, second)
    apply_changes(both, joined_changes(first, second))
    assert np.array_equal(output(one), output(both))
    apply_changes(one, {})
    assert np.array_equal(output(one), output(both))
