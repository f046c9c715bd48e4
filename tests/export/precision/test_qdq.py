"""The scales of a quantised graph: one for each output channel of a weight, one for an activation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper

from deploykit.export.precision.qdq import quantize

RANGE = 2.54  # of the activation


def quantised(
    node: NodeProto, shape: tuple[int, ...], taken: tuple[int, ...], **options: bool
) -> dict[str, np.ndarray]:
    """A graph of one layer, quantised; its constants by name."""
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("w", TensorProto.FLOAT, shape, weight.ravel())],
    )
    model = ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    quantize(model, {"x": RANGE}, **options)
    values = {n: np.asarray(v.const_value.numpy()) for n, v in model.graph.initializers.items() if v.const_value}
    return {"w": weight, **values}


LAYERS = {
    "Conv": (helper.make_node("Conv", ["x", "w"], ["y"]), (5, 3, 2, 2), (1, 3, 8, 8), 0),
    "ConvTranspose": (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), (3, 5, 2, 2), (1, 3, 8, 8), 1),
    "Gemm": (helper.make_node("Gemm", ["x", "w"], ["y"]), (3, 5), (2, 3), 1),
    "Gemm, turned": (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), (5, 3), (2, 3), 0),
    "MatMul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (3, 5), (2, 3), 1),
}


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_every_output_channel_has_a_scale_and_its_largest_weight_is_exact(name: str, reduced: bool) -> None:
    node, shape, taken, axis = LAYERS[name]
    found = quantised(node, shape, taken, reduce_range=reduced)
    most = 63 if reduced else 127
    others = tuple(i for i in range(len(shape)) if i != axis)
    np.testing.assert_allclose(found["w_int8_scale"], np.abs(found["w"]).max(others) / most, rtol=1e-6)
    assert len(found["w_int8_scale"]) == 5
    assert (np.abs(found["w_int8"].astype(int)).max(others) == most).all()
    wide = np.expand_dims(found["w_int8_scale"], others)
    assert np.abs(found["w_int8"] * wide - found["w"]).max() <= 0.5001 * wide.max()


def test_the_weight_of_groups_that_are_turned_has_one_scale() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2)
    found = quantised(node, (4, 3, 2, 2), (1, 4, 8, 8))
    assert found["w_int8_scale"].shape == ()
    assert found["w_int8_scale"] == pytest.approx(np.abs(found["w"]).max() / 127)


def test_the_largest_activation_is_the_largest_number() -> None:
    node, shape, taken, _ = LAYERS["Conv"]
    found = quantised(node, shape, taken)
    assert found["x_scale"] == pytest.approx(RANGE / 127, rel=1e-6)
    assert found["zero_int8"] == 0
