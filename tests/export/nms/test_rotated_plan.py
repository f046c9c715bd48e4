"""Exports of oriented boxes with NMS inside: verified, and the same objects whichever way they are found."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ParityError, UsageError
from deploykit.export.engine.build import build_engine
from deploykit.export.nms import plan as nms_plan
from deploykit.export.nms.graph import IOU
from deploykit.export.options import NmsMode
from deploykit.export.parity.compare import compare
from deploykit.export.parity.inputs import sample_image
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.engine_record import reference_values_path
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.postprocess.rotated import hulls_of
from deploykit.spec import InputSpec, ModelSpec, NmsOutputs, RawDetections, Thresholds
from tests.asked import asked
from tests.output_error import output_error

LAYOUT = RawDetections(obj=None, cls=(4, 6), angle=(6, 7))
LIMITS = Thresholds(conf=0.5, iou=0.5, max_det=60, pre_nms_topk=200)


class Oriented(nn.Module):
    """Rows of two classes, one a cell of 4 pixels, whose boxes are turned by what the image shows there."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.head = nn.Conv2d(3, 7, 4, stride=4, bias=False)
        self.head.weight.data.normal_(0, 0.3, generator=generator)
        cells = torch.arange(16, dtype=torch.float32) * 4 + 2
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("places", torch.stack((x, y)).flatten(1).T)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.head(images).flatten(2).transpose(1, 2)
        centres = self.get_buffer("places") + raw[..., :2].tanh() * 3
        sides = raw[..., 2:4].exp() * torch.tensor([9.0, 4.0])
        angles = (raw[..., 6:].sigmoid() - 0.25) * torch.pi
        return torch.cat((centres, sides, raw[..., 4:6].sigmoid(), angles), -1)


def exported(folder: Path, mode: NmsMode, thresholds: Thresholds = LIMITS, **more: Any) -> ExportReport:
    spec = ModelSpec("oriented", InputSpec(size=(64, 64)), LAYOUT, ("ship", "plane"))
    model = ReferenceModel("oriented", "test", Oriented().eval(), spec)
    return onnx_from_model(model, out=folder / f"{mode}.onnx", nms=mode, options=asked(thresholds), **more)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportReport]:
    """With NMS outside and inside of it, with a fixed and with a free batch."""
    folder = tmp_path_factory.mktemp("oriented")
    modes: dict[NmsMode, str] = {"none": "none", "graph": "none", "basic": "batch"}
    return {mode: exported(folder, mode, dynamic=dynamic) for mode, dynamic in modes.items()}


def test_each_is_verified_on_detections_and_on_the_best_rows(files: dict[str, ExportReport]) -> None:
    for mode in ("graph", "basic"):
        parity = files[mode].parity
        assert parity is not None
        assert parity.ok
        assert {m.what for m in parity.matchings} == {"detections", "best rows"}
        assert {d.values for d in parity.differences} == {"boxes", "scores", "angles"}
        assert sum(m.matched for m in parity.matchings if m.what == "detections") > 20
        assert min(m.matched for m in parity.matchings if m.what == "best rows") == 60


def test_the_outputs_have_angles(files: dict[str, ExportReport]) -> None:
    contract = [
        "num_dets int32 ({b}, 1)", "boxes float32 ({b}, 60, 4)", "scores float32 ({b}, 60)", "labels int32 ({b}, 60)",
        "angles float32 ({b}, 60)", "num_candidates int32 ({b}, 1)",
    ]  # fmt: skip
    for mode, batch in (("graph", 1), ("basic", "batch")):
        report = files[mode]
        assert [str(t) for t in report.outputs] == [t.format(b=batch) for t in contract]
        assert report.spec.output == NmsOutputs(angles="angles")
        assert report.spec.output.describe(report.spec).startswith("cx cy w h and an angle in radians, after NMS")
        graph = onnx.load(str(report.path))
        onnx.checker.check_model(graph, full_check=True)
        assert not {node.op_type for node in graph.graph.node} & {"NonMaxSuppression", "Loop"}


def test_every_way_finds_the_same_objects(files: dict[str, ExportReport]) -> None:
    results = {}
    for mode in ("none", "graph", "basic"):
        with load(files[mode].path) as predictor:
            results[mode] = predictor(sample_image())
    expected = results.pop("none")
    assert len(expected) > 10
    assert expected.rotated is not None
    for found in results.values():
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(found.rotated, expected.rotated, atol=2e-3)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=2e-3)
        assert found.truncated == expected.truncated
    with load(files["graph"].path, conf=0.7, classes=["ship"]) as predictor:
        fewer = predictor(sample_image())
    assert set(fewer.labels) == {0}
    assert fewer.rotated is not None
    assert 0 < len(fewer) < len(expected)
    whole = np.clip(hulls_of(fewer.rotated), 0, np.array([fewer.size[1], fewer.size[0]] * 2))
    np.testing.assert_allclose(fewer.boxes, whole, atol=1e-3)


def test_compare_takes_rows_and_detections_in_any_mixture(files: dict[str, ExportReport]) -> None:
    for a, b in (("none", "graph"), ("none", "basic"), ("graph", "basic")):
        report = compare(files[a].path, files[b].path)
        assert report.ok, report.worst
        assert sum(m.matched for m in report.matchings) > 10


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("nms_near", "Greater", "Less"), ("nms_better", "Less", "Greater"), ("nms_turn_sin", "Sub", "Add")],
    ids=["overlap", "order", "turn"],
)
def test_a_graph_that_decides_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str
) -> None:
    append = nms_plan.append_nms

    def damaged(model: ir.Model, *rest: Any) -> None:
        append(model, *rest)
        (node,) = (n for n in model.graph if n.name == name)
        assert node.op_type == right
        node.op_type = wrong

    monkeypatch.setattr(nms_plan, "append_nms", damaged)
    with pytest.raises(ParityError, match=r"basic\.onnx"):
        exported(tmp_path, "basic", Thresholds(conf=0.5, iou=0.5, max_det=256, pre_nms_topk=256))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_with_other_angles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = nms_plan.append_nms

    def damaged(model: ir.Model, *rest: Any) -> None:
        append(model, *rest)
        (node,) = (n for n in model.graph if n.name == "nms_used_angles")
        node.replace_input_with(1, node.inputs[2])  # all of them 0

    monkeypatch.setattr(nms_plan, "append_nms", damaged)
    with pytest.raises(ParityError, match=r"graph\.onnx"):
        exported(tmp_path, "graph")


def test_the_threshold_is_stored_where_the_check_opens_it(files: dict[str, ExportReport]) -> None:
    stored = {tensor.name for tensor in onnx.load(str(files["graph"].path)).graph.initializer}
    assert IOU in stored


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.skipif(gpu_unavailable_reason() is None, reason="on a GPU tests/gpu builds engines and runs them")
def test_the_operators_build_where_there_is_no_nms_layer(files: dict[str, ExportReport], tmp_path: Path) -> None:
    report = build_engine(files["basic"].path, flavour="tensorrt-rtx", out=tmp_path)
    expected = ReferenceOutputs.load(reference_values_path(report.path))
    assert expected.layout == LAYOUT
    assert len(expected.rows["basic.onnx"][next(iter(expected.feeds.images))]) > 10


def test_a_lower_precision_is_verified_with_its_angles(tmp_path: Path) -> None:
    report = exported(tmp_path, "graph", precision="fp16")
    assert report.parity is not None
    assert report.parity.ok
    assert {d.values for d in report.parity.differences} == {"boxes", "scores", "angles"}


def test_a_turn_is_an_error_and_half_a_turn_is_none() -> None:
    spec = ModelSpec("oriented", InputSpec(size=(64, 64)), LAYOUT, ("ship", "plane"))
    rows = np.array([[[30.0, 30, 20, 10, 0.9, 0, 0.4], [10, 10, 20, 10, 0, 0.8, 1.0]]], np.float32)
    turned, half = rows.copy(), rows.copy()
    turned[0, 0, 6] += 0.2
    half[..., 6] -= np.pi
    errors = [output_error(spec, {"output": rows}, {"output": other}) for other in (rows, half, turned)]
    assert errors == pytest.approx([0.0, 0.0, np.sin(0.2) / 2], abs=1e-6)


def test_the_plugin_is_of_upright_boxes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nms plugin is of upright boxes, and these are oriented: use --nms graph"):
        exported(tmp_path, "plugin")
