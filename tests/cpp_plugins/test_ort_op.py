"""The operator NmsKpt in ONNX Runtime, through the session that users get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deploykit.errors import BackendError
from deploykit.export.plugins_check import check_libraries, expected_outputs, nms_kpt_model
from deploykit.runtime.native.library import FOLDER
from deploykit.runtime.session import open_session
from deploykit.spec import RawDetections, Thresholds
from tests.cpp_plugins.conftest import symbols, with_attributes
from tests.nms_corpus import Case, corpus

POSE = RawDetections(cls=(5, 6), keypoints=(6, 57))


def packed(layout: RawDetections) -> bool:
    """Whether rows lie as the node wants them."""
    first = 4 if layout.obj is None else 5
    return layout.box == (0, 4) and layout.obj in (None, (4, 5)) and layout.cls[0] == first


@pytest.mark.parametrize("case", [c for c in corpus() if packed(c.layout)], ids=lambda c: c.name)
def test_the_corpus(operators: Path, case: Case, tmp_path: Path) -> None:
    width = case.layout.keypoints[1] - case.layout.keypoints[0] if case.layout.keypoints else 0
    points = width // case.layout.kpt_dims
    file = tmp_path / "nms.onnx"
    file.write_bytes(nms_kpt_model(np.float32, case.layout, case.thresholds, points))
    with open_session(file, provider="cpu") as session:
        found = session.run({"rows": case.rows[None]})
    expected = expected_outputs(case.rows[None], case.layout, case.thresholds, points)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dims", [2, 3])
def test_batches_of_keypoints(operators: Path, dtype: type, dims: int, tmp_path: Path) -> None:
    layout = RawDetections(cls=(5, 8), keypoints=(8, 8 + 4 * dims), kpt_dims=dims)
    thresholds = Thresholds(conf=0.3, iou=0.4, max_det=30, pre_nms_topk=100)
    file = tmp_path / "nms.onnx"
    file.write_bytes(nms_kpt_model(dtype, layout, thresholds, 4))
    rows = np.random.default_rng(0).random((3, 500, layout.columns), np.float32)
    rows[..., :4] *= (200, 200, 50, 50)
    with open_session(file, provider="cpu") as session:
        assert [info.name for info in session.outputs][4] == "keypoints"
        for count in (500, 0, 7):  # memory is kept from run to run
            given = rows[:, :count].astype(dtype)
            found = session.run({"rows": given})
            for name, values in expected_outputs(given, layout, thresholds, 4).items():
                np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_its_outputs_may_feed_other_nodes(operators: Path, tmp_path: Path) -> None:
    """Of those after the labels the file declares the types, because ONNX Runtime does not ask the operator."""
    model = onnx.load_from_string(nms_kpt_model(np.float32, POSE, Thresholds(), 17))
    graph = model.graph
    graph.node.append(onnx.helper.make_node("Identity", ["keypoints"], ["same"]))
    graph.node.append(onnx.helper.make_node("Neg", ["num_candidates"], ["less"]))
    kinds = [("same", onnx.TensorProto.FLOAT, ["b", 300, 17, 3]), ("less", onnx.TensorProto.INT32, ["b", 1])]
    graph.value_info.extend(output for output in graph.output if output.name in ("keypoints", "num_candidates"))
    graph.node.append(onnx.helper.make_node("Neg", ["boxes"], ["mirrored"]))
    kinds.append(("mirrored", onnx.TensorProto.FLOAT, ["b", 300, 4]))
    del graph.output[:]
    graph.output.extend(onnx.helper.make_tensor_value_info(*kind) for kind in kinds)
    file = tmp_path / "more.onnx"
    file.write_bytes(model.SerializeToString())
    rows = np.full((1, 1, 57), 0.9, np.float32)
    with open_session(file, provider="cpu") as session:
        found = session.run({"rows": rows})
    assert found["less"].tolist() == [[-1]]
    assert found["same"].shape == (1, 300, 17, 3)
    assert found["mirrored"].shape == (1, 300, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iou": 2.0}, "attribute iou must be in 0..1, got 2"),
        ({"pre_nms_topk": 4000}, r"attribute pre_nms_topk must be in 1..3840, got 4000"),
        ({"kpt_dims": 1}, "attribute kpt_dims must be 2 or 3, got 1"),
        ({"max_det": 0}, "attribute max_det must be at least 1, got 0"),
        ({"cls_counts": 2}, "attribute cls_counts must be 0 or 1, got 2"),
        (
            {"cls_counts": 0, "has_obj": 0},
            "attribute cls_counts must be 1 unless has_obj is 1 and num_classes is 1, got 0",
        ),
    ],
    ids=str,
)
def test_attributes_that_make_no_sense(operators: Path, change: dict[str, float], said: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.onnx"
    file.write_bytes(with_attributes(nms_kpt_model(np.float32, POSE, Thresholds(), 17), change))
    with pytest.raises(BackendError, match=f"NmsKpt: {said}"):
        open_session(file, provider="cpu")


def test_rows_of_another_width(operators: Path, tmp_path: Path) -> None:
    model = onnx.load_from_string(nms_kpt_model(np.float32, POSE, Thresholds(), 17))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    file = tmp_path / "any.onnx"
    file.write_bytes(model.SerializeToString())
    with (
        open_session(file, provider="cpu") as session,
        pytest.raises(BackendError, match=r"input rows must have 57 columns .*, got 56"),
    ):
        session.run({"rows": np.zeros((1, 2, 56), np.float32)})


def test_only_what_is_meant_to_be_seen_is_exported(operators: Path) -> None:
    assert symbols(operators / "libdeploykit_onnxruntime.so", "--defined-only") == {
        "deploykit_abi", "deploykit_built_with", "RegisterCustomOps",
    }  # fmt: skip
    assert "warning" not in (operators / "build.log").read_text()


def test_the_check_of_the_command_line_compares_it(operators: Path) -> None:
    found = {check.library: check for check in check_libraries()}
    assert found["onnxruntime"].ok, found["onnxruntime"].says


def test_without_the_library_the_error_says_what_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    file = tmp_path / "nms.onnx"
    file.write_bytes(nms_kpt_model(np.float32, POSE, Thresholds(), 17))
    with pytest.raises(BackendError, match=r"deploykit's operators .NmsKpt, DecodeRows., .* deploykit plugins build"):
        open_session(file)


def test_a_library_that_onnx_runtime_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libdeploykit_onnxruntime.so").write_bytes(b"nothing")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    file = tmp_path / "nms.onnx"
    file.write_bytes(nms_kpt_model(np.float32, POSE, Thresholds(), 17))
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot load .*deploykit_onnxruntime"):
        open_session(file)
