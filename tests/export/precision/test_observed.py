"""A graph whose inner tensors are looked at: what ONNX Runtime computes is what PyTorch computes, on any threads."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.errors import MissingDependencyError
from deploykit.export.options import Calibration, OnnxOptions, PrecisionOptions
from deploykit.export.precision.cpu_int8 import quantize_for_cpu
from deploykit.export.precision.half import to_half
from deploykit.export.precision.observed import (
    ENOUGH,
    SPARSEST,
    ObservedGraph,
    network_of,
    outputs_of_each,
    scales_of,
    values_of,
    with_peaks,
)
from deploykit.export.precision.qdq import quantize
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.to_onnx import onnx_from_model
from deploykit.runtime.arrays import Array
from deploykit.spec import InputSpec
from tests.export.precision.test_quantize import layer_graph
from tests.narrow import model_of

TENSORS = ("b", "c", "d", "f", "g", "h", "y")
IMAGES = [np.random.default_rng(number).random((1, 3, 32, 32), np.float32) for number in range(5)]


def shifted(shape: tuple[int, ...]) -> ir.Model:
    """A graph of one sum, whose result ``inner`` is looked at; its output is a part of it."""
    rank = len(shape)
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "one"], ["inner"]), helper.make_node("ReduceSum", ["inner"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,) * rank)],
        [helper.make_tensor("one", TensorProto.FLOAT, (1,), [1.0])],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def looked_at(model: ir.Model, tensors: tuple[str, ...], images: list[Array]) -> dict[str, list[tuple[float, Array]]]:
    """What is seen of each tensor, by image in any order."""
    seen: dict[str, list[tuple[float, Array]]] = {name: [] for name in tensors}
    lock = threading.Lock()

    def look(name: str, largest: float, some: Array) -> None:
        with lock:
            seen[name].append((largest, some))

    with ObservedGraph(model, tensors, look) as network:
        assert [set(found) for found in network.run_each(images)] == [{"y"}] * len(images)
    return seen


def test_small_tensors_are_seen_whole_and_are_those_of_pytorch() -> None:
    model = layer_graph()
    exact: dict[str, list[Array]] = {name: [] for name in TENSORS}
    with OnnxInTorchSession(
        model, observe=lambda n, v: exact.get(n, []).append(v.numpy().copy()), threads=1
    ) as session:
        for image in IMAGES:
            session.run({"x": image})
    seen = looked_at(model, TENSORS, IMAGES)
    assert [value.name for value in model.graph.outputs] == ["y"]  # the graph itself stays as it is
    for name, values in exact.items():
        assert len(seen[name]) == len(values) == len(IMAGES)
        for largest, some in seen[name]:
            value = min(values, key=lambda v: float(np.abs(v.ravel() - some.ravel()).max()))  # of the same image
            scale = float(np.abs(value).max())
            assert some.size == value.size
            np.testing.assert_allclose(some.ravel(), value.ravel(), rtol=0, atol=1e-5 * scale)
            assert largest == pytest.approx(scale, rel=1e-5)


@settings(max_examples=12)
@given(
    st.lists(st.integers(1, 60), max_size=3),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.sampled_from((0.0, np.nan, np.inf, -np.inf)),
)
def test_of_a_large_tensor_some_rows_are_seen_and_every_value_counts_for_its_largest(
    lead: list[int], columns: int, seed: int, broken: float
) -> None:
    shape, chance = (*lead, columns), np.random.default_rng(seed)
    image = chance.normal(size=shape).astype(np.float32)
    if broken:
        image.ravel()[chance.integers(image.size)] = broken
    ((largest, some),) = looked_at(shifted(shape), ("inner",), [image])["inner"]
    inner = image - np.float32(1)
    assert largest == np.abs(inner).max() if np.isfinite(inner).all() else not np.isfinite(largest)
    step = min(max(1, image.size // ENOUGH), SPARSEST)
    np.testing.assert_array_equal(some, inner.reshape(-1, columns)[::step])
    assert some.size >= min(image.size, ENOUGH)


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 9), st.lists(st.integers(1, 40), min_size=1, max_size=2), st.integers(0, 999))
def test_the_largest_value_of_each_channel_is_seen(batch: int, channels: int, sides: list[int], seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(batch, channels, *sides)).astype(np.float32)
    model = shifted(image.shape)
    (peak,) = with_peaks(model, ("inner",)).values()
    ((largest, some),) = looked_at(model, (peak,), [image])[peak]
    expected = np.abs(image - np.float32(1)).reshape(batch, channels, -1).max((0, 2))
    np.testing.assert_array_equal(some.ravel(), expected)
    assert largest == expected.max()


def test_outputs_are_the_same_bits_on_any_number_of_threads() -> None:
    model, before, found = layer_graph(), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append([outputs["y"].tobytes() for outputs in outputs_of_each(model, IMAGES)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert len(set(found[0])) > 1


def test_halves_are_rounded() -> None:
    model = layer_graph()
    (exact,) = outputs_of_each(model, IMAGES[:1])
    to_half(model, "fp16", largest=dict.fromkeys(TENSORS, 100.0))
    (found,) = outputs_of_each(model, IMAGES[:1])
    with OnnxInTorchSession(model, threads=1) as session:
        np.testing.assert_array_equal(found["y"], session.run({"x": IMAGES[0]})["y"])
    assert 1e-5 < abs(float(found["y"][0, 0] / exact["y"][0, 0]) - 1) < 1e-2


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantized_layer_multiplies_rounded_values_without_the_saturation_of_a_kernel(kind: Any) -> None:
    """Sums of products of two large weights and values of 8 bits are what kernels without VNNI saturate."""
    weight = np.full((4, 3, 3, 3), 0.9, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 30, 30))],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.ravel())],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    quantize(model, {"x": 1.0}, kind=kind)
    with OnnxInTorchSession(model, threads=1) as session:
        exact = [session.run({"x": image})["y"] for image in IMAGES]
    for expected, found in zip(exact, outputs_of_each(model, IMAGES), strict=True):
        np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "cpu", "fp8"])
def test_one_network_gives_what_graphs_of_other_ranges_give(kind: Any) -> None:
    model = layer_graph()
    graphs = [model.clone() for _ in range(3)]
    for graph, scale in zip(graphs, (1.0, 0.3, 2.5), strict=True):
        ranges = {name: scale * (1 + number) for number, name in enumerate("xabcdefghy")}
        if kind == "cpu":
            quantize_for_cpu(graph, ranges, InputSpec(name="x"))
        else:
            quantize(graph, ranges, kind=kind)
    scales = scales_of(graphs[0])
    found = []
    with network_of(graphs[0], scales) as network:
        assert type(network) is (OnnxInTorchSession if kind == "fp8" else ObservedGraph)
        for graph in graphs:
            again = network.with_values(values_of(graph, scales))
            found.append([outputs["y"] for outputs in again.run_each(IMAGES)])
    for graph, several in zip(graphs, found, strict=True):
        exact = [outputs["y"] for outputs in outputs_of_each(graph, IMAGES)]
        np.testing.assert_array_equal(several, exact)
    assert not np.array_equal(found[0], found[1])


def test_a_quantization_needs_onnx_runtime_and_says_so_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    options = OnnxOptions(precision=PrecisionOptions("int8", calibration=Calibration(tmp_path)))
    with pytest.raises(MissingDependencyError, match="onnxruntime"):
        onnx_from_model(model_of("few"), out=tmp_path / "m.onnx", options=options, check=False)
