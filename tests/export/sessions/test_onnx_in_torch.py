"""A graph in torch by its own types: fp32 as ONNX Runtime gives it, and half precision with every rounding."""

from __future__ import annotations

import inspect
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deploykit.errors import ArtefactError, BackendError
from deploykit.export.sessions import onnx_image_ops, onnx_ops
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession, open_onnx_in_torch
from deploykit.export.sessions.onnx_ops import OPERATORS
from deploykit.facade import open_session
from deploykit.runtime.arrays import Array

NOISE = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
NAMES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    output: str,
    *arrays: onnx.TensorProto,
    opset: int = 22,
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(arrays),
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def run(model: ir.Model, **inputs: Array) -> Array:
    (found,) = OnnxInTorchSession(model).run(inputs).values()
    return found


def test_in_float32_it_gives_what_onnx_runtime_gives(exported: Path) -> None:
    for name in ("static", "batch", "shape"):
        file = exported / f"{name}.onnx"
        with open_session(file) as theirs, open_session(file, backend="torch") as ours:
            assert [i.shape for i in ours.inputs] == [i.shape for i in theirs.inputs]
            expected, found = (s.run({"images": NOISE})["output"] for s in (theirs, ours))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
            assert ours.metadata == theirs.metadata


def test_outputs_side_by_side_are_the_same_on_any_number_of_threads() -> None:
    model = graph([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], {"x": (1, 1 << 20)}, "y")
    images = list(np.random.default_rng(0).normal(size=(5, 1, 1 << 20)).astype(np.float32))
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with OnnxInTorchSession(model) as session:
                found[threads] = [float(outputs["y"]) for outputs in session.run_each(iter(images))]
                assert torch.get_num_threads() == threads
                whole = [float(session.run({"x": image})["y"]) for image in images]
            if threads == 1:
                assert found[1] == whole
            else:
                assert whole != found[1]  # as threads share a sum, its last bits change
    finally:
        torch.set_num_threads(before)
    assert found[1] == found[2] == found[3]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_each_operator_rounds_to_its_type(kind: int) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=kind),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    x = np.random.default_rng(1).normal(size=(4, 50)).astype(np.float32)
    a = x.astype(NAMES[kind])
    expected = (a * a + a).astype(np.float32)
    np.testing.assert_array_equal(run(graph(nodes, {"x": x.shape}, "y"), x=x), expected)
    assert np.abs(expected - (x * x + x)).max() > 0  # it did round


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_convolution_adds_in_float32_and_rounds_once(kind: int) -> None:
    chance = np.random.default_rng(2)
    x, w, b = (chance.normal(size=s).astype(NAMES[kind]) for s in ((1, 8, 6, 6), (4, 8, 3, 3), (4,)))
    raw = [helper.make_tensor(n, kind, v.shape, v.tobytes(), raw=True) for n, v in (("w", w), ("b", b))]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("Conv", ["h", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    wide = [torch.from_numpy(v.astype(np.float32)) for v in (x, w, b)]
    expected = torch.nn.functional.conv2d(*wide, stride=2, padding=1).numpy().astype(NAMES[kind]).astype(np.float32)
    found = run(graph(nodes, {"x": x.shape}, "y", *raw), x=x.astype(np.float32))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_gemm_multiplies_and_adds_in_float32_and_rounds_once(kind: int) -> None:
    chance = np.random.default_rng(3)
    a, b, c = (chance.normal(size=s).astype(NAMES[kind]) for s in ((64, 5), (7, 64), (7,)))
    raw = [helper.make_tensor(n, kind, v.shape, v.tobytes(), raw=True) for n, v in (("b", b), ("c", c))]
    nodes = [
        helper.make_node("Cast", ["a"], ["h"], to=kind),
        helper.make_node("Gemm", ["h", "b", "c"], ["g"], transA=1, transB=1, alpha=0.3, beta=0.7),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
    ]
    wide = [v.astype(np.float64) for v in (a, b, c)]
    exact = (np.float64(np.float32(0.3)) * (wide[0].T @ wide[1].T) + np.float64(np.float32(0.7)) * wide[2]).astype(
        np.float32
    )
    found = run(graph(nodes, {"a": a.shape}, "y", *raw), a=a.astype(np.float32))
    # Of 35 values one may lie so near to the middle of two of its type that the order of a float32 sum decides.
    assert (found != exact.astype(NAMES[kind]).astype(np.float32)).sum() <= 1
    product = (a.T.astype(np.float32) @ b.T.astype(np.float32)).astype(NAMES[kind])
    twice = (product * NAMES[kind](0.3) + NAMES[kind](0.7) * c).astype(np.float32)
    assert (twice != exact.astype(NAMES[kind]).astype(np.float32)).sum() > 5  # rounding each step is something else


def test_a_gemm_without_a_sum_is_a_product() -> None:
    x = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)
    turned = helper.make_node("Gemm", ["x", "x"], ["y"], transB=1)
    np.testing.assert_allclose(run(graph([turned], {"x": x.shape}, "y"), x=x), x @ x.T, rtol=1e-6)


def test_every_function_of_an_operator_is_in_the_table() -> None:
    """A function that the table has not would never run, and the reference, which rounds otherwise, would."""
    operators = {
        name: function
        for module in (onnx_ops, onnx_image_ops)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and [p.annotation for p in inspect.signature(function).parameters.values()] == ["Values", "Attributes"]
    }
    assert len(operators) > 15
    assert not [name for name, function in operators.items() if function not in OPERATORS.values()]


def test_a_half_tensor_overflows_where_onnx_runtime_on_a_cpu_does_not_show_it() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["a", "a"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    seen: dict[str, float] = {}

    def observe(name: str, value: torch.Tensor) -> None:
        seen[name] = float(value.abs().max())

    x = np.full((1, 2), 300.0, np.float32)
    found = OnnxInTorchSession(graph(nodes, {"x": x.shape}, "y"), observe=observe).run({"x": x})["y"]
    assert np.isinf(found).all()
    assert seen == {"a": 300.0, "b": np.inf, "y": np.inf}


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantisation_is_numpys(axis: int | None) -> None:
    chance = np.random.default_rng(3)
    x = chance.normal(size=(5, 7)).astype(np.float32) * 3
    scale = np.float32(0.02) if axis is None else chance.uniform(0.01, 0.05, x.shape[axis]).astype(np.float32)
    zero = np.zeros(scale.shape, np.int8)
    arrays = [
        helper.make_tensor("s", TensorProto.FLOAT, scale.shape, np.atleast_1d(scale)),
        helper.make_tensor("z", TensorProto.INT8, zero.shape, zero.tobytes(), raw=True),
    ]
    given = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **given),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **given),
    ]
    steps = scale if axis is None else np.expand_dims(scale, 1 - axis)
    expected = np.clip(np.rint(x / steps), -128, 127).astype(np.float32) * steps
    np.testing.assert_array_equal(run(graph(nodes, {"x": x.shape}, "y", *arrays), x=x), expected)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (helper.make_node("Mish", ["x"], ["y"]), lambda x: x * np.tanh(np.log1p(np.exp(x)))),  # not in our table
        (helper.make_node("TopK", ["x", "two"], ["y", "i"], axis=1), lambda x: -np.sort(-x, 1)[:, :2]),
        (helper.make_node("Gather", ["x", "two"], ["y"], axis=0), lambda x: x[[2]]),
        (helper.make_node("ReduceMean", ["x", "one"], ["y"], keepdims=0), lambda x: x.mean(1)),
        (helper.make_node("Clip", ["x", "", "half"], ["y"]), lambda x: np.minimum(x, 0.5)),
        (helper.make_node("Unsqueeze", ["x", "one"], ["y"]), lambda x: x[:, None]),
        (helper.make_node("Slice", ["x", "one", "two", "one"], ["y"]), lambda x: x[:, 1:2]),
        (helper.make_node("Expand", ["x", "wide"], ["y"]), lambda x: np.broadcast_to(x, (2, 3, 4))),
    ],
)
def test_operators_are_numpys(node: onnx.NodeProto, expected: object) -> None:
    x = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)
    arrays = [
        helper.make_tensor("one", TensorProto.INT64, (1,), [1]),
        helper.make_tensor("two", TensorProto.INT64, (1,), [2]),
        helper.make_tensor("wide", TensorProto.INT64, (3,), [2, 3, 4]),
        helper.make_tensor("half", TensorProto.FLOAT, (), [0.5]),
    ]
    assert callable(expected)
    found = run(graph([node], {"x": x.shape}, "y", *arrays, opset=18), x=x)
    np.testing.assert_allclose(found, expected(x), rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("node", "more"),
    [
        (helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="DCR"), {}),
        (helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD"), {}),
        (helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2), {}),
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 0]), {}),
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), {}),
        (helper.make_node("GlobalAveragePool", ["x"], ["y"]), {}),
        (
            helper.make_node("Pad", ["x", "p", "v"], ["y"]),
            {"p": np.array([0, 1, 2, 0, 0, 0, 3, 1]), "v": np.array(0.5, np.float32)},
        ),
        (
            helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1, epsilon=1e-3),
            {"s": np.linspace(0.5, 2, 6, dtype=np.float32), "b": np.linspace(-1, 1, 6, dtype=np.float32)},
        ),
    ],
    ids=lambda one: one.op_type if isinstance(one, onnx.NodeProto) else "",
)
def test_operators_are_those_of_onnxs_reference(node: onnx.NodeProto, more: dict[str, Array], kind: type) -> None:
    x = np.random.default_rng(5).normal(size=(2, 8, 4, 6)).astype(np.float32)
    narrow = [helper.make_node("Cast", ["given"], ["x"], to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))]
    values = {n: v.astype(kind) if v.dtype == np.float32 else v for n, v in more.items()}
    arrays = [onnx.numpy_helper.from_array(v, n) for n, v in values.items()]
    back = [helper.make_node("Cast", ["y"], ["wide"], to=TensorProto.FLOAT)]
    model = graph([*narrow, node, *back], {"given": x.shape}, "wide", *arrays)
    (expected,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"given": x})
    assert node.op_type in OPERATORS
    np.testing.assert_allclose(run(model, given=x), expected, rtol=1e-5 if kind is np.float32 else 2e-3, atol=2e-3)


def test_a_further_output_is_computed_though_torchs_operator_has_none() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["best", "places"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["best", "places"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    x = np.random.default_rng(0).random((1, 2, 4, 6)).astype(np.float32)
    blocks = x.reshape(1, 2, 2, 2, 3, 2)
    expected = np.where(blocks == blocks.max((3, 5), keepdims=True), blocks, 0).reshape(x.shape)
    np.testing.assert_array_equal(run(graph(nodes, {"x": x.shape}, "y"), x=x), expected)


def test_what_it_cannot_run_is_said(tmp_path: Path) -> None:
    loop = helper.make_node("NmsKpt", ["x"], ["y"], domain="deploykit", name="the node")
    with pytest.raises(BackendError, match=r"the node.*deploykit::NmsKpt"):
        OnnxInTorchSession(graph([loop], {"x": (1,)}, "y"))
    broken = helper.make_node("MatMul", ["x", "x"], ["y"], name="product")
    with pytest.raises(BackendError, match="'product'"):
        run(graph([broken], {"x": (2, 3)}, "y"), x=np.ones((2, 3), np.float32))
    file = tmp_path / "x.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(ArtefactError, match="not a whole ONNX file"):
        open_onnx_in_torch(file)
