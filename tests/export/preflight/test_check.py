"""The verdicts of a preflight: loaded and built here where that is possible, else by the list."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from deploykit.cli import main
from deploykit.errors import BackendError, NotFoundError, UsageError
from deploykit.export.preflight import check
from deploykit.export.preflight.check import preflight
from deploykit.export.preflight.report import PreflightReport, Verdict
from deploykit.export.preflight.trial import shortened
from tests.cell_model import cell_spec, write_cell_model
from tests.export.preflight.graphs import node, write_graph

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
BY_LIST = ("tensorrt-10", "tensorrt-11")


def verdict(report: PreflightReport, target: str) -> Verdict:
    return next(verdict for verdict in report.verdicts if verdict.target == target)


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "relu.onnx", [node("Relu", "x")])


@pytest.fixture
def nms(tmp_path: Path) -> Path:
    inputs = [("b", TensorProto.FLOAT, [1, 9, 4]), ("s", TensorProto.FLOAT, [1, 2, 9])]
    return write_graph(
        tmp_path / "nms.onnx", [node("NonMaxSuppression", "b s")], inputs=inputs, output=("y", TensorProto.INT64, None)
    )


def test_a_plain_graph_is_loaded_here_and_expected_elsewhere(relu: Path) -> None:
    report = preflight(relu, targets=("onnxruntime", *BY_LIST))
    assert report.ok
    assert (report.opset, report.nodes, report.findings) == (18, 1, ())
    loaded = verdict(report, "onnxruntime")
    assert (loaded.says, loaded.by) == ("loaded here", f"ONNX Runtime {onnxruntime.__version__}")
    assert loaded.why == "by its opset and IR version ONNX Runtime 1.15 and newer load it"
    assert {verdict(report, target).says for target in BY_LIST} == {"expected (table)"}


@needs_rtx
def test_the_flavour_for_rtx_builds_it(relu: Path) -> None:
    (only,) = preflight(relu, targets=("tensorrt-rtx",)).verdicts
    assert only.says == "built here"
    assert only.by.startswith("TensorRT for RTX 1.")


@needs_rtx
def test_nms_is_refused_by_the_builder_at_its_node(nms: Path) -> None:
    report = preflight(nms)
    assert not report.ok
    assert [v.says for v in report.verdicts] == ["loaded here", "expected (table)", "expected (table)", "refused"]
    (stop,) = [f for f in report.findings if f.level == "refused"]
    assert (stop.op, stop.node, stop.targets) == ("NonMaxSuppression", "the_NonMaxSuppression", ("tensorrt-rtx",))
    assert "no runners that implement it" in stop.why
    assert "tacticSupply.cpp" not in stop.why
    assert "--nms basic" in stop.do


@needs_rtx
def test_what_the_list_does_not_mention_is_known_once_it_was_built(tmp_path: Path) -> None:
    zero = {"s": np.float32(0.1), "z": np.uint8(0)}
    file = write_graph(
        tmp_path / "m.onnx", [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")], stored=zero
    )
    alone = preflight(file, targets=("tensorrt-10",))
    assert verdict(alone, "tensorrt-10").says == "in doubt (table)"
    assert alone.ok  # nothing refuses it
    together = preflight(file, targets=("tensorrt-10", "tensorrt-rtx"))
    assert [v.says for v in together.verdicts] == ["expected (table)", "built here"]
    assert all("shares the parser, took it" in f.why for f in together.findings)


@needs_rtx
def test_a_dynamic_shape_is_built_with_the_shapes_of_the_spec(tmp_path: Path) -> None:
    file = write_cell_model(tmp_path / "cells.onnx", batch="n", spec=cell_spec(dynamic=True))
    (only,) = preflight(file, targets=("tensorrt-rtx",)).verdicts
    assert only.says == "built here"
    assert "1x3x64x64" in only.why
    assert "8x3x64x64" in only.why


def test_without_the_flavour_its_verdict_is_that_of_the_list(nms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    (only,) = preflight(nms, targets=("tensorrt-rtx",)).verdicts
    assert (only.says, only.by) == ("refused", "list of TensorRT 10.15")
    assert only.why.startswith("NonMaxSuppression 'the_NonMaxSuppression': it has no implementation of it")


def fake_builder(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the place of TensorRT for RTX, for the process of the build."""
    (folder / "fake").mkdir()
    (folder / "fake" / "tensorrt_rtx.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(folder / "fake"))
    monkeypatch.setattr(check, "find_spec", lambda name: object())


def test_a_builder_that_ends_its_process_refuses_the_file(
    relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "import os, sys\nprint('terminate called', file=sys.stderr, flush=True)\nos.abort()\n"
    fake_builder(tmp_path, body, monkeypatch)
    report = preflight(relu, targets=("tensorrt-rtx",))
    assert verdict(report, "tensorrt-rtx").says == "refused"
    assert "ended its process (SIGABRT): " in report.findings[0].why


def test_a_builder_that_hangs_leaves_the_verdict_to_the_list(
    relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_builder(tmp_path, "import time\ntime.sleep(60)\n", monkeypatch)
    (only,) = preflight(relu, targets=("tensorrt-rtx",), seconds=3).verdicts
    assert only.says == "expected (table)"
    assert "not built: the build took longer than 3 s" in only.why


def test_a_flavour_that_cannot_be_imported_leaves_the_verdict_to_the_list(
    relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_builder(tmp_path, "raise ImportError('libcudart.so.13: cannot open shared object file')\n", monkeypatch)
    (only,) = preflight(relu, targets=("tensorrt-rtx",)).verdicts
    assert only.says == "expected (table)"
    assert "libcudart.so.13" in only.why


def test_onnx_runtime_refuses_what_it_does_not_load(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "m.onnx", [node("FusedThing", "x", domain="made.up")], domains=["made.up"])
    report = preflight(file, targets=("onnxruntime", "tensorrt-10"))
    assert [v.says for v in report.verdicts] == ["refused", "unknown operator"]
    assert not report.ok
    assert any(f.targets == ("onnxruntime",) and f.op == "FusedThing" for f in report.findings)


def test_missing_weights_stop_every_runtime_and_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_cell_model(tmp_path / "m.onnx", spec=cell_spec(), external=True)
    (tmp_path / "m.onnx.data").unlink()
    monkeypatch.setattr(check, "loaded_here", None)
    monkeypatch.setattr(check, "built_here", None)
    report = preflight(file)
    assert {v.says for v in report.verdicts} == {"refused"}
    assert all("m.onnx.data, which is missing" in v.why for v in report.verdicts)


def test_arguments_that_make_no_sense(relu: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be one of onnxruntime, .*'tensorrt-9'"):
        preflight(relu, targets=("tensorrt-9",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="time limit over 0"):
        preflight(relu, seconds=0)
    with pytest.raises(NotFoundError):
        preflight(tmp_path / "none.onnx")


def test_messages_lose_their_source_positions() -> None:
    long = (
        "TensorRT built no engine: [tacticSupply.cpp::getSupportedFormats::48] Error Code 2: Internal Error (Assertion "
        "!layerImpls.empty() failed. nms has no runners that implement it In getSupportedFormats at "
        "/_src/optimizer/builder/tacticSupply.cpp:48)"
    )
    assert shortened(long) == (
        "TensorRT built no engine: Error Code 2: Internal Error (nms has no runners that implement it)"
    )


def test_the_command_prints_verdicts_and_what_stops_them(
    nms: Path, relu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert main(["preflight", str(nms)]) == BackendError.exit_code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["runtime", "verdict", "by"]
    assert any(line.startswith("TensorRT for RTX    refused") for line in lines)
    (stop,) = [line for line in lines if line.startswith("stops")]
    assert "NonMaxSuppression 'the_NonMaxSuppression'" in stop
    assert main(["preflight", str(nms), "--target", "tensorrt-10", "--target", "onnxruntime"]) == 0
    assert "TensorRT for RTX" not in capsys.readouterr().out
    assert main(["preflight", str(relu), "--json"]) == 0
    import json

    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert [v["takes"] for v in told["verdicts"]] == [True] * 4
