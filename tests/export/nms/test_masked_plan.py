"""NMS inside of networks whose masks are made of prototypes, and of keypoints without visibility."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from deploykit.errors import ParityError, UsageError
from deploykit.export.graph.trace import export_to_ir
from deploykit.export.options import NmsMode, OnnxOptions, PrecisionOptions
from deploykit.export.parity.compare import compare
from deploykit.export.plugins_check import expected_outputs
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load, open_session
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.postprocess.nms import numpy_nms
from deploykit.runtime.results.detection import Result
from deploykit.spec import Dynamic, NmsOutputs, RawDetections, Thresholds
from tests.asked import asked
from tests.masked_network import KEYPOINTS, masked_model, posed_model

LIMITS = Thresholds(conf=0.3, iou=0.4, max_det=20, pre_nms_topk=60)
MODES: dict[NmsMode, Dynamic] = {"none": "none", "graph": "none", "basic": "batch"}


def exports(model: ReferenceModel, folder: Path) -> dict[NmsMode, ExportReport]:
    return {
        mode: onnx_from_model(model, out=folder / f"{mode}.onnx", nms=mode, dynamic=dynamic, options=asked(LIMITS))
        for mode, dynamic in MODES.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[NmsMode, ExportReport]:
    return exports(masked_model(), tmp_path_factory.mktemp("masked"))


def photographs() -> list[np.ndarray]:
    """Images that need padding, shrinking and enlarging."""
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 12), (16, 8), (64, 64))]
    return [*small, cv2.resize(small[0], (120, 90), interpolation=cv2.INTER_CUBIC)]


def found(report: ExportReport) -> list[Result]:
    with load(report.path) as predictor:
        return [predictor(image) for image in photographs()]


def test_the_outputs_are_coefficients_of_the_kept_and_all_prototypes(files: dict[NmsMode, ExportReport]) -> None:
    for mode, batch in (("graph", 1), ("basic", "batch")):
        report = files[mode]
        assert [str(t) for t in report.outputs] == [
            f"num_dets int32 ({batch}, 1)", f"boxes float32 ({batch}, 20, 4)", f"scores float32 ({batch}, 20)",
            f"labels int32 ({batch}, 20)", f"coefficients float32 ({batch}, 20, 4)",
            f"num_candidates int32 ({batch}, 1)", f"prototypes float32 ({batch}, 4, 16, 16)",
        ]  # fmt: skip
        assert report.spec.output == NmsOutputs(coefficients="coefficients", prototypes="prototypes")
        onnx.checker.check_model(str(report.path))


def test_every_way_gives_the_same_objects_and_masks(files: dict[NmsMode, ExportReport]) -> None:
    expected = found(files["none"])
    assert sum(map(len, expected)) > 10
    for mode in ("graph", "basic"):
        for ours, theirs in zip(found(files[mode]), expected, strict=True):
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.scores, theirs.scores)
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            assert ours.masks is not None
            assert theirs.masks is not None
            np.testing.assert_array_equal(ours.masks, theirs.masks)
    with open_session(files["graph"].path) as session:
        outputs = session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})
    assert not outputs["coefficients"][0, int(outputs["num_dets"][0, 0]) :].any()  # empty slots are zero


def test_each_is_verified_with_its_masks(files: dict[NmsMode, ExportReport]) -> None:
    for mode in ("graph", "basic"):
        parity = files[mode].parity
        assert parity is not None
        assert parity.ok
        assert {d.values for d in parity.differences} == {"boxes", "scores", "masks"}
        assert all(d.count >= 20 * 16 * 16 for d in parity.differences if d.values == "masks")
        assert all(m.min_mask == 1.0 for m in parity.matchings if m.what == "detections")


@pytest.mark.parametrize("mode", ["graph", "basic"])
@pytest.mark.parametrize("part", ["head.proto.cv3.bn", "head.cv4.0.2"])
def test_a_file_with_other_masks_is_refused(
    part: str, mode: NmsMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = masked_model().module
    with torch.no_grad():
        wrong.get_parameter(f"{part}.bias").add_(1e-2)
    heads = {"wrong": fuse_model(wrong)}

    def traced(module: nn.Module, *rest: object) -> object:
        """The plan's module around the folded network: a sequence of it and the selection."""
        module.get_submodule("module").register_module("0", heads["wrong"])
        return export_to_ir(module, *rest)  # type: ignore[arg-type]  # the arguments of the caller

    monkeypatch.setattr("deploykit.export.to_onnx.export_to_ir", traced)
    with pytest.raises(ParityError, match=r"masks of m\.onnx differ from"):
        onnx_from_model(masked_model(), out=tmp_path / "m.onnx", nms=mode, options=asked(LIMITS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_compare_takes_rows_and_detections_in_any_mixture(files: dict[NmsMode, ExportReport], tmp_path: Path) -> None:
    for a, b in (("none", "graph"), ("none", "basic"), ("graph", "basic")):
        report = compare(files[a].path, files[b].path)
        assert report.ok, report.worst
        assert all(d.count > 0 for d in report.differences if d.values == "masks")
        assert "masks" in {d.values for d in report.differences}
    model = masked_model()
    with torch.no_grad():
        model.module.get_parameter("head.proto.cv3.bn.bias").add_(1e-2)
    other = onnx_from_model(model, out=tmp_path / "m.onnx", nms="graph", options=asked(LIMITS))
    for a in ("none", "basic"):
        report = compare(files[a].path, other.path)
        assert {d.values for d in report.differences if not d.ok} == {"masks"}


def test_half_precision_goes_with_it(tmp_path: Path) -> None:
    options = replace(asked(LIMITS), precision=PrecisionOptions("fp16"))
    report = onnx_from_model(masked_model(), out=tmp_path / "m.onnx", nms="graph", options=options)
    assert report.parity is not None
    assert report.parity.ok
    assert {str(t).split()[1] for t in report.outputs} == {"float32", "int32"}


@pytest.mark.parametrize(("maps", "dynamic"), [(4, "batch"), (6, "none"), (6, "shape")])
def test_the_node_carries_coefficients_as_points(maps: int, dynamic: Dynamic, tmp_path: Path) -> None:
    """What surrounds the node runs in ONNX Runtime; the node itself is its definition in numpy."""
    model = masked_model(maps=maps)
    asked_for = {"options": asked(LIMITS), "dynamic": dynamic}
    report = onnx_from_model(model, out=tmp_path / "plugin.onnx", nms="plugin", **asked_for)  # type: ignore[arg-type]
    assert report.parity is not None
    assert report.parity.ok
    assert {d.values for d in report.parity.differences} == {"boxes", "scores", "masks"}
    assert [t.name for t in report.outputs][4:] == ["coefficients", "num_candidates", "prototypes"]
    quick = replace(asked(LIMITS), exporter="legacy")
    none = onnx_from_model(model, out=tmp_path / "none.onnx", options=quick, check=False)
    whole = onnx.load(str(report.path))
    place = next(place for place, node in enumerate(whole.graph.node) if node.op_type == "NmsKpt")
    node = whole.graph.node[place]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    points, dims = (2, 2) if maps == 4 else (2, 3)
    assert (attributes["num_keypoints"], attributes["kpt_dims"]) == (points, dims)
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    with open_session(none.path) as session:
        raw = session.run({"images": image})
    layout = model.spec.output
    assert isinstance(layout, RawDetections)
    posed = replace(layout, keypoints=layout.coefficients, kpt_dims=dims, coefficients=None, prototypes=None)
    given = expected_outputs(raw[layout.name], posed, LIMITS, points)
    assert given["num_dets"].item() > 2
    after = helper.make_model(
        helper.make_graph(
            whole.graph.node[place + 1 :],
            "after",
            [helper.make_tensor_value_info(node.output[4], onnx.TensorProto.FLOAT, given["keypoints"].shape)],
            [output for output in whole.graph.output if output.name == "coefficients"],
            [tensor for tensor in whole.graph.initializer if tensor.name.startswith("nms_")],
        ),
        opset_imports=whole.opset_import,
        ir_version=whole.ir_version,
    )
    (tmp_path / "after.onnx").write_bytes(after.SerializeToString())
    with open_session(tmp_path / "after.onnx") as session:
        (found,) = session.run({node.output[4]: given["keypoints"]}).values()
    assert layout.coefficients is not None
    kept = numpy_nms(raw[layout.name][0], layout, LIMITS).rows
    np.testing.assert_array_equal(found[0, : len(kept)], raw[layout.name][0][kept, slice(*layout.coefficients)])
    assert not found[0, len(kept) :].any()


def test_a_number_of_coefficients_that_the_node_cannot_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 are neither: use --nms graph or basic"):
        onnx_from_model(masked_model(maps=5), out=tmp_path / "m.onnx", options=OnnxOptions(nms="plugin"))


@pytest.mark.slow
def test_keypoints_without_visibility_go_through_every_form(tmp_path: Path) -> None:
    files = exports(posed_model(), tmp_path)
    expected = found(files["none"])
    assert sum(map(len, expected)) > 10
    for mode in ("graph", "basic"):
        parity = files[mode].parity
        assert parity is not None
        assert {d.values for d in parity.differences} == {"boxes", "scores", "keypoints"}
        assert all(d.count > 0 for d in parity.differences)
        for ours, theirs in zip(found(files[mode]), expected, strict=True):
            assert ours.keypoints is not None
            assert ours.keypoints.shape == (len(ours), len(KEYPOINTS), 3)
            assert (ours.keypoints[..., 2] == 1).all()
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.keypoints, theirs.keypoints)
        assert compare(files["none"].path, files[mode].path).ok
    report = onnx_from_model(posed_model(), out=tmp_path / "plugin.onnx", nms="plugin", options=asked(LIMITS))
    node = onnx.load(str(report.path)).graph.node[-1]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.op_type, attributes["kpt_dims"], attributes["num_keypoints"]) == ("NmsKpt", 2, len(KEYPOINTS))
    assert report.parity is not None
    assert report.parity.ok
