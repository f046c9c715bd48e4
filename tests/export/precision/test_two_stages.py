"""Reduced precision of detectors in two stages: what computes on boxes stays fp32, and detections and masks agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploykit.export.graph.split import split
from deploykit.export.matching import Matching
from deploykit.export.options import Calibration, OnnxOptions, Precision, PrecisionOptions
from deploykit.export.parity import nms as parity_nms
from deploykit.export.parity.tolerances import BF16, FP16
from deploykit.export.precision import half
from deploykit.export.precision.half_rules import boxes, compute_nodes, second_stage
from deploykit.export.precision.qdq import quantisable
from deploykit.export.report import ExportReport
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import evaluate, load
from deploykit.models.families.vitdet.mask_rcnn import CASCADE
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.postprocess.masks import run_lengths
from deploykit.runtime.session import open_session
from tests.export.test_instances import CONFIG, model_of
from tests.models.families import test_vit_mask_rcnn

SMALL = replace(CONFIG, depth=2, global_blocks=(1,), conv_blocks=())
F32, INT64 = TensorProto.FLOAT, TensorProto.INT64


def exported_as(
    precision: Precision, folder: Path, model: ReferenceModel | None = None, **options: Any
) -> ExportReport:
    asked = PrecisionOptions(precision, **options)
    return onnx_from_model(model or model_of(SMALL), out=folder / "m.onnx", options=OnnxOptions(precision=asked))


def types_of(file: Path) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(file))).graph
    known = {t.name: t.data_type for t in graph.initializer}
    return known | {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return exported_as("fp16", tmp_path_factory.mktemp("fp16"))


@pytest.mark.slow
def test_layers_are_half_and_boxes_are_not(fp16: ExportReport) -> None:
    report = fp16
    assert report.precision is not None
    assert report.precision.half is not None
    assert set(report.precision.computes) == {"fp16"}
    assert report.precision.half.kept["boxes"]
    assert report.parity is not None
    assert report.parity.ok
    assert {d.candidate for d in report.parity.differences} == {"m.onnx", "fp16 in torch"}
    assert {d.values for d in report.parity.differences} == {"boxes", "scores", "masks"}
    assert all(m.matched > 3 for m in report.parity.matchings)
    types = types_of(report.path)
    seen = []
    for node in onnx.load(str(report.path)).graph.node:
        count = {"RoiAlign": 2, "NonMaxSuppression": 2, "TopK": 1, "Exp": 1}.get(node.op_type, 0)
        assert all(types[name] == F32 for name in node.input[:count]), node.name
        seen += [node.op_type] * bool(count)
    assert set(seen) == {"RoiAlign", "NonMaxSuppression", "TopK", "Exp"}
    assert any(types[name] == TensorProto.FLOAT16 for name in types)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("model", ["plain", "cascade", "four maps"])
def test_every_kind_agrees_in_half_precision(precision: Precision, model: str, tmp_path: Path) -> None:
    kinds = {"plain": model_of, "cascade": lambda: model_of(weights=CASCADE), "four maps": test_vit_mask_rcnn.narrow}
    report = exported_as(precision, tmp_path, kinds[model]())
    assert report.precision is not None
    assert set(report.precision.computes) == {precision}
    assert report.parity is not None
    assert report.parity.ok
    assert all(m.matched > m.expected / 2 > 3 for m in report.parity.matchings)  # some are borderline


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(4):
        cv2.imwrite(str(folder / f"{number}.png"), chance.integers(0, 256, (90, 120, 3), np.uint8))
    return folder


@pytest.mark.slow
def test_int8_is_of_the_first_stage(images: Path, tmp_path: Path) -> None:
    report = exported_as("int8", tmp_path, calibration=Calibration(images))
    assert report.precision is not None
    quantised = report.precision.quantised
    assert quantised is not None
    first = [quantised.labels[layer] for layer in (*quantised.done.layers, *quantised.done.kept)]
    assert not [label for label in first if not label.startswith(("backbone.", "proposal_generator."))]
    assert 0 < quantised.error < 1  # summed over all that the second stage takes
    assert report.precision.computes["int8"] == len(quantised.done.layers) > 10
    assert report.parity is not None
    assert {d.values for d in report.parity.differences} == {"boxes", "scores", "masks"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_other_quantized_files_run(precision: Precision, images: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"target": "cpu"} if precision == "int8" else {}
    report = exported_as(precision, tmp_path, calibration=Calibration(images), nodes_to_exclude="none", **more)
    assert report.precision is not None
    assert report.precision.computes[precision] > 10


@pytest.mark.slow
def test_the_ap_of_masks_is_kept(images: Path, tmp_path: Path) -> None:
    """The detections of the fp32 file are the truth, so that its own AP is near to 100, and what others lose shows."""
    pytest.importorskip("hotcoco", reason="the extra eval is not installed")
    (tmp_path / "fp32").mkdir()
    exact = exported_as("fp32", tmp_path / "fp32")
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(exact.spec.classes)]
    with load(exact.path) as predictor:
        for number in range(4):
            truth["images"].append({"id": number, "file_name": f"{number}.png", "width": 120, "height": 90})
            result = predictor(images / f"{number}.png")
            assert result.masks is not None
            for box, label, mask in zip(result.boxes.tolist(), result.labels.tolist(), result.masks, strict=True):
                entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": label + 1}
                entry |= {"iscrowd": 0, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                entry |= {"area": int(mask.sum()), "segmentation": run_lengths(mask)}
                truth["annotations"] += [entry] * bool(mask.any())
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    found = {"fp32": evaluate(exact.path, file, images=images).metrics["AP"]}
    for precision, options in (("fp16", {}), ("int8", {"calibration": Calibration(images)})):
        (tmp_path / precision).mkdir()
        report = exported_as(precision, tmp_path / precision, **options)  # type: ignore[arg-type]  # of the line above
        found[precision] = evaluate(report.path, file, images=images).metrics["AP"]
    assert found["fp32"] > 0.8  # empty masks are no annotations
    assert found["fp16"] > found["fp32"] - 0.1
    assert found["int8"] > 0.2  # random weights magnify rounding; a detector that finds other boxes is near to 0


# The rule.


def looking_up() -> onnx.ModelProto:
    """A box per anchor of 1000 px, moved by what a convolution gives, looked up on the maps of another one."""
    chance = np.random.default_rng(0)
    weights = {
        "maps.w": chance.normal(size=(5, 3, 3, 3)),
        "deltas.w": chance.normal(size=(4, 5, 1, 1)) / 8,
        "head.w": chance.normal(size=(20, 6)),
        "anchors": np.tile([600.0, 610.0, 900.0, 1000.0], (64, 1)) + chance.uniform(0, 1, (64, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "maps.w"], ["maps"], "maps", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["maps", "deltas.w"], ["deltas"], "deltas"),
        helper.make_node("Transpose", ["deltas"], ["moved"], "moved", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["moved", "rows"], ["flat"], "flat"),
        helper.make_node("Add", ["flat", "anchors"], ["rois"], "rois"),
        helper.make_node("RoiAlign", ["maps", "rois", "images"], ["cells"], "cells", output_height=2, output_width=2,
                         sampling_ratio=0, spatial_scale=1 / 128),
        helper.make_node("Reshape", ["cells", "features"], ["values"], "values"),
        helper.make_node("MatMul", ["values", "head.w"], ["head"], "head"),
        helper.make_node("Sigmoid", ["head"], ["out"], "out"),
    ]  # fmt: skip
    stored = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    stored += [
        numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("rows", [64, 4]), ("features", [64, 20]))
    ]
    stored.append(numpy_helper.from_array(np.zeros(64, np.int64), "images"))
    graph = helper.make_graph(
        nodes,
        "looking up",
        [helper.make_tensor_value_info("x", F32, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", F32, [64, 6]), helper.make_tensor_value_info("rois", F32, [64, 4])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def graph_of(model: onnx.ModelProto) -> ir.Model:
    graph = ir.serde.deserialize_model(model)
    return half._types(graph) and graph


def test_box_arithmetic_is_what_leads_to_layers_through_coordinates_alone() -> None:
    graph = graph_of(looking_up())
    nodes = list(graph.graph)
    layers = compute_nodes(nodes)
    assert [node.name for node in layers] == ["maps", "deltas", "head"]
    names = {str(node.name) for node in boxes(nodes, layers)}
    assert names == {"moved", "flat", "rois", "cells", "values"}
    assert {str(node.name) for node in second_stage(nodes)} == {"cells", "values", "head", "out"}
    assert [node.name for node in quantisable(graph.graph)] == ["maps", "deltas"]


def test_without_a_lookup_there_is_no_box_arithmetic_between_layers() -> None:
    model = looking_up()
    model.graph.node[5].op_type = "Identity"
    graph = ir.serde.deserialize_model(model)
    assert boxes(list(graph.graph), compute_nodes(graph.graph)) == set()


def test_coordinates_keep_their_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    with OnnxInTorchSession(graph_of(looking_up())) as session:
        exact = session.run({"x": x})
    errors = []
    for rule in (half.boxes, lambda nodes, layers: set()):
        monkeypatch.setattr(half, "boxes", rule)
        graph = graph_of(looking_up())
        half.to_half(graph, "fp16", largest={})
        with OnnxInTorchSession(graph) as session:
            errors.append(float(np.abs(session.run({"x": x})["rois"] - exact["rois"]).max()))
    assert errors[0] < 0.01  # of deltas of up to 4 px
    assert errors[1] > 0.2  # half a step at 900 px is 0.25


# The operators in torch.


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(1, 3), st.floats(0.1, 0.9))
def test_suppression_in_torch_is_that_of_onnx_runtime(seed: int, count: int, classes: int, iou: float) -> None:
    chance = np.random.default_rng(seed)
    corners = chance.uniform(0, 20, (2, count, 2, 2))
    feeds = {
        "boxes": np.concatenate((corners.min(2), corners.max(2)), 2).astype(np.float32),
        "scores": chance.permuted(np.tile(np.arange(count, dtype=np.float32), (2, classes, 1)), axis=2) - 2,
    }
    values = {"most": np.array([count]), "iou": np.array([iou], np.float32), "least": np.zeros(1, np.float32)}
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["chosen"])
    both(node, feeds, values, ("chosen", INT64))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1, 4, 16]), st.sampled_from([2, 7]))
def test_roi_align_in_torch_is_that_of_onnx_runtime(seed: int, stride: int, size: int) -> None:
    chance = np.random.default_rng(seed)
    corners = chance.uniform(-3, 12 * stride, (5, 2, 2))
    rois = np.concatenate((corners.min(1), corners.max(1)), 1).astype(np.float32)
    rois[0] = 0  # of another level
    feeds = {"maps": chance.normal(size=(2, 3, 9, 11)).astype(np.float32), "rois": rois}
    values = {"images": chance.integers(0, 2, 5)}
    node = helper.make_node("RoiAlign", ["maps", "rois", "images"], ["cells"], output_height=size, output_width=size,
                            sampling_ratio=0, spatial_scale=1 / stride)  # fmt: skip
    found = both(node, feeds, values, ("cells", F32))
    assert not found[0].any()


def both(node: Any, feeds: dict[str, Any], values: dict[str, Any], output: tuple[str, int]) -> Any:
    """Run a node in torch and in ONNX Runtime, compare, and return what torch gave."""
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, F32, list(value.shape)) for name, value in feeds.items()],
        [helper.make_tensor_value_info(*output, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    import onnxruntime

    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    with OnnxInTorchSession(ir.serde.deserialize_model(model)) as session:
        found = session.run(feeds)[output[0]]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    return found


# What is judged.


@pytest.mark.parametrize(
    ("limits", "matched", "ok"),
    [
        (FP16, 20, True),
        (FP16, 19, True),
        (FP16, 18, False),
        (BF16, 18, True),
        (BF16, 17, False),
        (Tolerance(), 19, False),
    ],
)
def test_one_pair_of_few_may_lack_its_partner_in_half_precision(limits: Tolerance, matched: int, ok: bool) -> None:
    matching = Matching("a", "b", "c", "detections", 20, 20, matched, 0, 1.0, 0.0, None, limits)
    assert parity_nms._with_proposals(matching).ok is ok


@pytest.mark.slow
def test_both_stages_of_a_half_file_are_the_whole(fp16: ExportReport, tmp_path: Path) -> None:
    """Maps go from one to the other in half precision, which is half of the bytes."""
    report = fp16
    first, rest = split(report.path)
    assert {value.dtype for value in first.graph.outputs} == {ir.DataType.FLOAT16}
    for graph, name in ((first, "first.onnx"), (rest, "rest.onnx")):
        ir.save(graph, tmp_path / name)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    with open_session(report.path) as whole, open_session(tmp_path / "first.onnx") as one:
        between = one.run({"images": image})
        with open_session(tmp_path / "rest.onnx") as two:
            found = two.run({info.name: between[info.name] for info in two.inputs})
        expected = whole.run({"images": image})
    assert int(found["num_dets"][0, 0]) > 3
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=0.02)
    np.testing.assert_array_equal(found["labels"], expected["labels"])
