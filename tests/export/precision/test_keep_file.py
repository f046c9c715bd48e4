"""Layers that stay in higher precision: the file that keeps a choice, fp16 under int8, and a killed search of int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest
import torch

from deploykit.errors import UsageError
from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.parity.inputs import sample_image
from deploykit.export.precision import trials as module
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.precision.search.kept import KeepFile, KeptLayer, read_keep_file, write_keep_file
from tests.export.precision.test_half_search import Offset, export, model_of


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("images")
    image = cv2.imread(str(sample_image()))
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), image[100 * i : 100 * i + 100, 200 * i : 200 * i + 120])
    return Calibration(folder, method="minmax")


def test_a_choice_is_written_once_and_used_without_a_search(tmp_path: Path) -> None:
    file, model = tmp_path / "keep.json", model_of(Offset(300.0))
    first = export(tmp_path / "x.onnx", model, keep_file=file).precision
    assert first is not None
    assert {layer.layer for layer in first.kept} == {"up", "down"}
    written = file.read_bytes()
    assert json.loads(written)["precision"] == "fp16"
    again = export(tmp_path / "y.onnx", model, keep_file=file).precision
    assert again is not None
    assert again.search is None
    assert again.kept == first.kept
    assert (tmp_path / "x.onnx").read_bytes() == (tmp_path / "y.onnx").read_bytes()
    assert file.read_bytes() == written
    record = json.loads((tmp_path / "y.onnx.parity.json").read_text())
    assert [layer["layer"] for layer in record["kept"]] == [layer.layer for layer in first.kept]
    with pytest.raises(UsageError, match=r"has the layers to keep of fp16, and the export is in bf16"):
        export(tmp_path / "z.onnx", model, "bf16", keep_file=file)
    with pytest.raises(UsageError, match="has the layers to keep already: leave --keep out"):
        export(tmp_path / "z.onnx", model, keep_file=file, nodes_to_exclude=("up",))


def test_a_layer_that_the_network_lacks_is_named(tmp_path: Path) -> None:
    file, kept = tmp_path / "keep.json", KeptLayer("/up/Deconv", "up.deconv", "tolerance", 0.5, 12, 0.25)
    write_keep_file(file, KeepFile("another", "", "fp16", "fp32", (kept,)))
    with pytest.raises(UsageError, match=r"keeps 'up\.deconv' \(/up/Deconv\), and the network has no such layer"):
        export(tmp_path / "x.onnx", model_of(Offset(300.0)), keep_file=file)
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_round_trips_and_damage_is_said(tmp_path: Path) -> None:
    file = tmp_path / "keep.json"
    assert read_keep_file(file, "int8") is None
    kept = KeepFile(
        "net",
        "0" * 64,
        "int8",
        "fp16",
        (KeptLayer("a", "ä", "error", None, 0, 0.0), KeptLayer("b", "b", "asked", 0.125, 7, 1.0)),
    )
    write_keep_file(file, kept)
    assert read_keep_file(file, "int8") == kept
    whole = json.loads(file.read_text())
    damaged: list[Any] = [[], {}, {**whole, "format": 2}, {**whole, "layers": [{"node": 1}]}, {**whole, "model": None}]
    for text in (*map(json.dumps, damaged), "{", file.read_text()[:-20]):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"keep\.json"):
            read_keep_file(file, "int8")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"precision": "fp16", "keep_as": "fp16"},
            "--keep-as fp16 goes with --precision int8 and fp8, not with --preci",
        ),
        ({"precision": "int8", "keep_as": "fp16", "target": "cpu"}, "not with --target cpu"),
        ({"precision": "int8", "keep_as": "bf16"}, "layers are kept in fp32 or fp16, got 'bf16'"),
        ({"precision": "fp32", "keep_file": "x"}, "--keep-file goes with a precision other than fp32"),
    ],
)
def test_options_that_do_not_go_together(fields: dict[str, Any], said: str) -> None:
    images = Calibration("images") if fields["precision"] == "int8" else None
    with pytest.raises(UsageError, match=said):
        PrecisionOptions(calibration=images, **fields)


def test_layers_under_int8_may_be_fp16(tmp_path: Path, calibration: Calibration) -> None:
    model = model_of(Offset(3.0))
    reports = {
        kind: export(
            tmp_path / f"{kind}.onnx",
            model,
            "int8",
            calibration=calibration,
            nodes_to_exclude=("body.*", "last"),
            keep_as=kind,
        ).precision
        for kind in ("fp32", "fp16")
    }
    wide, half = reports["fp32"], reports["fp16"]
    assert wide is not None
    assert half is not None
    assert half.computes == {"int8": wide.computes["int8"], "fp16": wide.computes["fp32"]}
    assert set(precisions_of(tmp_path / "fp16.onnx")) == {"int8", "fp16"}
    for one, other in zip(wide.kept, half.kept, strict=True):
        assert one.size == 3 * other.size > 0  # 4 bytes or 2 in place of 1
    errors = [report.quantised.error for report in (wide, half) if report.quantised is not None]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    stored = {t.name: t.data_type for t in onnx.load(str(tmp_path / "fp16.onnx")).graph.initializer}
    assert stored["last.weight_fp16"] == onnx.TensorProto.FLOAT16


def test_what_fp16_does_not_hold_stays_fp32_under_int8(tmp_path: Path, calibration: Calibration) -> None:
    asked = {"nodes_to_exclude": ("up", "down", "last"), "keep_as": "fp16", "calibration": calibration}
    export(tmp_path / "x.onnx", model_of(Offset(30000.0)), "int8", **asked)
    found = precisions_of(tmp_path / "x.onnx")
    assert {name.strip("/").partition("/")[0] for name in found["fp32"]} == {"up", "down"}
    assert {name.strip("/").partition("/")[0] for name in found["fp16"]} == {"last"}


def test_a_search_of_int8_that_was_killed_goes_on(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = Offset(0.5, 8)
    with torch.no_grad():
        network.last.weight[:, 0] *= 30  # makes the steps of all other weights coarse
    model, errors, contributions = model_of(network), module.Trials._errors, module.contributions_of
    ranked, runs, killed = 0, 0, False

    def ranking(*arguments: Any) -> Any:
        nonlocal ranked
        ranked += 1
        return contributions(*arguments)

    def noted(self: Any, *arguments: Any) -> list[float]:
        nonlocal runs
        if ranked and not killed:
            raise KeyboardInterrupt
        runs += 1
        return errors(self, *arguments)

    monkeypatch.setattr(module.Trials, "_errors", noted)
    monkeypatch.setattr(module, "contributions_of", ranking)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "x.onnx", model, "int8", calibration=calibration, cache=True, folds="none")
    before, killed = (ranked, runs), True
    report = export(tmp_path / "x.onnx", model, "int8", calibration=calibration, cache=True, folds="none").precision
    assert report is not None
    assert report.kept
    assert {layer.why for layer in report.kept} == {"error"}
    assert ranked == before[0] > 0  # layers are not ranked again
    assert runs > before[1] > 0
    monkeypatch.undo()
    export(tmp_path / "y.onnx", model, "int8", calibration=calibration, folds="none")
    assert (tmp_path / "x.onnx").read_bytes() == (tmp_path / "y.onnx").read_bytes()
