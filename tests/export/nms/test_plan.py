"""Exports with NMS inside: verified, refused where they must be, and the same objects whichever way they are found."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.errors import ParityError, UsageError
from deploykit.export import to_onnx
from deploykit.export.engine.build import build_engine
from deploykit.export.graph.trace import export_to_ir
from deploykit.export.nms import plan as nms_plan
from deploykit.export.nms.graph import CONF, IOU
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.compare import compare
from deploykit.export.parity.inputs import sample_image
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import export_onnx, onnx_from_model
from deploykit.facade import load, open_session
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import reference_values_path
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.spec import ModelSpec, NmsOutputs, RawDetections, Thresholds
from tests.asked import asked
from tests.narrow import model_of

MODEL = {"num_keypoints": 3, "objectness": 3.0}
LIMITS = Thresholds(conf=0.3, iou=0.4, max_det=40, pre_nms_topk=150)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportReport]:
    """One network with NMS outside and inside of it, with a fixed and with a free batch."""
    folder = tmp_path_factory.mktemp("nms")
    model = model_of("few", **MODEL)
    reports = {
        mode: onnx_from_model(
            model, out=folder / f"{mode}.onnx", img=64, nms=mode, dynamic=dynamic, options=asked(LIMITS)
        )
        for mode, dynamic in (("none", "none"), ("graph", "none"), ("basic", "batch"))
    }
    reports["plugin"] = onnx_from_model(model, out=folder / "plugin.onnx", img=64, nms="plugin", options=asked(LIMITS))
    return reports


def test_each_is_verified_on_detections_and_on_the_best_rows(files: dict[str, ExportReport]) -> None:
    for mode in ("graph", "basic"):
        parity = files[mode].parity
        assert parity is not None
        assert parity.ok
        assert {m.what for m in parity.matchings} == {"detections", "best rows"}
        assert {d.values for d in parity.differences} == {"boxes", "scores", "keypoints", "visibility"}
        assert sum(m.matched for m in parity.matchings if m.what == "detections") > 50
        assert min(m.matched for m in parity.matchings if m.what == "best rows") == 40


def test_the_outputs_are_those_of_the_contract(files: dict[str, ExportReport]) -> None:
    contract = [
        "num_dets int32 ({b}, 1)", "boxes float32 ({b}, 40, 4)", "scores float32 ({b}, 40)", "labels int32 ({b}, 40)",
        "keypoints float32 ({b}, 40, 3, 3)", "num_candidates int32 ({b}, 1)",
    ]  # fmt: skip
    for mode, batch in (("graph", 1), ("basic", "batch"), ("plugin", 1)):
        report = files[mode]
        assert [str(t) for t in report.outputs] == [t.format(b=batch) for t in contract]
        assert isinstance(report.spec.output, NmsOutputs)
        assert report.spec.thresholds == LIMITS
        onnx.checker.check_model(str(report.path))


def test_every_way_finds_the_same_objects(files: dict[str, ExportReport]) -> None:
    """The predictor reads from the spec what it gets."""
    results = {}
    for mode in ("none", "graph", "basic"):
        with load(files[mode].path) as predictor:
            results[mode] = predictor(sample_image())
    expected = results.pop("none")
    assert len(expected) > 10
    for found in results.values():
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        assert expected.keypoints is not None
        np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-3)
        assert found.truncated == expected.truncated


def test_slots_of_a_batch_are_independent(files: dict[str, ExportReport]) -> None:
    images = np.random.default_rng(2).random((3, 3, 64, 64), np.float32)
    with open_session(files["basic"].path) as session:
        together = session.run({"images": images})
        for i in range(3):
            for name, value in session.run({"images": images[i : i + 1]}).items():
                np.testing.assert_allclose(together[name][i], value[0], atol=1e-3, err_msg=name)


def test_compare_takes_rows_and_detections_in_any_mixture(files: dict[str, ExportReport]) -> None:
    for a, b in (("none", "graph"), ("none", "basic"), ("graph", "basic")):
        report = compare(files[a].path, files[b].path)
        assert report.ok, report.worst
        assert sum(m.matched for m in report.matchings) > 10


def test_plugin_is_two_nodes_with_the_frozen_attributes(files: dict[str, ExportReport]) -> None:
    model = onnx.load(str(files["plugin"].path))
    decode, node = list(model.graph.node)[-2:]
    assert (decode.domain, decode.op_type) == ("deploykit", "DecodeRows")
    assert {a.name: onnx.helper.get_attribute_value(a) for a in decode.attribute} == {
        "num_classes": 2, "num_keypoints": 3, "strides": [8, 16], "plugin_version": b"1",
        "plugin_namespace": b"deploykit",
        "anchors": [12, 16, 19, 36, 40, 28, 36, 75, 76, 55, 72, 146],
    }  # fmt: skip
    assert list(decode.output) == list(node.input)
    assert (node.domain, node.op_type) == ("deploykit", "NmsKpt")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {
        "conf": pytest.approx(0.3), "iou": pytest.approx(0.4), "max_det": 40, "pre_nms_topk": 150, "num_classes": 2,
        "num_keypoints": 3, "kpt_dims": 3, "has_obj": 1, "plugin_version": b"1", "plugin_namespace": b"deploykit",
    }  # fmt: skip
    assert {entry.domain for entry in model.opset_import} == {"", "deploykit"}


def test_only_where_the_class_does_not_count_the_node_says_so(tmp_path: Path) -> None:
    model = model_of("few", num_classes=1, objectness=3.0)
    for cls_counts, expected in ((True, {}), (False, {"cls_counts": 0})):
        spec = replace(model.spec, output=RawDetections(cls_counts=cls_counts))
        report = onnx_from_model(replace(model, spec=spec), out=tmp_path / "m.onnx", img=64, nms="plugin")
        node = onnx.load(str(report.path)).graph.node[-1]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert {k: v for k, v in attributes.items() if k in ("cls_counts",)} == expected
        assert (attributes["has_obj"], attributes["num_classes"]) == (1, 1)


def test_of_a_plugin_at_least_the_rows_before_it_are_verified(files: dict[str, ExportReport]) -> None:
    report = files["plugin"]
    assert report.parity is not None
    assert {d.values for d in report.parity.differences} == {"boxes", "scores", "keypoints", "visibility"}
    assert sorted(p.name for p in report.path.parent.glob("*plugin*")) == ["plugin.onnx", "plugin.onnx.parity.json"]


def test_only_the_candidates_are_decoded(files: dict[str, ExportReport]) -> None:
    """No tensor after the choice has a row for each of the 240 cells with all its columns."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(files["graph"].path)))
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.value_info]
    assert [1, 150, 16] in shapes
    assert [1, 240, 16] not in shapes


def test_the_command_lines_thresholds_are_the_files(checkpoint: Path, tmp_path: Path) -> None:
    report = export_onnx(
        checkpoint,
        img=64,
        out=tmp_path / "m.onnx",
        nms="graph",
        options=OnnxOptions(conf=0.6, iou=0.2, max_det=7, pre_nms_topk=50),
    )
    limits = report.spec.thresholds
    assert (limits.conf, limits.iou, limits.max_det, limits.pre_nms_topk) == (0.6, 0.2, 7, 50)
    with load(report.path) as predictor:
        result = predictor(sample_image())
    assert len(result) <= 7
    assert (result.scores > 0.6).all()
    with pytest.raises(UsageError, match=r"NMS is inside this network with iou 0.2"):
        load(report.path, iou=0.5)


# The gate: a graph that decides wrongly is not kept.

TRACED: list[bytes] = []
"""The network before the choice of detections, which is the same each time."""


def traced_once(*arguments: Any) -> ir.Model:
    if not TRACED:
        TRACED.append(ir.to_proto(export_to_ir(*arguments)).SerializeToString())
    return ir.from_proto(onnx.ModelProto.FromString(TRACED[0]))


@pytest.mark.parametrize(
    ("first", "second", "right", "wrong"),
    [
        ("nms_overlap", IOU, "Greater", "Less"),
        ("candidate_scores", CONF, "Greater", "Less"),
        ("nms_rank_column", "nms_rank_row", "Less", "Greater"),
    ],
    ids=["iou", "conf", "order"],
)
def test_a_graph_that_decides_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, right: str, wrong: str
) -> None:
    append = nms_plan.append_nms

    def damaged(model: ir.Model, *rest: Any) -> None:
        append(model, *rest)
        (node,) = (n for n in model.graph if [v.name for v in n.inputs if v is not None] == [first, second])
        assert node.op_type == right
        node.op_type = wrong

    monkeypatch.setattr(nms_plan, "append_nms", damaged)
    monkeypatch.setattr(to_onnx, "export_to_ir", traced_once)
    limits = replace(LIMITS, max_det=150)  # where a list is full, what is at its end is excused
    with pytest.raises(ParityError, match=r"m\.onnx"):
        onnx_from_model(model_of("few", **MODEL), out=tmp_path / "m.onnx", img=64, nms="basic", options=asked(limits))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_detects_nothing_is_verified_on_its_best_rows(tmp_path: Path) -> None:
    """Random weights find nothing: then the open thresholds are what makes the check one.

    The network has fewer rows than there may be candidates.
    """
    model = model_of("few", num_keypoints=3)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=64, nms="graph")
    assert report.parity is not None
    assert report.parity.ok
    assert sum(m.matched for m in report.parity.matchings if m.what == "detections") == 0
    assert min(m.matched for m in report.parity.matchings if m.what == "best rows") == 100
    assert report.spec.thresholds.pre_nms_topk == 1000
    with open_session(report.path) as session:
        found = session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})
    assert found["boxes"].shape == (1, 300, 4)


# What cannot be.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (OnnxOptions(dynamic="shape"), "--nms graph needs a fixed image size"),
        (OnnxOptions(exporter="legacy"), "--nms graph needs --exporter dynamo"),
        (OnnxOptions(pre_nms_topk=4000), "--pre-nms-topk is at most 3840 inside a graph, got 4000"),
        (OnnxOptions(max_det=5000), "--max-det is at most 3840"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: OnnxOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        onnx_from_model(model_of("few", **MODEL), out=tmp_path / "m.onnx", img=64, nms="graph", options=options)


def test_a_threshold_that_is_none_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"conf must lie in 0..1, got 2"):
        export_onnx(checkpoint, img=64, out=tmp_path / "m.onnx", options=OnnxOptions(conf=2.0))


# Engines.


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="on a GPU tests/gpu builds engines and runs them")
def test_basic_operators_build_where_there_is_no_nms_layer(files: dict[str, ExportReport], tmp_path: Path) -> None:
    report = build_engine(files["basic"].path, flavour="tensorrt-rtx", out=tmp_path)
    assert report.record.profiles[0].max == (8, 3, 64, 64)
    expected = ReferenceOutputs.load(reference_values_path(report.path))
    assert isinstance(expected.layout, RawDetections)
    assert len(expected.rows["basic.onnx"][next(iter(expected.feeds.images))]) > 10


def test_the_specs_of_all_ways_have_the_same_meaning(files: dict[str, ExportReport]) -> None:
    specs = {
        replace(r.spec, output=RawDetections(cls=(5, 7), keypoints=(7, 16)), input=r.spec.input) for r in files.values()
    }
    assert len({ModelSpec.to_json(replace(s, input=replace(s.input, dynamic="none"))) for s in specs}) == 1
