"""Layers that stay in higher precision until AP holds: the fewest steps of the ranking, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from deploykit.errors import AccuracyError, ParityError
from deploykit.export.options import AccuracyGate, Calibration, OnnxOptions, PrecisionOptions
from deploykit.export.precision.gate_search import STEPS, keep_for_accuracy
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load
from deploykit.models.registry import ReferenceModel
from tests.narrow import model_of


class Allowed:
    """A gate that holds from a number of further layers on; what is compared is the number of those in the file."""

    metric = "AP"

    def __init__(self, least: int) -> None:
        self.least, self.evaluated = least, 0

    def compared(self, file: Path) -> int:
        self.evaluated += 1
        return int(file.read_text())

    def holds(self, found: int) -> bool:
        return found >= self.least

    def check(self, found: int) -> float:
        if not self.holds(found):
            raise AccuracyError(f"AP falls with {found}")
        return 0.0


@pytest.mark.parametrize(("layers", "least"), [(5, 1), (5, 4), (100, 1), (100, 30), (100, 100), (16, 9)])
def test_the_fewest_steps_with_which_it_holds_are_kept(layers: int, least: int, tmp_path: Path) -> None:
    file, gated = tmp_path / "x", Allowed(least)
    ranked = [f"layer {i}" for i in range(layers)]
    further = SimpleNamespace(ranking=lambda: ranked, convert=lambda kept: (kept, tuple(kept)))

    def write(graph: Any) -> int:
        file.write_text(str(len(graph)))
        return len(graph)

    report, found, written = keep_for_accuracy(cast(Any, gated), file, cast(Any, further), write)
    unit = -(-layers // STEPS)
    expected = min(layers, -(-least // unit) * unit)
    assert (found, written, int(file.read_text())) == (expected, expected, expected)
    assert report == tuple(ranked[:expected])
    assert gated.evaluated <= 8


def test_what_does_not_help_is_refused_with_the_last_drop(tmp_path: Path) -> None:
    file, gated = tmp_path / "x", Allowed(9)
    further = SimpleNamespace(ranking=lambda: list("abc"), convert=lambda kept: (kept, kept))
    with pytest.raises(
        AccuracyError, match="keeping 3 further layers in higher precision does not help: AP falls with 3"
    ):
        keep_for_accuracy(cast(Any, gated), file, cast(Any, further), lambda graph: file.write_text(str(len(graph))))
    further.ranking, further.convert = (lambda: list("ab")), beyond
    with pytest.raises(AccuracyError, match=r"keeping 2 further layers .* they are beyond the tolerance"):
        keep_for_accuracy(cast(Any, gated), file, cast(Any, further), lambda graph: None)
    further.ranking = list
    with pytest.raises(AccuracyError, match=r"keeping 0 further layers .* there are none"):
        keep_for_accuracy(cast(Any, gated), file, cast(Any, further), lambda graph: None)


def beyond(kept: Any) -> Any:
    raise ParityError(f"{kept} is beyond")


def export(out: Path, precision: PrecisionOptions, model: ReferenceModel, gate: AccuracyGate | None) -> ExportReport:
    asked = OnnxOptions(exporter="legacy", gate=gate)
    return onnx_from_model(model, out=out, img=64, precision=precision, options=asked)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [("int8", 0.5), ("bf16", 0.95)])
def test_further_layers_stay_until_ap_holds(kind: Any, share: float, images: Path, tmp_path: Path) -> None:
    """The gate allows a share of what the precision costs at first; bf16 costs a little everywhere."""
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    model = model_of("few", objectness=3.0)
    if kind == "int8":
        with torch.no_grad():  # coarse weights of the heads, which cost AP
            for name, weight in model.module.named_parameters():
                if name.startswith("model.11.m.") and name.endswith("weight"):
                    weight[:, 0] *= 20
    base = export(tmp_path / "fp32.onnx", PrecisionOptions(), model, None)
    annotations = annotated(base.path, images, model, tmp_path)
    calibration = Calibration(images, method="minmax") if kind == "int8" else None
    options = PrecisionOptions(kind, calibration=calibration, cache=False)
    free = export(tmp_path / "free.onnx", options, model, AccuracyGate(100.0, annotations, images, bootstrap=20))
    assert free.accuracy is not None
    assert free.precision is not None
    drop = -100 * free.accuracy.difference["AP"]
    assert drop > 0
    gate = AccuracyGate(share * drop, annotations, images, bootstrap=20)
    with pytest.raises(AccuracyError, match="nothing was kept"):
        export(tmp_path / "x.onnx", replace(options, nodes_to_exclude="none"), model, gate)
    report = export(tmp_path / "x.onnx", options, model, gate)
    assert report.accuracy is not None
    assert -100 * report.accuracy.difference["AP"] <= share * drop
    assert report.precision is not None
    before, after = ({row.node for row in each.precision.kept} for each in (free, report) if each.precision)
    assert before < after
    assert {row.why for row in report.precision.kept if row.node not in before} == {"accuracy"}
    assert report.parity is not None
    assert report.precision.computes["fp32"] > free.precision.computes.get("fp32", 0)
    assert report.size > free.size
    assert report.weight_size > free.weight_size


def annotated(file: Path, images: Path, model: ReferenceModel, folder: Path) -> Path:
    """Annotations of what the fp32 network finds itself."""
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(model.spec.classes)]
    with load(file, conf=0.3) as predictor:
        for number, image in enumerate(sorted(images.iterdir()), start=1):
            result = predictor(image)
            height, width = result.size
            coco["images"].append({"id": number, "file_name": image.name, "height": height, "width": width})
            for box, label in zip(result.boxes.tolist(), result.labels.tolist(), strict=True):
                sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                entry = {"image_id": number, "category_id": label + 1, "bbox": sides, "area": float(np.prod(sides[2:]))}
                coco["annotations"].append({**entry, "id": len(coco["annotations"]) + 1, "iscrowd": 0})
    assert len(coco["annotations"]) > 10
    (folder / "a.json").write_text(json.dumps(coco))
    return folder / "a.json"
