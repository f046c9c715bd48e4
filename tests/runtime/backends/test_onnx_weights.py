"""The graph of an ONNX file whose large weights point into the file that they were read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from deploykit.runtime.backends import onnx_weights
from deploykit.runtime.backends.onnx_weights import graph_without_weights

MIB = 1 << 20


def write(path: Path, tensors: list[TensorProto]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", [tensor.name], [f"out{n}"]) for n, tensor in enumerate(tensors)],
        "weights",
        [],
        [helper.make_tensor_value_info(f"out{n}", tensor.data_type, None) for n, tensor in enumerate(tensors)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {"deploykit": "kept"})
    onnx.save(model, path)
    return path


def tensor(shape: tuple[int, ...], kind: type = np.float32, *, name: str = "w") -> TensorProto:
    values = np.random.default_rng(0).integers(0, 255, int(np.prod(shape))).astype(kind).reshape(shape)
    return numpy_helper.from_array(values, name)


def filled(graph: bytes, folder: Path) -> onnx.ModelProto:
    """The model with the values that its tensors point to, and without the pointers."""
    model = onnx.load_model_from_string(graph)
    external_data_helper.load_external_data_for_model(model, str(folder))
    return model


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 6), max_size=4).map(tuple),
            st.sampled_from([np.float32, np.float16, np.int64, np.int8]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_tensors_have_their_values_and_the_rest_is_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[tuple[tuple[int, ...], type]]
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    tensors = [tensor(shape, kind, name=f"w{n}") for n, (shape, kind) in enumerate(chosen)]
    path = write(folder / "ä m.onnx", tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_weights, "LEAST_TENSOR", 100)
        patch.setattr(onnx_weights, "LEAST_SUM", 0)
        graph = graph_without_weights(path)
    assert graph is not None
    found = onnx.load_model_from_string(graph).graph.initializer
    for outside, original in zip(found, tensors, strict=True):
        large = original.data_type == TensorProto.FLOAT and len(original.raw_data) >= 100
        assert (outside.data_location == TensorProto.EXTERNAL, outside.HasField("raw_data")) == (large, not large)
    read = filled(graph, folder)
    for each in read.graph.initializer:
        each.ClearField("data_location")  # 0 where it was not given
        each.ClearField("external_data")
    assert read == onnx.load(path)


@settings(max_examples=60)
@given(st.data())
def test_what_is_cut_or_damaged_is_never_an_exception(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    whole = write(folder / "m.onnx", [tensor((5, 5), name="a"), tensor((9,), name="b")]).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    (folder / "d.onnx").write_bytes(damaged[:cut])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_weights, "LEAST_TENSOR", 1)
        patch.setattr(onnx_weights, "LEAST_SUM", 1)
        found = graph_without_weights(folder / "d.onnx")
    assert found is None or isinstance(found, bytes)


def test_files_that_are_read_as_they_are(tmp_path: Path) -> None:
    many = [tensor((64, 1024), name=f"w{n}") for n in range(80)]  # 20 MiB in tensors of a quarter of one
    assert graph_without_weights(write(tmp_path / "small.onnx", many)) is None
    assert graph_without_weights(write(tmp_path / "half.onnx", [tensor((10 * MIB,), np.float16)])) is None
    large = write(tmp_path / "large.onnx", [tensor((5, MIB))])
    graph = graph_without_weights(large)
    assert graph is not None
    assert len(graph) < 1000 < 5 * 4 * MIB < large.stat().st_size
    (tmp_path / "cut.onnx").write_bytes(large.read_bytes()[:-1000])
    assert graph_without_weights(tmp_path / "cut.onnx") is None
    onnx.save_model(onnx.load(large), tmp_path / "outside.onnx", save_as_external_data=True, location="outside.data")
    assert graph_without_weights(tmp_path / "outside.onnx") is None
    assert graph_without_weights(tmp_path / "nowhere.onnx") is None
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert graph_without_weights(tmp_path / "empty.onnx") is None
