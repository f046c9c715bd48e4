"""What an export says about the file it wrote."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deploykit.export.graph.interface import Constant
from deploykit.export.options import OnnxOptions
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.runtime.files import format_size
from tests.narrow import model_of


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    report = onnx_from_model(
        model_of("few", num_keypoints=3),
        out=tmp_path_factory.mktemp("report") / "m.onnx",
        img=64,
        options=OnnxOptions(exporter="legacy"),
    )
    return replace(report, checkpoint_size=12_345_678)  # which is known to whoever reads it


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456, "123.5 kB"), (321_100_000, "321.1 MB")],
)
def test_sizes_are_read_as_people_say_them(size: int, text: str) -> None:
    assert format_size(size) == text


def test_every_byte_of_the_file_is_accounted_for(report: ExportReport) -> None:
    assert report.size == report.path.stat().st_size
    constants = sum(c.size for c in report.constants)
    rest = report.size - report.weight_size - constants
    assert 0 < rest < 150_000
    assert 0.99 < report.weight_size / (4 * report.parameters) <= 1  # equal ones are stored once
    text = report.why_this_size()
    for part in (f"{report.parameters:,} weights in fp32", format_size(report.weight_size), format_size(constants)):
        assert part in text
    assert f"the graph itself {format_size(rest)}" in text
    assert text.endswith("the checkpoint has 12.3 MB")


def test_the_largest_constants_are_named(report: ExportReport) -> None:
    many = replace(report, constants=tuple(Constant(str(n), (n, 2), 8 * n) for n in (1, 500, 20, 125, 250, 200)))
    assert "the largest 500x2 4.0 kB, 250x2 2.0 kB, 200x2 1.6 kB;" in many.why_this_size()
    assert "largest" not in replace(report, constants=many.constants[:1]).why_this_size()


def test_the_report_is_json(report: ExportReport) -> None:
    found = json.loads(json.dumps(report.to_dict()))
    assert found["path"] == str(report.path)
    assert found["spec"]["input"]["size"] == [64, 64]
    assert found["parity"]["ok"] is True
    assert found["bytes_per_parameter"] == pytest.approx(report.size / report.parameters)
    assert set(found["seconds"]) == {"fusing", "tracing", "simplifying", "writing", "checking"}
    written = json.loads(report.path.with_name("m.onnx.parity.json").read_text())
    assert len(written.pop("sha256")) == 64  # of the file that stands beside it
    assert written.pop("size") == report.size
    assert written == found["parity"]


def test_without_a_check_the_report_has_no_parity(report: ExportReport) -> None:
    assert replace(report, parity=None).to_dict()["parity"] is None
