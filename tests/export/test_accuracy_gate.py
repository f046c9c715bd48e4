"""``--max-drop`` of networks that find no objects: top-1 of classifiers and mIoU of segmentation networks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import deploykit
from deploykit.cli import main
from deploykit.errors import AccuracyError, DataError, NotFoundError, UsageError
from deploykit.export import accuracy_gate, to_onnx
from deploykit.export.options import AccuracyGate, OnnxOptions, PrecisionOptions
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.registry import ReferenceModel
from tests.narrow_dense import narrow_dense

METRICS = {"yolov5n-cls": "top1", "unet": "mIoU"}


def export(out: Path, model: ReferenceModel, kind: Any = "fp32", gate: AccuracyGate | None = None) -> ExportReport:
    options = OnnxOptions(exporter="legacy", gate=gate)
    return onnx_from_model(model, out=out, img=64, precision=PrecisionOptions(kind), options=options)


def other_classes(model: ReferenceModel) -> ReferenceModel:
    """The same network with the scores of its classes in another order."""
    module = deepcopy(model.module)
    last = [m for m in module.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, 0))
        if last.bias is not None:
            last.bias.copy_(last.bias.roll(1, 0))
    return replace(model, module=module)


def truth_of(file: Path, images: list[Any], folder: Path) -> dict[str, Path]:
    """Write images, and as their truth what a network finds; return the fields of a gate."""
    (folder / "images").mkdir(parents=True)
    with deploykit.load(file) as predictor:
        for number, image in enumerate(images):
            labels = predictor(image).labels
            if predictor.spec.task == "classify":
                place = folder / "classes" / str(labels[0])
                place.mkdir(parents=True, exist_ok=True)
            else:
                place = folder / "images"
                (folder / "maps").mkdir(exist_ok=True)
                cv2.imwrite(str(folder / "maps" / f"{number}.png"), labels)
            cv2.imwrite(str(place / f"{number}.png"), image)
    if (folder / "classes").exists():
        return {"data": folder / "classes"}
    return {"data": folder / "maps", "images": folder / "images"}


@pytest.mark.parametrize("name", METRICS)
def test_the_gate_holds_the_metric_of_the_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    model, metric = narrow_dense(name), METRICS[name]
    images = [np.random.default_rng(seed).integers(0, 256, (80, 96, 3), np.uint8) for seed in range(3)]
    base = export(tmp_path / "fp32.onnx", model)
    gate = AccuracyGate(5.0, **truth_of(base.path, images, tmp_path / "data"))

    report = export(tmp_path / "fp16.onnx", model, "fp16", gate)
    assert report.accuracy is not None
    assert report.accuracy.reference.metrics[metric] == 1.0
    assert abs(report.accuracy.difference[metric]) <= 0.05
    assert report.to_dict()["accuracy"]["difference"][metric] == report.accuracy.difference[metric]

    words = [
        str(word) for name in ("data", "images") if (place := getattr(gate, name)) for word in (f"--{name}", place)
    ]
    half = str(tmp_path / "half.onnx")
    assert main(["quantize", str(base.path), "--fp16", "--out", half, "--max-drop", "5", *words]) == 0
    printed = capsys.readouterr().out
    assert "points are hundredths; against the source" in printed
    assert metric in printed

    wrong = export(tmp_path / "wrong.onnx", other_classes(model)).path
    opened = accuracy_gate.open_session
    monkeypatch.setattr(accuracy_gate, "open_session", lambda file, **options: opened(wrong, **options))
    with pytest.raises(AccuracyError, match=rf"{metric} falls from 100\.00 to .* points; 5 are allowed \(--max-drop\)"):
        export(tmp_path / "x.onnx", model, gate=gate)
    assert not (tmp_path / "x.onnx").exists()


def test_what_cannot_be_measured_is_found_out_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    monkeypatch.setattr(to_onnx, "export_to_ir", lambda *_: pytest.fail("it was found out too late"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"--max-drop holds AP, top-1 or mIoU, and this model's task is restore"):
        export(tmp_path / "x.onnx", narrow_dense("nafnet-w32-gopro"), gate=AccuracyGate(1.0, tmp_path))
    with pytest.raises(NotFoundError):
        export(tmp_path / "x.onnx", narrow_dense("yolov5n-cls"), gate=AccuracyGate(1.0, tmp_path / "none"))
    with pytest.raises(DataError, match="one folder of images per class"):
        export(tmp_path / "x.onnx", narrow_dense("yolov5n-cls"), gate=AccuracyGate(1.0, tmp_path / "empty"))
    with pytest.raises(UsageError, match="needs --images"):
        export(tmp_path / "x.onnx", narrow_dense("unet"), gate=AccuracyGate(1.0, tmp_path / "empty"))
