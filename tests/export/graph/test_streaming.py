"""A file that is written weight by weight is the one that protobuf writes at once."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import ExportError
from deploykit.export.graph import streaming
from deploykit.export.graph.finalize import write
from deploykit.export.graph.streaming import write_streaming
from deploykit.runtime.arrays import Array

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64)


def graph_of(weights: list[Array], *, as_tensor: bool = False, operator: str = "Identity") -> ir.Model:
    """A graph that gives its weights, each through a node."""
    values = []
    for i, weight in enumerate(weights):
        tensor = ir.tensor(weight, name=f"w{i}")
        if as_tensor:
            tensor = ir.TensorProtoTensor(ir.serde.serialize_tensor(tensor))
        values.append(ir.val(f"w{i}", const_value=tensor))
    image = ir.val("image", dtype=ir.DataType.FLOAT, shape=ir.Shape(["n", 3]))
    nodes = [ir.node(operator, [value], name=f"n{i}") for i, value in enumerate([image, *values])]
    outputs = [node.outputs[0] for node in nodes]
    for i, (value, source) in enumerate(zip(outputs, [image, *values], strict=True)):
        value.name, value.dtype, value.shape = f"y{i}", source.dtype, source.shape
    graph = ir.Graph([image], outputs, nodes=nodes, initializers=values, opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=8, producer_name="a producer", producer_version="1")
    model.metadata_props["spec"] = "{}"
    graph.metadata_props["about"] = "graphs"
    return model


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    weights=st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 12), max_size=3)), max_size=5),
    as_tensor=st.booleans(),
    least=st.sampled_from([1, 40, 200, 2**16]),
)
def test_the_bytes_are_those_of_protobuf(
    tmp_path: Path, weights: list[tuple[type, list[int]]], as_tensor: bool, least: int
) -> None:
    chance = np.random.default_rng(0)
    arrays = [np.asarray(chance.normal(size=shape) * 50).astype(kind) for kind, shape in weights]
    graph = graph_of(arrays, as_tensor=as_tensor)
    expected = ir.to_proto(graph).SerializeToString()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streaming, "LEAST", least)
        write_streaming(graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == expected
    assert ir.to_proto(graph).SerializeToString() == expected  # the graph has its weights again
    for array, tensor in zip(arrays, onnx.load(tmp_path / "m.onnx").graph.initializer, strict=True):
        assert onnx.numpy_helper.to_array(tensor).tobytes() == array.tobytes()


def test_what_is_not_onnx_is_refused_with_large_weights_too(tmp_path: Path) -> None:
    graph = graph_of([np.zeros((200, 200), np.float32)], operator="Identify")
    with pytest.raises(ExportError, match=r"^the exported graph is not valid ONNX: No Op registered for Identify"):
        write(graph, tmp_path / "m.onnx", 0)
    assert not (tmp_path / "m.onnx").exists()


def test_a_weight_whose_bytes_are_not_those_of_its_shape_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of([np.zeros((200, 200), np.float32)])
    monkeypatch.setattr(ir.Tensor, "tobytes", lambda self: b"short")
    with pytest.raises(ExportError, match="the weight 'w0' has 5 bytes"):
        write_streaming(graph, tmp_path / "m.onnx")
