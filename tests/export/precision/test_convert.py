"""Exports in fp16, bf16, int8 and fp8: converted from a verified fp32 graph, checked, read back, gated by accuracy."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from deploykit.cli import main
from deploykit.errors import AccuracyError, BackendError, ExportError, NotFoundError, ParityError, UsageError
from deploykit.export import to_onnx
from deploykit.export.engine.build import build_engine
from deploykit.export.options import AccuracyGate, Calibration, EngineOptions, OnnxOptions, PrecisionOptions
from deploykit.export.parity.compare import compare
from deploykit.export.parity.tolerances import FP16, REPORT_ONLY
from deploykit.export.precision import convert as module
from deploykit.export.precision import convert_half as to_half_module
from deploykit.export.precision.half import HalfReport
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load, open_session
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.backends.trt.bindings import installed
from deploykit.runtime.parity.differences import row_differences
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import METADATA_KEY, ModelSpec, RawDetections
from tests.free_networks import free_network
from tests.narrow import model_of

KEEP_NONE: dict[str, Any] = {"nodes_to_exclude": "none", "cache": False}
slow = pytest.mark.slow
engines = pytest.mark.skipif("tensorrt-rtx" not in installed(), reason="TensorRT for RTX is not installed")


def few() -> ReferenceModel:
    return model_of("few", num_keypoints=3, objectness=3.0)


def export(out: Path, precision: PrecisionOptions, model: ReferenceModel | None = None, **options: Any) -> ExportReport:
    legacy = "nms" not in options and precision.precision != "bf16"  # it is quicker, and writes other graphs
    check = options.pop("check", True)
    asked = OnnxOptions(**{"exporter": "legacy" if legacy else "dynamo", **options})
    return onnx_from_model(model or few(), out=out, img=64, precision=precision, check=check, options=asked)


def spec_in(file: Path) -> ModelSpec:
    texts = {p.key: p.value for p in onnx.load(str(file)).metadata_props}
    return ModelSpec.from_json(texts[METADATA_KEY])


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportReport]:
    folder = tmp_path_factory.mktemp("halves")
    return {kind: export(folder / f"{kind}.onnx", PrecisionOptions(kind)) for kind in ("fp32", "fp16", "bf16")}  # type: ignore[arg-type]  # literals of this tuple


@pytest.mark.parametrize(("kind", "opset"), [("fp16", 18), ("bf16", 22)])
def test_half_is_half_as_large_verified_and_says_what_it_is(
    halves: dict[str, ExportReport], kind: str, opset: int
) -> None:
    full, half = halves["fp32"], halves[kind]
    assert half.weight_size == full.weight_size // 2
    assert half.size <= 1.01 * 2 * half.parameters + sum(c.size for c in half.constants) + 150_000
    assert half.opset == opset
    assert spec_in(half.path).precision == kind
    assert half.precision is not None
    assert half.precision.computes == {kind: len(precisions_of(half.path)[kind])}
    assert half.precision.base is not None
    assert half.precision.base.ok
    assert half.precision.base.tolerance == Tolerance()
    assert half.parity is not None
    assert half.parity.ok
    candidates = {d.candidate for d in half.parity.differences}
    assert candidates == ({"fp16.onnx", "fp16 in torch"} if kind == "fp16" else {"bf16 in torch"})
    assert {i.dtype for i in (*half.inputs, *half.outputs)} == {"float32"}
    assert sorted(p.name for p in half.path.parent.glob(f"{kind}*")) == [f"{kind}.onnx", f"{kind}.onnx.parity.json"]


def test_what_runs_where_is_told(halves: dict[str, ExportReport]) -> None:
    parity = halves["bf16"].parity
    assert parity is not None
    assert any("ONNX Runtime's CPU provider does not run bf16 convolutions" in note for note in parity.notes)
    assert halves["bf16"].notes[-1] == "opset 22 is used instead of 18: bf16 needs at least that"
    with pytest.raises(BackendError, match=r"Conv.*; bf16 and fp8 need a GPU"):
        open_session(halves["bf16"].path)
    with open_session(halves["bf16"].path, backend="torch") as session:
        assert session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})["output"].dtype == np.float32


def test_a_report_is_json(halves: dict[str, ExportReport]) -> None:
    written = json.loads(json.dumps(halves["fp16"].to_dict(), default=str))
    assert written["precision"]["precision"] == "fp16"
    assert written["precision"]["half"]["kept"]["decode"]
    assert written["precision"]["base"]["ok"] is True


@pytest.mark.slow
def test_w6_pose_has_few_casts(tmp_path: Path) -> None:
    model = model_of("yolov7_w6_pose", num_keypoints=17, num_classes=1)
    precision = PrecisionOptions("fp16")
    report = onnx_from_model(model, out=tmp_path / "x.onnx", img=64, precision=precision, check=False)
    assert report.precision is not None
    assert report.precision.half is not None
    assert report.precision.half.casts <= 30
    assert report.parity is None
    assert report.precision.base is None


@pytest.mark.parametrize("nms", ["graph", "plugin"])
def test_a_network_with_nms_is_traced_once_and_its_rows_are_dropped(
    nms: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[tuple[str, ...]] = []
    trace = to_onnx.export_to_ir

    def noted(*arguments: Any) -> Any:
        traced.append(tuple(arguments[5]))
        return trace(*arguments)

    monkeypatch.setattr(to_onnx, "export_to_ir", noted)
    report = export(tmp_path / "x.onnx", PrecisionOptions("fp16"), nms=nms, check=False)
    candidates = {"graph": ("boxes", "scores", "labels", "all_scores", "keypoints"), "plugin": ("level_0", "level_1")}
    assert len(traced) == 1
    assert traced[0][: 1 + len(candidates[nms])] == ("output", *candidates[nms])
    nodes = onnx.load(str(report.path)).graph.node
    assert report.precision is not None
    assert report.precision.half is not None
    assert report.precision.half.casts == sum(node.op_type == "Cast" for node in nodes if "nms_" not in node.name)
    names = {node.name for node in nodes}
    assert names >= {name for kept in report.precision.half.kept.values() for name in kept}
    assert ("DecodeRows" in {node.op_type for node in nodes}) == (nms == "plugin")


@pytest.mark.slow
@pytest.mark.parametrize("nms", ["graph", "basic", "plugin"])
def test_nms_is_behind_half_precision(tmp_path: Path, nms: Any) -> None:
    report = export(tmp_path / "x.onnx", PrecisionOptions("fp16"), nms=nms)
    assert report.parity is not None
    assert report.parity.ok
    assert report.parity.tolerance == FP16
    assert {m.what for m in report.parity.matchings} >= {"detections"}


def test_inputs_and_outputs_may_be_half(halves: dict[str, ExportReport], tmp_path: Path) -> None:
    report = export(tmp_path / "x.onnx", PrecisionOptions("fp16", half_io="both"))
    assert {i.dtype for i in (*report.inputs, *report.outputs)} == {"float16"}
    assert report.parity is not None
    assert report.parity.ok
    image = np.full((64, 64, 3), 90, np.uint8)
    with load(report.path) as half, load(halves["fp16"].path) as other:
        found, expected = half(image), other(image)
    assert abs(len(found) - len(expected)) < 0.05 * len(expected)
    np.testing.assert_allclose(found.scores[:20], expected.scores[:20], atol=2e-3)


def test_any_batch_and_shape_may_be_half(tmp_path: Path) -> None:
    report = export(tmp_path / "x.onnx", PrecisionOptions("fp16"), dynamic="shape")
    assert report.parity is not None
    assert report.parity.ok
    assert any(d.input.startswith("3 slots") for d in report.parity.differences)


def loud() -> ReferenceModel:
    """A network whose first activation is beyond fp16, and whose next weights are as small."""
    model = replace(few(), module=copy.deepcopy(few().module))
    layers = model.module.model
    assert isinstance(layers, nn.Sequential)
    norm = next(m for m in layers[1].modules() if isinstance(m, nn.BatchNorm2d))
    norm.weight.data *= 1e5
    norm.bias.data *= 1e5
    for layer in layers[2].modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == norm.num_features:
            layer.weight.data /= 1e5
    return model


def test_a_network_that_overflows_keeps_what_has_not_the_range(tmp_path: Path) -> None:
    report = export(tmp_path / "x.onnx", PrecisionOptions("fp16"), loud())
    assert report.precision is not None
    assert report.precision.half is not None
    assert report.precision.half.kept["range"]
    assert report.precision.half.largest[0] <= 65504 / 4
    assert report.parity is not None
    assert report.parity.ok


def test_a_conversion_that_changes_the_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Any, *args: Any, **options: Any) -> HalfReport:
        report = module_to_half(graph, *args, **options)
        for name, value in graph.graph.initializers.items():
            if name.endswith(".weight_fp16"):
                value.const_value.numpy()[:] = 0
        return report

    module_to_half = to_half_module.to_half
    monkeypatch.setattr(to_half_module, "to_half", wrong)
    (tmp_path / "x.onnx").write_bytes(b"an older file")
    with pytest.raises(ParityError, match="fp16 in torch"):
        export(tmp_path / "x.onnx", PrecisionOptions("fp16", cache=False))
    assert (tmp_path / "x.onnx").read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_what_the_file_computes_in_is_read_back_and_held_against_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that claims to have worked and leaves fp32 behind."""
    idle = HalfReport("fp16", 10, {}, 0)
    monkeypatch.setattr(to_half_module, "to_half", lambda *_, **__: idle)
    with pytest.raises(ExportError, match=r"x\.onnx must compute in fp16, but .* in fp32"):
        export(tmp_path / "x.onnx", PrecisionOptions("fp16"))
    assert list(tmp_path.iterdir()) == []


def test_rows_that_score_nothing_may_be_anywhere() -> None:
    layout = RawDetections()
    rows, other = (np.zeros((4, 6)) for _ in range(2))
    rows[:, :4] = other[:, :4] = (100, 100, 40, 20)
    rows[0, 4:] = other[0, 4:] = (0.9, 1.0)
    other[1, 0] += 50
    report = {d.values: d for d in row_differences(("a", "b", "x"), [rows], [other], layout, FP16)}
    assert report["boxes"].max_abs == 0
    other[0, 0] += 1.6  # half a pixel and 0.03 of 40 are 1.7
    (boxes, scores) = row_differences(("a", "b", "x"), [rows], [other], layout, FP16)
    assert (boxes.ok, scores.ok, boxes.worst[0]) == (True, True, 0)
    other[0, 0] += 0.2
    assert not row_differences(("a", "b", "x"), [rows], [other], layout, FP16)[0].ok
    other[2, 4:] = (0.5, 1.0)  # a false alarm
    assert not row_differences(("a", "b", "x"), [rows], [other], layout, FP16)[1].ok
    other[3, 4] = np.nan
    assert row_differences(("a", "b", "x"), [rows], [other], layout, FP16)[1].limit_ratio == np.inf
    nothing = row_differences(("a", "b", "x"), [rows[1:]], [rows[1:]], layout, FP16)
    assert [d.count for d in nothing] == [0, 0]


# int8 and fp8.


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, images: Path) -> ExportReport:
    out = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return export(out, PrecisionOptions("int8", calibration=Calibration(images), cache=False))


def test_int8_is_calibrated_by_the_best_method_and_keeps_what_hurts(
    quantised: ExportReport, halves: dict[str, ExportReport]
) -> None:
    found = quantised.precision
    assert found is not None
    report = found.quantised
    assert report is not None
    assert set(report.errors) == {"minmax", "percentile", "mse"}
    assert report.errors[report.method] == min(report.errors.values())
    assert (report.images, report.kept_by) == (3, "measurement")
    assert {name.partition(".")[0] for name in report.labels.values()} == {"model"}  # of the network, not of nodes
    lines = dict(report.lines())
    assert "layers, chosen by measurement" in lines["not quantized"]
    nothing = replace(
        report, kept_by="nobody", sensitivity=None, error=report.whole, done=replace(report.done, kept=())
    )
    layers = f"0 of {len(report.done.layers)} layers"
    said = f"{layers}, none was looked for (--keep none); error of the outputs {report.whole:.3g}"
    assert dict(nothing.lines())["not quantized"] == said
    sensitivity = report.sensitivity
    assert sensitivity is not None
    assert f"0 {sensitivity.whole:.3g}" in lines["search"]
    if report.done.kept:
        share = sensitivity.layers[report.done.kept[0]] / sensitivity.whole
        assert f": {report.labels[report.done.kept[0]]} ({share:.1%})" in lines["not quantized"]
        assert report.error <= report.errors[report.method]
    assert found.computes["int8"] == len(report.done.layers) > len(report.done.kept)
    assert spec_in(quantised.path).precision == "int8"
    assert quantised.weight_size < halves["fp32"].weight_size
    json.dumps(quantised.to_dict(), default=str)


def test_int8_for_a_cpu_rounds_what_lies_between_layers(tmp_path: Path, images: Path) -> None:
    calibration = Calibration(images, method="minmax")
    report = export(tmp_path / "x.onnx", PrecisionOptions("int8", calibration=calibration, target="cpu", **KEEP_NONE))
    assert report.precision is not None
    done = report.precision.quantised
    assert done is not None
    assert done.target == "cpu"
    assert done.lines()[0][0] == "rounded"
    assert "TensorRT refuses" in done.lines()[0][1]
    assert len(done.done.tensors) > len(done.done.layers)
    assert spec_in(report.path).precision == "int8"
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(report.path)).graph.initializer}
    zeros = {int(value) for name, value in stored.items() if name.endswith("_zero") and value.dtype == np.uint8}
    assert 0 in zeros  # of images
    assert max(zeros) <= 128
    with load(report.path) as predictor:
        assert predictor.spec.precision == "int8"
        predictor(sorted(images.iterdir())[0])


def test_int8_is_told_not_judged(quantised: ExportReport) -> None:
    assert quantised.parity is not None
    assert quantised.parity.tolerance == REPORT_ONLY
    assert quantised.parity.ok
    assert quantised.precision is not None
    assert quantised.precision.base is not None
    assert quantised.precision.base.tolerance == Tolerance()
    written = json.loads((quantised.path.parent / "int8.onnx.parity.json").read_text())
    assert written["tolerance"]["judged"] is False


@pytest.mark.slow
def test_nms_inside_has_the_same_layers_and_scales(tmp_path: Path, images: Path) -> None:
    calibration = Calibration(images, method="minmax")
    plain = export(tmp_path / "x.onnx", PrecisionOptions("int8", calibration=calibration, **KEEP_NONE))
    inside = export(tmp_path / "y.onnx", PrecisionOptions("int8", calibration=calibration, **KEEP_NONE), nms="graph")
    assert plain.precision is not None
    assert inside.precision is not None
    assert plain.precision.computes == inside.precision.computes
    scales = [
        sorted(
            float(onnx.numpy_helper.to_array(t).reshape(-1)[0])
            for t in onnx.load(str(report.path)).graph.initializer
            if t.name.endswith("_scale") and not t.dims
        )
        for report in (plain, inside)
    ]
    assert scales[0] == scales[1]
    assert len(scales[0]) > 5


def test_named_layers_are_kept(tmp_path: Path, images: Path) -> None:
    precision = PrecisionOptions(
        "int8", calibration=Calibration(images, method="minmax"), nodes_to_exclude=("model.11.*",), cache=False
    )
    report = export(tmp_path / "x.onnx", precision)
    assert report.precision is not None
    assert report.precision.quantised is not None
    kept = report.precision.quantised
    assert {kept.labels[name].startswith("model.11.") for name in kept.done.kept} == {True}
    assert kept.kept_by == "name"
    with pytest.raises(UsageError, match="no layer that can be quantized is called 'modle"):
        export(tmp_path / "y.onnx", replace(precision, nodes_to_exclude=("modle.1",)))
    assert not (tmp_path / "y.onnx").exists()


@pytest.mark.parametrize("kind", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_named_layers_of_half_stay_in_fp32(kind: Any, tmp_path: Path) -> None:
    report = export(tmp_path / "x.onnx", PrecisionOptions(kind, nodes_to_exclude=("model.1.*",)))
    assert report.precision is not None
    assert report.precision.half is not None
    asked = report.precision.half.kept["asked"]
    assert asked
    assert report.precision.computes["fp32"] >= len(asked)
    stored = {t.name: t.data_type for t in onnx.load(str(report.path)).graph.initializer}
    assert {stored[name] for name in stored if name.startswith("model.1.")} == {onnx.TensorProto.FLOAT}
    with pytest.raises(UsageError, match="no layer is called 'modle"):
        export(tmp_path / "y.onnx", PrecisionOptions(kind, nodes_to_exclude=("modle.1",)))


def test_fp8_runs_in_torch(tmp_path: Path, images: Path) -> None:
    report = export(
        tmp_path / "x.onnx", PrecisionOptions("fp8", calibration=Calibration(images, method="minmax"), **KEEP_NONE)
    )
    assert report.opset == 19
    assert report.precision is not None
    assert set(report.precision.computes) == {"fp8"}
    assert report.weight_size <= 1.1 * report.parameters
    assert report.parity is not None
    assert {d.candidate for d in report.parity.differences} == {"x.onnx in torch"}


@engines
@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8", "fp8"])
def test_an_engine_has_the_precision_that_was_asked_for(
    tmp_path: Path, images: Path, halves: dict[str, ExportReport], quantised: ExportReport, kind: str
) -> None:
    if kind in halves:
        report = halves[kind]
    elif kind == "int8":
        report = quantised
    else:
        calibration = Calibration(images, method="minmax")
        report = export(
            tmp_path / "fp8.onnx", PrecisionOptions("fp8", calibration=calibration, **KEEP_NONE), check=False
        )
    options = EngineOptions(compute_capabilities=("sm89", "sm120") if kind == "fp8" else ())
    engine = build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path / "x.trt", options=options, check=False)
    assert report.precision is not None
    assert engine.record.precision == report.precision.computes
    assert engine.record.spec.precision == kind


@engines
def test_an_engine_of_another_precision_is_refused(tmp_path: Path, halves: dict[str, ExportReport]) -> None:
    liar = tmp_path / "liar.onnx"
    model = onnx.load(str(halves["fp32"].path))
    entry = next(p for p in model.metadata_props if p.key == METADATA_KEY)
    entry.value = replace(spec_in(halves["fp32"].path), precision="fp16").to_json()
    onnx.save(model, str(liar))
    with pytest.raises(ExportError, match=r"as TensorRT reads it, must compute in fp16, but .* in fp32"):
        build_engine(liar, flavour="tensorrt-rtx", check=False)


# What does not go together, and the gate.


def test_what_does_not_go_together_is_said(tmp_path: Path, images: Path) -> None:
    with pytest.raises(UsageError, match="--precision int8 needs images"):
        PrecisionOptions("int8")
    with pytest.raises(UsageError, match="calibration is for int8 and fp8, not for fp16"):
        PrecisionOptions("fp16", calibration=Calibration(images))
    with pytest.raises(UsageError, match="--half-io input goes with --precision fp16, not with bf16"):
        PrecisionOptions("bf16", half_io="input")
    with pytest.raises(UsageError, match="a precision must be one of fp32, fp16"):
        PrecisionOptions("fp64")  # type: ignore[arg-type]  # that it is refused is what is tested
    with pytest.raises(UsageError, match="detections that a network chooses are float32"):
        export(tmp_path / "x.onnx", PrecisionOptions("fp16", half_io="both"), nms="graph")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Annotations of what the fp32 network finds itself, so that its own AP is 1 or nearly."""
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    folder = tmp_path_factory.mktemp("annotated")
    model = boxes_only()
    report = export(folder / "fp32.onnx", PrecisionOptions(), model, check=False)
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(model.spec.classes)]
    with load(report.path, conf=0.3) as predictor:
        for number, file in enumerate(sorted(images.iterdir()), start=1):
            result = predictor(file)
            height, width = result.size
            coco["images"].append({"id": number, "file_name": file.name, "height": height, "width": width})
            for box, label in zip(result.boxes[:20].tolist(), result.labels[:20].tolist(), strict=True):
                sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                entry = {"image_id": number, "category_id": label + 1, "bbox": sides, "area": sides[2] * sides[3]}
                coco["annotations"].append({**entry, "id": len(coco["annotations"]) + 1, "iscrowd": 0})
    assert len(coco["annotations"]) > 10
    (folder / "a.json").write_text(json.dumps(coco))
    return folder / "a.json"


def boxes_only() -> ReferenceModel:
    return model_of("few", objectness=3.0)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_the_gate_lets_a_faithful_export_pass(tmp_path: Path, images: Path, annotated: Path, kind: Any) -> None:
    gate = AccuracyGate(50.0, annotated, images, bootstrap=20)
    report = export(tmp_path / "x.onnx", PrecisionOptions(kind), boxes_only(), gate=gate)
    assert report.accuracy is not None
    assert report.accuracy.difference["AP"] >= -0.5
    if kind == "fp32":
        assert report.accuracy.difference["AP"] == 0.0
    assert report.to_dict()["accuracy"]["difference"]["AP"] == report.accuracy.difference["AP"]


def test_the_gate_takes_a_yolo_data_set(tmp_path: Path, images: Path, annotated: Path) -> None:
    coco = json.loads(annotated.read_text())
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "labels").mkdir()
    for image in coco["images"]:
        wide = [image["width"], image["height"]] * 2
        lines = [
            f"{a['category_id'] - 1} {(x + w / 2) / wide[0]} {(y + h / 2) / wide[1]} {w / wide[0]} {h / wide[1]}"
            for a in coco["annotations"]
            if a["image_id"] == image["id"]
            for x, y, w, h in [a["bbox"]]
        ]
        (tmp_path / "labels" / Path(image["file_name"]).with_suffix(".txt")).write_text("\n".join(lines))
    names = [category["name"] for category in coco["categories"]]
    (tmp_path / "data.yaml").write_text(f"path: .\ntest: images\nnames: {names}\n")
    found = [
        export(tmp_path / f"{i}.onnx", PrecisionOptions(), boxes_only(), gate=gate).accuracy
        for i, gate in enumerate(
            (AccuracyGate(50.0, annotated, images, bootstrap=20), AccuracyGate(50.0, tmp_path, bootstrap=20))
        )
    ]
    assert None not in found
    first, second = (each.model.metrics for each in found if each is not None)
    assert second == pytest.approx(first, abs=1e-6)
    assert first["AP"] > 0.5


def test_the_gate_stops_an_export_that_loses_too_much(
    tmp_path: Path, images: Path, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(*args: Any, **options: Any) -> Any:
        done = quantize_graph(*args, **options)
        graph = args[0].graph
        for name, value in graph.initializers.items():
            if name.startswith("model.11.m") and name.endswith("_int8"):
                value.const_value.numpy()[:] = 0
        return done

    quantize_graph = module.quantize_graph
    monkeypatch.setattr(module, "quantize_graph", blind)
    precision = PrecisionOptions("int8", calibration=Calibration(images, method="minmax"), **KEEP_NONE)
    gate = AccuracyGate(1.0, annotated, images, bootstrap=20)
    (tmp_path / "x.onnx").write_bytes(b"an older file")
    with pytest.raises(AccuracyError, match=r"AP falls .* points \(95 % interval.*; 1 are allowed \(--max-drop\)"):
        export(tmp_path / "x.onnx", precision, boxes_only(), gate=gate)
    assert (tmp_path / "x.onnx").read_bytes() == b"an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_the_gate_is_for_raw_rows(tmp_path: Path, images: Path, annotated: Path) -> None:
    gate = AccuracyGate(1.0, annotated, images)
    with pytest.raises(UsageError, match="--max-drop goes with --nms none"):
        export(tmp_path / "x.onnx", PrecisionOptions(), gate=gate, nms="graph")
    with pytest.raises(UsageError, match="at least 0"):
        AccuracyGate(-1.0, "a.json", images)


def test_missing_images_and_annotations_are_found_out_first(
    tmp_path: Path, images: Path, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "export_to_ir", lambda *_: pytest.fail("it was found out too late"))
    with pytest.raises(NotFoundError, match="folder of calibration images"):
        export(tmp_path / "x.onnx", PrecisionOptions("int8", calibration=Calibration(tmp_path / "none")))
    for gate in (AccuracyGate(1.0, tmp_path / "a.json", images), AccuracyGate(1.0, annotated, tmp_path / "none")):
        with pytest.raises(NotFoundError):
            export(tmp_path / "x.onnx", PrecisionOptions(), gate=gate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["yolov6m", "yolov7_tiny", "yolox_s", "kapao_s", *(pytest.param(n, marks=slow) for n in ("yolov5n", "yolov6n"))],
)
def test_every_family_is_half(tmp_path: Path, name: str) -> None:
    model = model_of(name)
    precision = PrecisionOptions("fp16")
    report = onnx_from_model(
        model, out=tmp_path / "x.onnx", img=64, precision=precision, options=OnnxOptions(exporter="legacy")
    )
    assert report.precision is not None
    assert report.precision.half is not None
    assert set(report.precision.computes) <= {"fp16", "fp32"}
    assert report.precision.computes.get("fp32", 0) == (3 if name == "yolov6m" else 0)  # means of bins, of each level
    assert set(report.precision.half.kept) <= {"decode", "operator", "type"}
    assert report.precision.half.casts <= 16


def test_boxes_from_bins_and_the_choice_of_detections_are_fp32(tmp_path: Path) -> None:
    report = export(tmp_path / "m.onnx", PrecisionOptions("bf16"), free_network("v10"), check=False)
    assert report.precision is not None
    assert report.precision.computes["fp32"] == 1  # the means of the bins
    assert report.precision.computes["bf16"] > 10
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(report.path))).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    chosen = {"TopK", "GatherElements", "Softmax"}
    found = [(n.op_type, types[o]) for n in graph.node if n.op_type in chosen for o in n.output if o in types]
    assert {op for op, _ in found} == chosen
    assert {kind for _, kind in found} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_two_files_are_compared_by_the_limits_of_the_lower_precision(
    halves: dict[str, ExportReport], quantised: ExportReport, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(halves["fp32"].path, halves["fp16"].path)
    assert found.ok
    assert found.tolerance == FP16
    assert not compare(halves["fp32"].path, halves["fp16"].path, tolerance=Tolerance()).ok
    assert compare(quantised.path, halves["fp32"].path).tolerance == REPORT_ONLY
    assert main(["compare", str(halves["fp32"].path), str(quantised.path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no verdict: see above"
