"""Candidates of heads without anchors: chosen before the decode, they are the rows that decoding everything gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from deploykit.errors import ParityError
from deploykit.export.nms.candidates import Candidates, RowSelection
from deploykit.export.nms.free_candidates import FreeSelection, with_free_selection
from deploykit.export.nms.one_to_one import free_head, with_head
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.inputs import sample_image
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.points import RawLevel
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel
from deploykit.spec import RawDetections
from tests.free_networks import FREE, free_network


def with_nms(name: str) -> ReferenceModel:
    """A network whose rows NMS follows."""
    return free_network(name, branch="one2many")


@pytest.mark.parametrize("name", FREE)
def test_chosen_cells_are_the_rows_that_decoding_everything_gives(name: str) -> None:
    model = with_nms(name)
    fused, layout = fuse_model(model.module), model.spec.output
    assert isinstance(layout, RawDetections)
    images = torch.from_numpy(np.random.default_rng(1).random((2, 3, 64, 128), np.float32))
    with torch.inference_mode():
        given = fused(images)
        rows = given if isinstance(given, Tensor) else given[0]
        for count in (1, 40, rows.shape[1]):
            expected = RowSelection(layout, count)(given)
            found = Candidates(*with_free_selection(fused, layout, count)(images))
            for part in Candidates._fields:
                torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-6, atol=1e-4)
            assert (found.labels == expected.labels).all()
            both = with_free_selection(fused, layout, count, rows=True)(images)
            torch.testing.assert_close(both[0], rows)
            assert all(torch.equal(a, b) for a, b in zip(both[1:], found, strict=True))


def damaged(raw: list[RawLevel], part: str, value: float, place: tuple[int, int, int]) -> list[RawLevel]:
    """Put a value into a channel, row and column of the finest level."""
    values = getattr(raw[0], part).clone()
    values[:, place[0], place[1], place[2]] = value
    return [raw[0]._replace(**{part: values}), *raw[1:]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["box", "cls", "extra"])
def test_a_cell_that_is_no_number_is_never_chosen(part: str, value: float) -> None:
    model = with_nms("pose")
    fused, layout = fuse_model(model.module), model.spec.output
    assert isinstance(layout, RawDetections)
    head = free_head(fused)
    assert head is not None
    raw_of = head.raw

    def raw(features: tuple[Tensor, ...]) -> list[RawLevel]:
        return damaged(raw_of(features), part, value, (1, 2, 3))

    head.raw = raw  # type: ignore[method-assign, assignment]
    with torch.inference_mode():
        found = Candidates(*with_free_selection(fused, layout, 84)(torch.rand(1, 3, 64, 64)))
    assert torch.nonzero(found.all_scores[0] == -1).flatten().tolist() == [2 * 8 + 3]
    assert float(found.scores[0, -1]) == -1
    assert all(torch.isfinite(part).all() for part in found)


def test_at_equal_scores_the_lower_cell_comes_first() -> None:
    head = FreeDetect(2, (8, 8, 8), reg_max=1).eval()
    head.set_stride((8, 16, 32))
    raw = [RawLevel(torch.ones(1, 4, n, n), torch.zeros(1, 2, n, n), None) for n in (4, 2, 1)]
    found = FreeSelection(head, RawDetections(obj=None, cls=(4, 6)), 5).of_raw(raw)
    assert found.labels.tolist() == [[0] * 5]
    middles = (found.boxes[0, :, :2] + found.boxes[0, :, 2:]) / 2
    assert middles.tolist() == [[4, 4], [12, 4], [20, 4], [28, 4], [4, 12]]


@pytest.mark.parametrize(("name", "mode"), [("face", "graph"), ("segment26", "graph"), ("oriented", "basic")])
def test_an_export_is_verified_and_decodes_only_what_it_chooses(name: str, mode: str, tmp_path: Path) -> None:
    model, options = with_nms(name), OnnxOptions(conf=0.3, pre_nms_topk=50, max_det=40)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=96, nms=mode, options=options)  # type: ignore[arg-type]
    assert report.parity is not None
    assert sum(m.matched for m in report.parity.matchings) > 90
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(report.path))).graph.value_info
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in inferred]
    columns = model.spec.output.columns
    assert [1, 50, columns] in shapes
    assert [1, 189, columns] not in shapes
    with load(report.path) as predictor:
        assert len(predictor(sample_image())) > 5


def test_an_export_that_chooses_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_raw: Callable[..., Candidates] = FreeSelection.of_raw

    def wrong(self: FreeSelection, raw: list[RawLevel]) -> Candidates:
        return of_raw(self, [raw[1], raw[0], raw[2]])

    monkeypatch.setattr(FreeSelection, "of_raw", wrong)
    with pytest.raises(ParityError, match=r"m\.onnx"):
        onnx_from_model(with_nms("detect"), out=tmp_path / "m.onnx", img=64, nms="graph")
    assert not list(tmp_path.iterdir())


def test_the_network_keeps_its_own_head() -> None:
    fused = fuse_model(with_nms("detect").module)
    layout = with_nms("detect").spec.output
    assert isinstance(layout, RawDetections)
    with_free_selection(fused, layout, 10)
    head = free_head(fused)
    assert type(head) is FreeDetect
    assert free_head(with_head(fused, head)) is head
