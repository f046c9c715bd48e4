"""Instances: a detector in two stages as an artefact, verified with its masks, and predicted with."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from deploykit.cli import main
from deploykit.errors import CheckpointError, ExportError, ImageSizeError, ParityError, SpecError, UsageError
from deploykit.export.engine.build import NO_GPU, build_engine
from deploykit.export.engine.stages import EngineJob, engine_source
from deploykit.export.graph import finalize
from deploykit.export.graph.split import DATA_DEPENDENT_OPS, split
from deploykit.export.graph.trace import export_to_ir
from deploykit.export.options import Calibration, EngineOptions, OnnxOptions, PrecisionOptions
from deploykit.export.parity.compare import check_expected, compare, expect
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.nms import check_detections, opened_detections
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.parity.verification import largest_values
from deploykit.export.precision.half import HalfType, to_half
from deploykit.export.precision.quantize import quantize_graph
from deploykit.export.precision.read_back import precisions_of
from deploykit.export.precision.search.names import label_of
from deploykit.export.preflight.check import preflight
from deploykit.export.report import ExportReport
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import evaluate, load
from deploykit.models.families.vitdet import model as vitdet
from deploykit.models.families.vitdet.mask_rcnn import CASCADE, EASYCV_CASCADE, MaskRcnn
from deploykit.models.families.vitdet.model import DetectorConfig, VitDetConfig
from deploykit.models.families.vitdet.two_stage import clipped, moved
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, create_model, load_model, with_rewrite
from deploykit.progress import SILENT
from deploykit.runtime.backends.chain import ChainSession
from deploykit.runtime.backends.trt import session as trt
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import EngineRecord, reference_values_path, second_stage_path
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.postprocess.masks import run_lengths
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.session import open_session
from deploykit.spec import ModelSpec, NmsOutputs, RawDetections
from tests import cpu_tensorrt
from tests.asked import asked
from tests.cell_model import cell_spec, write_cell_model
from tests.cpu_tensorrt import CpuGpu
from tests.models.families import test_vit_mask_rcnn
from tests.models.families.test_vitdet import NARROW, detector, in_easycv
from tests.models.files import saved

CONFIG = replace(NARROW, patch=8)
slow = pytest.mark.slow
no_gpu = pytest.mark.skipif(
    gpu_unavailable_reason() is None, reason="this machine has a GPU, where the engine is compared"
)
OUTPUTS = ["num_dets", "boxes", "scores", "labels", "masks", "num_candidates"]


def model_of(config: VitDetConfig = CONFIG, **heads: Any) -> ReferenceModel:
    network = detector(config, **heads)
    return vitdet.FAMILY.reference(DetectorConfig(config, network.config), network)


INSTANCES: dict[str, Callable[[], ReferenceModel]] = {
    **dict.fromkeys(("vitdet-b", "vitdet-h", "vitdet-l"), model_of),
    "vitdet-cascade-b": lambda: model_of(weights=CASCADE),
    **dict.fromkeys(("vit-mask-rcnn-b", "vit-mask-rcnn-l"), test_vit_mask_rcnn.narrow),
}
"""A narrow model of each registered one."""


@pytest.mark.parametrize("name", INSTANCES)
def test_the_narrow_ones_have_the_layers_of_the_registered(name: str) -> None:
    with torch.device("meta"):
        registered = create_model(name)
    kinds = [{type(m) for m in model.module.modules()} for model in (registered, INSTANCES[name]())]
    assert kinds[0] <= kinds[1]  # and convolutions behind some blocks, which no published one has


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return onnx_from_model(model_of(), out=tmp_path_factory.mktemp("instances") / "m.onnx")


def test_it_is_verified_with_its_masks(exported: ExportReport) -> None:
    parity = exported.parity
    assert parity is not None
    assert parity.ok
    assert {d.values for d in parity.differences} == {"boxes", "scores", "masks"}
    assert all(d.count > 0 for d in parity.differences)
    assert [m.what for m in parity.matchings].count("detections") == len(parity.matchings) / 2
    assert all(m.expected > 3 for m in parity.matchings)
    graph = onnx.load(exported.path).graph
    assert [value.name for value in graph.output] == OUTPUTS
    operators = [node.op_type for node in graph.node]
    assert operators.count("RoiAlign") == 2 * 4  # boxes and masks, four levels
    assert operators.count("NonMaxSuppression") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "heads",
    [
        pytest.param({"weights": CASCADE}, id="cascade"),
        pytest.param({"norm": "GN"}, id="GN", marks=slow),
        pytest.param({"agnostic": True}, id="agnostic", marks=slow),
    ],
)
def test_other_heads_are_verified(heads: dict[str, Any], tmp_path: Path) -> None:
    report = onnx_from_model(model_of(**heads), out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok


@pytest.mark.slow
def test_that_on_four_maps_is_verified(tmp_path: Path) -> None:
    report = onnx_from_model(test_vit_mask_rcnn.narrow(), out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok
    assert all(m.expected > 3 for m in report.parity.matchings)
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert "BatchNormalization" not in operators


@slow
def test_the_map_may_be_interpolated(tmp_path: Path) -> None:
    report = onnx_from_model(with_rewrite(model_of(), "interpolate"), out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok
    assert any("interpolate" in note for note in report.notes)
    with pytest.raises(UsageError, match="interpolate takes no argument"):
        with_rewrite(model_of(), "interpolate:3")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_the_same_detections_and_masks(precision: HalfType, exported: ExportReport) -> None:
    """The file of fp32, converted: tests/export/precision/test_two_stages.py exports it."""
    graph, spec = ir.load(exported.path), exported.spec
    graph.opset_imports[""] = 22  # of convolutions in bf16
    feeds = make_parity_inputs(spec, ())
    opened = replace(spec, thresholds=replace(spec.thresholds, conf=0.0))
    with open_session(exported.path) as session:
        expected = expect({"m.onnx": session}, opened, feeds)
    done = to_half(graph, precision, largest=largest_values(graph, feeds, SILENT))
    assert len(done.kept["boxes"]) > 100
    with OnnxInTorchSession(graph) as session:
        every = session.with_values({"nms_conf": np.zeros(1, np.float32)})
        limits = replace(LIMITS[precision], max_score=LIMITS[precision].max_score * 0.6)  # and with room to spare
        found = opened_detections(expected, precision, every, spec)
        parity = check_detections(expected, precision, session, spec, limits, opened=found)
    assert parity.ok, parity.worst
    assert {d.values for d in parity.differences} == {"boxes", "scores", "masks"}
    assert all(d.max_abs > 1e-4 for d in parity.differences)  # it is rounded
    assert set(precisions_of(graph)) == {precision}


def test_int8_is_in_the_first_stage_alone(exported: ExportReport, tmp_path: Path) -> None:
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    first, graph = tmp_path / "first.onnx", ir.load(exported.path)
    ir.save(split(exported.path)[0], first)
    options = PrecisionOptions(
        "int8", calibration=Calibration(tmp_path, method="minmax"), nodes_to_exclude="none", cache=False
    )
    report = quantize_graph(graph, first, exported.spec, options)
    layers = {label_of(node) for node in ir.load(exported.path).graph if str(node.name) in report.done.layers}
    assert len(layers) > 30
    assert all(label.startswith(("backbone.", "proposal_generator.")) for label in layers)
    assert 0 < report.errors["minmax"] < 1  # relative, summed over all that the second stage takes
    ir.save(graph, tmp_path / "int8.onnx")
    with open_session(tmp_path / "int8.onnx") as session, open_session(exported.path) as exact:
        image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
        found, expected = (one.run({"images": image}) for one in (session, exact))
    assert int(found["num_dets"][0, 0]) > 3
    assert np.abs(found["scores"] - expected["scores"]).max() < 0.1
    assert precisions_of(graph)["int8"] == list(report.done.layers)


def test_masks_are_judged_as_a_whole_where_boxes_may_move(exported: ExportReport) -> None:
    spec = exported.spec
    with open_session(exported.path) as session:
        expected, run = expect({"m.onnx": session}, spec, make_parity_inputs(spec, ())), session.run
        found = {}
        for change, cells in ((0.05, slice(None)), (0.3, slice(1)), (np.nan, slice(1))):

            def changed(inputs: Any, change: float = change, cells: slice = cells) -> dict[str, Any]:
                outputs = run(inputs)
                masks = outputs["masks"] = outputs["masks"].copy()
                masks[0, 0].reshape(-1)[cells] += change
                return outputs

            session.run = changed  # type: ignore[method-assign]  # of this network alone
            for precision in ("fp32", "fp16"):
                parity = check_expected(expected, "it", session, spec, LIMITS[precision])
                found[change, precision] = all(d.ok for d in parity.differences if d.values == "masks")
    assert not any(found[change, "fp32"] for change in (0.05, 0.3))
    assert not found[0.05, "fp16"]
    assert found[0.3, "fp16"]  # one cell of 784
    assert [ok for (change, _), ok in found.items() if np.isnan(change)] == [False, False]


@pytest.mark.slow
def test_images_of_a_batch_do_not_mix(exported: ExportReport, tmp_path: Path) -> None:
    report = onnx_from_model(model_of(), out=tmp_path / "m.onnx", dynamic="batch")
    images = torch.randn(3, 3, 64, 64).numpy()
    with open_session(report.path) as pair, open_session(exported.path) as one:
        found = pair.run({"images": images})
        for i in range(3):
            alone = one.run({"images": images[i : i + 1]})
            for name in OUTPUTS:
                np.testing.assert_allclose(found[name][i], alone[name][0], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "mask_head.predictor",
        pytest.param("box_predictor.bbox_pred", marks=slow),
        pytest.param("box_predictor.cls_score", marks=slow),
    ],
)
def test_a_wrong_file_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are those of a head that is a little off."""
    wrong = detector(CONFIG)
    bias = wrong.roi_heads.get_parameter(f"{part}.bias")
    bias[: 1 if part.endswith("cls_score") else None] += 0.01  # of every class alike a softmax would see nothing
    monkeypatch.setattr(
        "deploykit.export.to_onnx.export_to_ir", lambda _, *rest: export_to_ir(fuse_model(wrong), *rest)
    )
    what = "masks" if part.startswith("mask") else ".*"
    with pytest.raises(ParityError, match=rf"{what}.* of m\.onnx"):
        onnx_from_model(model_of(), out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": "graph"}, "already has NMS inside"),
        ({"exporter": "legacy"}, "needs --exporter dynamo"),
        ({"precision": PrecisionOptions("fp16", half_io="output")}, "detections that a network chooses are float32"),
        ({"dynamic": "shape"}, "the positions of its attentions depend on"),
        ({"img": 72}, "multiples of its stride 16"),
    ],
)
def test_what_does_not_go_is_said(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, ImageSizeError), match=message):
        onnx_from_model(model_of(), out=tmp_path / "m.onnx", options=OnnxOptions(**options))


def test_masks_are_predicted_in_the_images_pixels(exported: ExportReport, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    with load(exported.path) as predictor:
        assert isinstance(predictor, Predictor)
        result = predictor(image)
    assert len(result) > 3
    assert result.masks is not None
    assert result.masks.shape == (len(result), 90, 120)
    x1, y1, x2, y2 = (f(result.boxes[:, i]).astype(int) for i, f in enumerate([np.floor] * 2 + [np.ceil] * 2))
    for i, mask in enumerate(result.masks):
        outside = mask.copy()
        outside[y1[i] : y2[i], x1[i] : x2[i]] = False
        assert not outside.any()
    assert result[0].mask is not None
    assert np.array_equal(result[0].mask, result.masks[0])
    drawn = result.draw(image)
    assert (drawn != image).any()


def test_the_command_line_writes_masks(exported: ExportReport, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = tmp_path / "p.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    arguments = ["predict", "--model", str(exported.path), "--source", str(image), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    with load(exported.path) as predictor:
        result = predictor(str(image))
    assert result.masks is not None
    entry = line["detections"][0]["mask"]
    assert entry["size"] == [90, 120]
    flat = np.repeat(np.arange(len(entry["counts"])) % 2, entry["counts"]).reshape(120, 90).T
    assert np.array_equal(flat.astype(bool), result.masks[0])
    assert result.to_coco(7)[0]["segmentation"] == entry


def test_masks_are_evaluated(exported: ExportReport, tmp_path: Path) -> None:
    """Against its own masks they are right, but for those that are empty; cut ones count as pycocotools says."""
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    chance = np.random.default_rng(0)
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(exported.spec.classes)]
    with load(exported.path) as predictor:
        for number in range(2):
            image = chance.integers(0, 256, (90, 120, 3), np.uint8)
            cv2.imwrite(str(tmp_path / f"{number}.png"), image)
            truth["images"].append({"id": number, "file_name": f"{number}.png", "width": 120, "height": 90})
            result = predictor(image)
            assert result.masks is not None
            for box, label, mask in zip(result.boxes.tolist(), result.labels.tolist(), result.masks, strict=True):
                x1, y1, x2, y2 = box
                entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": label + 1}
                entry |= {"iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                entry |= {"area": int(mask.sum()), "segmentation": run_lengths(mask)}
                if mask.any():
                    truth["annotations"].append(entry)
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    whole = evaluate(exported.path, file, images=tmp_path)
    assert whole.task == "instances"
    assert not [note for note in whole.notes if "without NMS" in note]  # there is no such export
    assert whole.settings.multi_label
    assert whole.metrics["AP50"] > 0.8
    for entry in truth["annotations"]:
        lengths = entry["segmentation"]["counts"]
        cut = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(120, 90).T.astype(bool)
        cut[:, : int(entry["bbox"][0] + 0.2 * entry["bbox"][2])] = False
        entry["segmentation"], entry["area"] = run_lengths(cut), int(cut.sum())
    file.write_text(json.dumps(truth))
    less = evaluate(exported.path, file, images=tmp_path)
    assert 0 < less.metrics["AP"] < whole.metrics["AP"]
    boxes = evaluate(exported.path, file, images=tmp_path, task="detect")
    assert boxes.metrics["AP"] > less.metrics["AP"]
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    other = evaluate(exported.path, file, images=tmp_path, metrics="pycocotools")
    assert other.metrics == pytest.approx(less.metrics, abs=1e-9)


@pytest.mark.slow
def test_both_projects_files_are_read_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images = torch.randn(1, 3, 64, 64)
    for norm in ("LN", "GN"):
        config = replace(CONFIG, norm=norm)  # type: ignore[arg-type]  # a literal of this loop
        network = detector(config)
        state = network.state_dict()
        (tmp_path / norm).mkdir()
        weights = saved(tmp_path / norm, state if norm == "LN" else _easycv(state))
        model = load_model(weights)
        assert isinstance(model.module, MaskRcnn)
        assert model.module.config == replace(network.config, proposals=model.module.config.proposals)
        assert model.name == "vitdet-d16-4"
        small = MaskRcnn(model.module.backbone, network.config, network.thresholds)
        small.load_state_dict(model.module.state_dict())
        for a, b in zip(small.eval()(images), network(images), strict=True):
            assert torch.equal(a, b)
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    assert report.parity is not None
    again = compare(weights, report.path)
    assert again.ok
    assert "masks" in {d.values for d in again.differences}
    assert main(["inspect", str(report.path)]) == 0
    assert "masks" in capsys.readouterr().out


def _easycv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of EasyCV and mmdetection for detectron2's."""
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    found = in_easycv(backbone)
    plain = {
        "proposal_generator.rpn_head.objectness_logits": "rpn_head.rpn_cls",
        "proposal_generator.rpn_head.anchor_deltas": "rpn_head.rpn_reg",
        "proposal_generator.rpn_head.conv.conv0": "rpn_head.rpn_conv.0.conv",
        "proposal_generator.rpn_head.conv.conv1": "rpn_head.rpn_conv.1.conv",
        "roi_heads.box_head.fc1": "roi_head.bbox_head.shared_fcs.0",
        "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
        "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
        "roi_heads.mask_head.deconv": "roi_head.mask_head.upsample",
        "roi_heads.mask_head.predictor": "roi_head.mask_head.conv_logits",
    }
    for i in range(1, 5):
        for ours, theirs in (("box_head.conv", "bbox_head.shared_convs"), ("mask_head.mask_fcn", "mask_head.convs")):
            plain[f"roi_heads.{ours}{i}.norm"] = f"roi_head.{theirs}.{i - 1}.gn"
            plain[f"roi_heads.{ours}{i}"] = f"roi_head.{theirs}.{i - 1}.conv"
    for name, other in list(plain.items()):  # of a cascade, behind the name of the head
        _, head, rest = name.split(".", 2)
        for stage in range(3) if head in ("box_head", "box_predictor", "mask_head") else ():
            theirs, place = other.split(".", 2)[1:]
            plain[f"roi_heads.{head}.{stage}.{rest}"] = f"roi_head.{theirs}.{stage}.{place}"
    for key, value in state.items():
        if not key.startswith("backbone."):
            before = max((name for name in plain if key.startswith(f"{name}.")), key=len)
            found[plain[before] + key.removeprefix(before)] = value
    return found


def test_the_cascade_of_easycv_is_read(tmp_path: Path) -> None:
    """Its three mask heads tell it; a wrong stage, or a mean of probabilities, would give other numbers."""
    config = replace(CONFIG, norm="GN")
    network = detector(config, weights=EASYCV_CASCADE, agnostic=True, averaged="logits", mask_heads=3)
    for number, name in enumerate(("mask_head", "box_predictor")):  # of each stage its own
        for stage, module in enumerate(network.roi_heads.get_submodule(name).children()):
            for parameter in module.parameters():
                parameter.mul_(1 + 0.1 * stage + 0.05 * number)
    model = load_model(saved(tmp_path, _easycv(network.state_dict())))
    assert isinstance(model.module, MaskRcnn)
    assert model.module.config == replace(network.config, proposals=model.module.config.proposals)
    small = MaskRcnn(model.module.backbone, network.config, network.thresholds)
    small.load_state_dict(model.module.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(small.eval()(images), network(images), strict=True):
        assert torch.equal(a, b)
    levels = network.backbone(images)
    boxes = torch.tensor([[[3.0, 5.0, 40.0, 50.0], [10.0, 8.0, 20.0, 60.0]]])
    labels = torch.tensor([[1, 0]])
    logits, masks, now = [], [], boxes
    for stage, (head, predictor) in enumerate(network.roi_heads.stages()):
        features = head(network.roi_heads.box_pooler(levels, now))
        logits.append(predictor.cls_score(features))
        now = clipped(moved(now, predictor.bbox_pred(features)[None], EASYCV_CASCADE[stage]), 64, 64)
        cells = network.roi_heads.get_submodule(f"mask_head.{stage}")(network.roi_heads.mask_pooler(levels, boxes))
        masks.append(torch.stack([cells[i, labels[0, i]] for i in range(2)]).sigmoid())
    shares, *_ = network.roi_heads.classified(levels, boxes, 64, 64)
    assert torch.allclose(shares[0], torch.stack(logits).mean(0).softmax(-1)[:, :-1], atol=1e-6)
    assert torch.allclose(network.roi_heads.masks(levels, boxes, labels)[0], torch.stack(masks).mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k.startswith("backbone.")}, "no heads of detection"),
        (lambda s: s | {"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(7, 16)}, "7 values for 3 classes"),
        (lambda s: s | {"roi_heads.box_predictor.0.cls_score.weight": torch.zeros(4, 16)}, "a cascade of 1 box heads"),
    ],
)
def test_files_that_are_none_are_named(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(saved(tmp_path, change(detector(CONFIG).state_dict())))


def test_instances_have_masks_and_nothing_else_has() -> None:
    spec = model_of().spec
    assert ModelSpec.from_json(spec.to_json()) == spec
    for change in ({"task": "detect"}, {"output": NmsOutputs()}):
        with pytest.raises(SpecError, match="of the task instances has an output of masks"):
            replace(spec, **change)  # type: ignore[arg-type]  # fields of this list
    with pytest.raises(SpecError, match="instances has columns of coefficients and an output of prototypes, no other"):
        replace(spec, output=RawDetections(cls=(5, 8)))


def test_the_two_parts_of_a_graph_are_the_whole(exported: ExportReport, tmp_path: Path) -> None:
    first, rest = split(exported.path)
    for graph, name in ((first, "first.onnx"), (rest, "rest.onnx")):
        assert not {node.op_type for node in graph.graph} & (
            set(DATA_DEPENDENT_OPS) if graph is first else {"Erf"}
        )  # of the transformer
        ir.save(graph, tmp_path / name)
        onnx.checker.check_model(str(tmp_path / name), full_check=True)
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    parts = [open_session(tmp_path / name) for name in ("first.onnx", "rest.onnx")]
    with open_session(exported.path) as whole, ChainSession(*parts) as chain:
        assert (chain.inputs, chain.outputs) == (whole.inputs, whole.outputs)
        assert dict(chain.metadata) == dict(whole.metadata)
        expected, found = (session.run({"images": images}) for session in (whole, chain))
        for name in OUTPUTS:
            np.testing.assert_array_equal(found[name], expected[name])
        with pytest.raises(SpecError, match="which the first does not return"):
            ChainSession(whole, parts[1])
    with pytest.raises(ExportError, match="no part before NonMaxSuppression"):
        split(tmp_path / "first.onnx")


def test_an_engine_and_the_rest_are_one_network(
    exported: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for TensorRT, which computes the first part in ONNX Runtime."""
    device = CpuGpu()
    monkeypatch.setattr(trt, "open_gpu", lambda index=0: device)
    monkeypatch.setitem(sys.modules, "tensorrt", cpu_tensorrt)
    monkeypatch.setattr(trt, "installed", lambda: ("tensorrt",))
    first, rest = split(exported.path)
    ir.save(first, tmp_path / "first.onnx")
    engine = cpu_tensorrt.write_engine(tmp_path / "m.trt", tmp_path / "first.onnx")
    ir.save(rest, second_stage_path(engine))
    version = cpu_tensorrt.__version__
    EngineRecord("tensorrt", version, exported.spec, "m.onnx", "00", size=engine.stat().st_size).write(engine)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    with load(engine) as behind, load(exported.path) as whole:
        found, expected = behind(image), whole(image)
        assert len(behind.session.providers) == 2
        assert behind.session.device_memory
    assert len(found) == len(expected) > 3
    assert np.array_equal(found.boxes, expected.boxes)
    assert found.masks is not None
    assert np.array_equal(found.masks, expected.masks)
    assert device.live == 0


@no_gpu
def test_an_engine_of_the_first_part_is_built(exported: ExportReport, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    report = build_engine(exported.path, flavour="tensorrt-rtx", out=tmp_path)
    beside = ("", ".json", ".log", ".parity.npz", ".rest.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {f"m.trt{suffix}" for suffix in beside}
    assert report.record.unverified.startswith(NO_GPU)
    expected = ReferenceOutputs.load(reference_values_path(report.path))  # of the whole network
    with open_session(exported.path) as session:
        again = check_expected(expected, "m.onnx", session, exported.spec)
    assert again.ok
    assert "masks" in {d.values for d in again.differences}


def engine_job(file: Path, spec: ModelSpec) -> EngineJob:
    """As of TensorRT proper, which tries the whole network; the builder is that of TensorRT for RTX."""
    module = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    return EngineJob(module, file, spec, EngineOptions(timing_cache=False), "tensorrt", None, BuildLog(), SILENT)


@no_gpu
def test_the_first_stage_is_built_where_the_whole_cannot_be(exported: ExportReport, tmp_path: Path) -> None:
    job = engine_job(exported.path, exported.spec)
    source, network, _, plan = job.built(tmp_path, tmp_path / "m.trt")
    assert source == job.source == tmp_path / "first" / "m.onnx"
    assert (tmp_path / "m.trt.rest.onnx").exists()
    assert len(network.outputs) == 14  # maps, logits and deltas
    assert plan.nbytes > 10_000
    spec = replace(exported.spec, precision="bf16")
    with pytest.raises(ExportError, match="second stage runs in ONNX Runtime, which has no bf16"):
        engine_source(exported.path, spec, tmp_path, tmp_path / "m.trt", whole=False)


@pytest.mark.slow
@no_gpu
def test_all_but_roi_align_and_nms_is_built_as_one_engine(exported: ExportReport, tmp_path: Path) -> None:
    """TensorRT for RTX lacks these two; with others of their shapes in their places it builds the whole network."""
    model = onnx.load(str(exported.path))
    nodes = []
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "NonMaxSuppression":
            chosen = onnx.numpy_helper.from_array(np.array([[0, 0, 0], [0, 0, 2], [0, 1, 1]]))
            nodes.append(onnx.helper.make_node("Constant", [], [name], f"{name}_chosen", value=chosen))
        elif node.op_type == "RoiAlign":
            size = next(a.i for a in node.attribute if a.name == "output_height")
            axes = onnx.numpy_helper.from_array(np.array([2, 3]), f"{name}_axes")
            shape = onnx.numpy_helper.from_array(np.array([1, 1, size, size]), f"{name}_shape")
            model.graph.initializer.extend([axes, shape])
            nodes += [
                onnx.helper.make_node("ReduceMean", [node.input[0], axes.name], [f"{name}_mean"], f"{name}_mean"),
                onnx.helper.make_node("Gather", [f"{name}_mean", node.input[2]], [f"{name}_own"], f"{name}_own"),
                onnx.helper.make_node("Expand", [f"{name}_own", shape.name], [name], f"{name}_cells"),
            ]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    file = tmp_path / "whole.onnx"
    onnx.save(model, str(file))
    source, network, _, plan = engine_job(file, exported.spec).built(tmp_path, tmp_path / "m.trt")
    assert source == file
    assert [info.name for info in network.outputs] == OUTPUTS
    assert plan.nbytes > 10_000
    assert not (tmp_path / "m.trt.rest.onnx").exists()


def test_tensorrt_is_expected_to_take_the_whole_network(exported: ExportReport) -> None:
    report = preflight(exported.path, targets=("tensorrt-10", "tensorrt-11"))
    assert {verdict.says for verdict in report.verdicts} == {"expected (table)"}
    graph = onnx.load(str(exported.path)).graph
    assert not [node for node in graph.node if node.op_type in ("NonZero", "Compress")]


@no_gpu
@pytest.mark.parametrize("large", [False, True], ids=["weights inside", "weights beside"])
@pytest.mark.slow
def test_an_engine_in_two_parts_can_be_written_to_another_file_system(
    large: bool, exported: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary folder lies elsewhere than the destination, as /tmp does where it is in memory."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    move = Path.replace

    def within_one_file_system(self: Path, target: Path) -> Path:
        if tmp_path not in self.parents or tmp_path not in Path(target).parents:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return move(self, target)

    monkeypatch.setattr(Path, "replace", within_one_file_system)
    if large:
        monkeypatch.setattr(finalize, "LARGE", 0)
    out = tmp_path / "new" / "m.trt"
    report = build_engine(exported.path, flavour="tensorrt-rtx", out=out, check=False)
    names = {"m.trt", "m.trt.json", "m.trt.log", "m.trt.rest.onnx", *(["m.trt.rest.onnx.data"] if large else [])}
    assert {p.name for p in out.parent.iterdir()} == names
    with open_session(second_stage_path(report.path)) as session:
        assert session.outputs
    build_engine(
        write_cell_model(tmp_path / "one.onnx", spec=cell_spec()), flavour="tensorrt-rtx", out=out, check=False
    )
    assert not [p for p in out.parent.iterdir() if "rest" in p.name]  # it was of the engine before


@pytest.mark.slow
def test_masks_that_magnify_rounding_are_held_to_what_float32_can_do(tmp_path: Path) -> None:
    model = model_of()
    predictor = model.module.get_submodule("roi_heads.mask_head.predictor")
    assert isinstance(predictor, nn.Conv2d)
    predictor.weight.mul_(3000)
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok
    assert report.parity.tolerance.max_score > 1e-4
    assert any("float32 alone moves" in note and "masks" in note for note in report.parity.notes)


@pytest.mark.slow
@no_gpu
def test_a_network_that_finds_nothing_has_reference_values_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = model_of()
    strict = replace(model.spec.thresholds, conf=0.99)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", options=asked(strict))
    assert report.parity is not None
    assert {m.expected for m in report.parity.matchings if m.what == "detections"} == {0}
    assert all(d.count > 0 for d in report.parity.differences)
    assert compare(report.path, report.path).ok  # of no detections too
    expected = ReferenceOutputs.load(
        reference_values_path(build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path).path)
    )
    assert all(len(rows) > 3 for rows in expected.rows["m.onnx"].values())


@pytest.mark.slow
def test_thresholds_are_those_that_were_asked_for(tmp_path: Path) -> None:
    model = model_of()
    limits = replace(model.spec.thresholds, conf=0.2, iou=0.1, max_det=7)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", options=asked(limits))
    assert report.parity is not None
    assert report.parity.ok
    assert report.spec.thresholds == limits
    with open_session(report.path) as session:
        found = session.run({"images": torch.randn(1, 3, 64, 64).numpy()})
    assert found["boxes"].shape == (1, 7, 4)
    used = found["scores"][0] > 0
    assert used.any()
    assert (found["scores"][0][used] > 0.2).all()


def test_masks_that_are_no_numbers_are_refused(exported: ExportReport, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expect({"m.onnx": open_session(exported.path)}, exported.spec, make_parity_inputs(exported.spec, ()))
    with open_session(exported.path) as session:
        run = session.run

        def broken(inputs: Any) -> dict[str, Any]:
            found = run(inputs)
            found["masks"] = found["masks"].copy()
            found["masks"][0, 0, 3, 3] = np.nan
            return found

        assert check_expected(expected, "it", session, exported.spec).ok
        monkeypatch.setattr(session, "run", broken)
        parity = check_expected(expected, "it", session, exported.spec)
    assert not parity.ok
    assert {d.values for d in parity.differences if not d.ok} == {"masks"}
