"""The model that the project is for, at its full size, and where there is time in its full width."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from deploykit.export.engine.build import build_engine
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx, onnx_from_model
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import build_log_path
from tests.narrow import model_of

rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
no_gpu = pytest.mark.skipif(gpu_unavailable_reason() is None, reason="on a GPU tests/gpu builds engines and runs them")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    folder = tmp_path_factory.mktemp("full")
    weights = create_checkpoint("yolov7-w6-pose", folder / "yolov7-w6-pose.pt")
    return export_onnx(weights, img=960, check=False)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The same graph with fewer channels."""
    model = model_of("yolov7_w6_pose", num_keypoints=17, num_classes=1)
    return onnx_from_model(model, out=tmp_path_factory.mktemp("narrow") / "m.onnx", img=960, check=False)


@pytest.fixture(scope="module", params=["narrow", pytest.param("full", marks=pytest.mark.slow)])
def report(request: pytest.FixtureRequest) -> ExportReport:
    found: ExportReport = request.getfixturevalue(request.param)
    return found


@pytest.mark.slow
def test_the_file_is_as_large_as_its_weights(full: ExportReport) -> None:
    assert full.parameters == 80_175_724
    constants = sum(c.size for c in full.constants)
    assert full.size <= 1.01 * 4 * full.parameters + constants + 150_000
    assert constants < 500_000
    assert 4.0 <= full.bytes_per_parameter < 4.05


def test_the_graph_is_short(report: ExportReport) -> None:
    graph = onnx.load(str(report.path)).graph
    assert report.nodes == len(graph.node) <= 560
    assert not {node.op_type for node in graph.node} & {"Shape", "Cast", "Range", "ScatterND", "BatchNormalization"}


def test_rows_and_columns_are_upstreams(report: ExportReport) -> None:
    assert [str(t) for t in (*report.inputs, *report.outputs)] == [
        "images float32 (1, 3, 960, 960)",
        "output float32 (1, 57375, 57)",
    ]


@rtx
@no_gpu
@pytest.mark.slow
def test_the_full_pose_model_becomes_an_engine(full: ExportReport) -> None:
    engine = build_engine(full.path, flavour="tensorrt-rtx", check=False)
    assert engine.record.precision == {"fp32": 155}
    assert engine.record.spec == full.spec
    # Its weights are in it, once and in full precision.
    assert full.weight_size < engine.record.size < 1.05 * full.weight_size
    assert "Engine generation completed" in build_log_path(engine.path).read_text()


@rtx
@no_gpu
@pytest.mark.slow
def test_the_full_base_model_becomes_an_engine(tmp_path: Path) -> None:
    weights = create_checkpoint("yolov7", tmp_path / "yolov7.pt")
    report = export_onnx(weights, img=640, dynamic="batch", check=False)
    engine = build_engine(report.path, flavour="tensorrt-rtx", check=False)
    assert [(t.name, t.shape) for t in report.outputs] == [("output", ("batch", 25200, 85))]
    assert report.weight_size < engine.record.size < 1.05 * report.weight_size
    assert engine.record.profiles[0].max == (8, 3, 640, 640)
