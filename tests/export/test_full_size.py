"""The model that the project is for, at its full width and size: what a narrow twin cannot show."""

from __future__ import annotations

import onnx
import pytest

from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx
from deploykit.models._random import create_checkpoint


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    folder = tmp_path_factory.mktemp("full")
    weights = create_checkpoint("yolov7-w6-pose", folder / "yolov7-w6-pose.pt")
    return export_onnx(weights, img=960, check=False)


def test_the_file_is_as_large_as_its_weights(report: ExportReport) -> None:
    assert report.parameters == 80_175_724
    constants = sum(c.size for c in report.constants)
    assert report.size <= 1.01 * 4 * report.parameters + constants + 150_000
    assert constants < 500_000
    assert 4.0 <= report.bytes_per_parameter < 4.05


def test_the_graph_is_short(report: ExportReport) -> None:
    graph = onnx.load(str(report.path)).graph
    assert report.nodes == len(graph.node) <= 560
    assert not {node.op_type for node in graph.node} & {"Shape", "Cast", "Range", "ScatterND", "BatchNormalization"}


def test_rows_and_columns_are_upstreams(report: ExportReport) -> None:
    assert [str(t) for t in (*report.inputs, *report.outputs)] == [
        "images float32 (1, 3, 960, 960)",
        "output float32 (1, 57375, 57)",
    ]
