"""DecodeRows: the kernel's algorithm, the kernel, and the operator in ONNX Runtime, against the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import BackendError
from deploykit.export.nms.decode_node import expand_decode_nodes
from deploykit.export.parity.inputs import sample_image
from deploykit.export.plugins_check import HEAD, decode_rows_model, decoded_rows
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load
from deploykit.runtime.arrays import Array
from deploykit.runtime.native.cuda_library import CudaLibrary
from deploykit.runtime.session import open_session
from tests.cpp_plugins.conftest import with_attributes
from tests.narrow import model_of


def raw_values(seed: int, batch: int, sizes: list[tuple[int, int]], channels: int, dtype: type) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [(6 * rng.standard_normal((batch, channels, *size))).astype(dtype) for size in sizes]


def assert_decoded(found: Array, levels: list[Array], head: dict[str, Any]) -> None:
    """Within a few units in the last place: every term is the largest intermediate value's rounding error."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, decoded_rows(levels, **head), rtol=1e-5, atol=1e-4)


@st.composite
def heads(draw: st.DrawFn) -> tuple[list[Array], dict[str, Any]]:
    count, each = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    classes, points = draw(st.integers(1, 70)), draw(st.integers(0, 5))
    sizes = [draw(st.tuples(st.integers(1, 12), st.integers(1, 12))) for _ in range(count)]
    seed = draw(st.integers(0, 2**32))
    head = {
        "strides": [2 ** draw(st.integers(2, 6)) for _ in range(count)],
        "anchors": np.random.default_rng(seed).uniform(5, 300, (count, each, 2)).astype(np.float32),
        "classes": classes,
        "points": points,
    }
    channels = each * (5 + classes + 3 * points)
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    return raw_values(seed, draw(st.integers(1, 3)), sizes, channels, dtype), head


@given(problem=heads())
@settings(max_examples=50)
def test_any_head(library: CudaLibrary, problem: tuple[list[Array], dict[str, Any]]) -> None:
    levels, head = problem
    assert_decoded(library.decode(levels, **head), levels, head)


@given(problem=heads())
@settings(max_examples=30)
def test_any_head_in_onnx_runtime(
    operators: Path, tmp_path_factory: pytest.TempPathFactory, problem: tuple[list[Array], dict[str, Any]]
) -> None:
    levels, head = problem
    file = tmp_path_factory.mktemp("decode") / "decode.onnx"
    file.write_bytes(decode_rows_model(levels[0].dtype, **head))
    with open_session(file, provider="cpu") as session:
        found = session.run({f"level_{i}": level for i, level in enumerate(levels)})["rows"]
    assert_decoded(found, levels, head)


@given(problem=heads())
@settings(max_examples=30)
def test_written_out_it_is_the_same(problem: tuple[list[Array], dict[str, Any]]) -> None:
    """In ONNX's own operators, which is how a file is verified where no library has the node."""
    levels, head = problem
    levels = [level.astype(np.float32) for level in levels]
    model = expand_decode_nodes(onnx.load_from_string(decode_rows_model(np.float32, **head)))
    assert not [node for node in model.graph.node if node.domain]
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {f"level_{i}": level for i, level in enumerate(levels)})
    assert_decoded(found, levels, head)


def test_the_extremes(library: CudaLibrary) -> None:
    """NaN stays NaN, so that NMS drops the row; the sigmoid of anything large is 0 or 1 to within rounding."""
    values = [0.0, -0.0, 1e-30, 87.5, 88.5, 200.0, 3e38, np.inf, -87.5, -104.0, -3e38, -np.inf, np.nan]
    level = np.zeros((1, 6, 1, len(values)), np.float32)
    level[0, 5, 0] = values
    found = library.decode([level], strides=[8], anchors=np.ones((1, 1, 2), np.float32), classes=1)[0, :, 5]
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-np.array(values)))
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-38)


def test_every_bit_is_the_same_in_onnx_runtime_and_on_a_gpu(
    library: CudaLibrary, operators: Path, tmp_path: Path
) -> None:
    """The exponential is written out in the header that both compile, and nothing is fused."""
    levels = raw_values(3, 2, [(20, 12), (10, 6)], 32, np.float32)
    file = tmp_path / "decode.onnx"
    file.write_bytes(decode_rows_model(np.float32, **HEAD))
    with open_session(file, provider="cpu") as session:
        found = session.run({"level_0": levels[0], "level_1": levels[1]})["rows"]
    np.testing.assert_array_equal(found, library.decode(levels, **HEAD))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_classes": 0}, "attribute num_classes must be at least 1, got 0"),
        ({"strides": [8, 0]}, "attribute strides must be at least 1, got 0"),
        ({"strides": [8] * 9}, r"attribute strides must have 1..8 entries, got 9"),
        (
            {"anchors": [1.0] * 7},
            r"attribute anchors must have two numbers for each of 1..8 anchors of 2 levels, got 7",
        ),
    ],
    ids=str,
)
def test_attributes_that_make_no_sense(operators: Path, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.onnx"
    file.write_bytes(with_attributes(decode_rows_model(np.float32, **HEAD), change))
    with pytest.raises(BackendError, match=f"DecodeRows: {said}"):
        open_session(file, provider="cpu")


def test_levels_of_another_width(operators: Path, tmp_path: Path) -> None:
    model = onnx.load_from_string(decode_rows_model(np.float32, **HEAD))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "any"
    file = tmp_path / "any.onnx"
    file.write_bytes(model.SerializeToString())
    wrong, right = np.zeros((1, 31, 2, 2), np.float32), np.zeros((1, 32, 2, 2), np.float32)
    with (
        open_session(file, provider="cpu") as session,
        pytest.raises(BackendError, match=r"input 0 must have 32 channels \(2 anchors of 16 columns\), got 31"),
    ):
        session.run({"level_0": wrong, "level_1": right})


@pytest.mark.parametrize("dynamic", ["none", "shape"])
def test_an_export_ends_in_both_nodes_and_finds_the_same_objects(operators: Path, tmp_path: Path, dynamic: Any) -> None:
    model = model_of("few", num_keypoints=3, objectness=3.0)
    reports = {
        mode: onnx_from_model(model, out=tmp_path / f"{mode}.onnx", img=64, dynamic=dynamic, nms=mode)
        for mode in ("none", "plugin")
    }
    parity = reports["plugin"].parity
    assert parity is not None
    assert parity.ok
    assert not parity.notes
    assert {m.what for m in parity.matchings} >= {"detections"}
    assert {d.values for d in parity.differences} == {"boxes", "scores", "keypoints", "visibility"}
    results = {}
    for mode, report in reports.items():
        with load(report.path) as predictor:
            results[mode] = predictor(sample_image())
    expected, found = results["none"], results["plugin"]
    assert len(expected) > 10
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-3)
