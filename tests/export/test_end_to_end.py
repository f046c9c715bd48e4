"""Exports of networks that choose their detections themselves: verified as sets, and on the rows that they hide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ParityError, UsageError
from deploykit.export.nms.one_to_one import free_head, model_of_rows, rows_chosen_from, with_head, without_choice
from deploykit.export.options import OnnxOptions, PrecisionOptions
from deploykit.export.parity.compare import check_expected, compare, expect
from deploykit.export.parity.inputs import make_parity_inputs, sample_image
from deploykit.export.parity.one_to_one import best_detections, chosen_reference
from deploykit.export.parity.report import ParityReport
from deploykit.export.report import ExportReport
from deploykit.export.sessions.torch_module import TorchSession
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load, open_session
from deploykit.models.families.ultralytics.heads.detect import MOST_DETECTIONS, FreeDetect
from deploykit.models.families.ultralytics.heads.points import Cells
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.parity.chosen_rows import UNPAIRED
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.spec import EndToEndRows, ModelSpec, RawDetections
from tests.free_networks import free_network

KINDS = ("detect26", "v10", "pose26", "segment26", "oriented26")
SIDE = 160
"""Pixels a side: the network has 525 cells, of which 300 detections are chosen."""


@cache
def network(name: str) -> tuple[ReferenceModel, ModelSpec, ReferenceOutputs]:
    """A network, its spec at this size, and its detections in float64, which follow from its rows."""
    model = free_network(name)
    spec = replace(model.spec, input=replace(model.spec.input, size=(SIDE, SIDE)))
    layout = rows_chosen_from(spec, model.module)
    assert layout is not None
    assert isinstance(spec.output, EndToEndRows)
    rows = replace(spec, output=layout)
    session = TorchSession(model_of_rows(model, layout).module, rows, exact=True)
    expected = expect({"the checkpoint": session}, rows, make_parity_inputs(spec))
    return model, spec, chosen_reference(expected, spec.output, MOST_DETECTIONS)


def checked(name: str, module: nn.Module) -> ParityReport:
    """Compare a module in float32 with the network of that name."""
    _, spec, expected = network(name)
    return check_expected(expected, "the candidate", TorchSession(module, spec), spec)


@pytest.mark.parametrize("name", KINDS)
def test_the_network_chooses_as_the_definition_does(name: str) -> None:
    model, _, expected = network(name)
    report = checked(name, fuse_model(model.module))
    assert report.ok, report.worst
    assert {d.values for d in report.differences} >= {"boxes", "scores", UNPAIRED}
    assert all(m.matched > 290 and m.expected == MOST_DETECTIONS for m in report.matchings)
    assert expected.layout.kind == "end-to-end"


Damage = Callable[[FreeDetect, Tensor], Tensor]


def with_another_stride(head: FreeDetect) -> FreeDetect:
    new = head.with_branch("one2one")
    new.stride = (head.stride[0] // 2, *head.stride[1:])  # the level of the most cells: some are among those chosen
    return new


class Damaged(nn.Module):
    """A head whose detections are changed."""

    def __init__(self, head: FreeDetect, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.change = head, change

    def forward(self, *features: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.head(*features)
        return (self.change(found[0]), *found[1:]) if isinstance(found, tuple) else self.change(found)


def scaled(place: int, by: float) -> Callable[[Tensor], Tensor]:
    """Multiply the values of row or column ``place`` of every image."""

    def change(found: Tensor) -> Tensor:
        new = found.clone()
        new[:, place] *= by
        return new

    return change


def last_column(found: Tensor) -> Tensor:
    new = found.clone()
    new[:, 20, -1] += 0.02
    return new


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "columns are swapped": lambda found: found[..., [1, 0, 3, 2, *range(4, found.shape[2])]],
    "the class is the next one": lambda found: found + torch.eye(found.shape[2])[5],
    "a row is lost": scaled(30, 0.0),
    "a row comes twice": lambda found: found[:, [*range(200), 100, *range(201, 300)]],
    "the list is shorter": lambda found: found[:, :200],
    "the last value of a row is another": last_column,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_found_out(name: str, change: str) -> None:
    if change.startswith("the last") and name in ("detect26", "v10"):
        pytest.skip("the last column is the class, which is changed by another case")
    model, _, _ = network(name)
    head = free_head(model.module)
    assert head is not None
    assert not checked(name, with_head(model.module, Damaged(head, CHANGES[change]))).ok


@pytest.mark.parametrize("name", KINDS)
def test_a_level_of_another_stride_is_found_out(name: str) -> None:
    model, _, _ = network(name)
    head = free_head(model.module)
    assert head is not None
    assert not checked(name, with_head(model.module, with_another_stride(head))).ok


def test_prototypes_are_compared_too() -> None:
    model, _, _ = network("segment26")
    module = with_head(model.module, Damaged(free_head(model.module), lambda found: found))  # type: ignore[arg-type]
    forward = module.forward
    module.forward = lambda images: (forward(images)[0], forward(images)[1].flip(3))  # type: ignore[method-assign]
    report = checked("segment26", module)
    assert {d.values for d in report.differences if not d.ok} == {"masks"}
    assert any(not m.ok for m in report.matchings)


def test_among_equal_scores_the_earlier_cell_comes_first() -> None:
    rows = np.zeros((5, 6))
    rows[:, 0] = np.arange(5)
    rows[:, 4:] = [[0.5, 0.4], [0.5, 0.5], [0.9, 0.1], [0.3, 0.2], [0.5, 0.0]]
    found, cells = best_detections(rows, RawDetections(obj=None, cls=(4, 6)), 3)
    assert cells.tolist() == [2, 0, 1]
    assert found[:, 4].tolist() == [0.9, 0.5, 0.5]
    assert found[:, 5].tolist() == [0, 0, 0]
    assert len(best_detections(rows, RawDetections(obj=None, cls=(4, 6)), 300)[0]) == 5


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """An export of free shape, whose images have fewer cells than there are detections, or more."""
    out = tmp_path_factory.mktemp("free") / "m.onnx"
    return onnx_from_model(free_network("pose26"), out=out, img=SIDE, dynamic="shape")


def test_it_is_verified_on_all_rows_and_on_what_it_chooses(file: ExportReport) -> None:
    assert file.parity is not None
    kinds = {d.values for d in file.parity.differences}
    assert kinds == {"boxes", "scores", "keypoints", "visibility", UNPAIRED}
    rows = [d for d in file.parity.differences if d.candidate == "m, all rows.onnx" and d.values == "scores"]
    assert max(d.count for d in rows) >= 525 * 3
    assert all(m.matched == m.expected == m.found for m in file.parity.matchings)
    assert sorted(p.name for p in file.path.parent.iterdir()) == ["m.onnx", "m.onnx.parity.json"]
    assert [str(t) for t in file.outputs] == ["output float32 (batch, detections, 18)"]


@pytest.mark.parametrize(("size", "rows"), [((32, 64), 42), ((160, 160), 300), ((320, 160), 300)])
def test_there_are_as_many_rows_as_the_image_has_cells(file: ExportReport, size: tuple[int, int], rows: int) -> None:
    images = np.random.default_rng(0).random((2, 3, *size), np.float32)
    with open_session(file.path) as session:
        found = session.run({"images": images})["output"]
        alone = session.run({"images": images[1:]})["output"]
    assert found.shape == (2, rows, 18)
    np.testing.assert_allclose(found[1], alone[0], atol=1e-3)
    assert (np.diff(found[..., 4], axis=1) <= 0).all()


def test_what_it_finds_is_what_the_network_finds(file: ExportReport) -> None:
    with load(file.path) as predictor:
        result = predictor(sample_image())
    assert len(result) > 10
    assert compare(file.path, file.path).ok


def test_a_choice_that_is_wrong_in_the_file_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best_of = FreeDetect.best_of

    def damaged(self: FreeDetect, cells: Cells) -> Tensor:
        return best_of(self, cells._replace(strides=cells.strides * 1.001))

    monkeypatch.setattr(FreeDetect, "best_of", damaged)
    with pytest.raises(ParityError, match=r"m\.onnx does not agree"):
        onnx_from_model(free_network("detect26"), out=tmp_path / "m.onnx", img=64)
    assert not list(tmp_path.iterdir())


def test_an_error_that_the_choice_hides_is_found_in_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of = FreeDetect.rows_of

    def damaged(self: FreeDetect, *cells: Tensor) -> Tensor:
        found = rows_of(self, *cells)
        if found.dtype == torch.float64:  # the reference
            return found
        return torch.where(torch.arange(found.shape[1])[:, None] == found[..., 4:7].amax(2).argmin(1), found + 1, found)

    monkeypatch.setattr(FreeDetect, "rows_of", damaged)
    with pytest.raises(ParityError, match="all rows"):
        onnx_from_model(free_network("detect26"), out=tmp_path / "m.onnx", img=SIDE)


@pytest.mark.parametrize("mode", ["graph", "basic", "plugin"])
def test_nms_after_it_is_refused_with_what_to_do(mode: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs no NMS: leave --nms out.*--head one2many"):
        onnx_from_model(free_network("v10"), out=tmp_path / "m.onnx", img=64, options=OnnxOptions(nms=mode))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_file_is_the_same_whether_it_is_checked_or_not(tmp_path: Path) -> None:
    files = [
        onnx_from_model(free_network("segment26"), out=tmp_path / f"{check}.onnx", img=64, check=check).path
        for check in (True, False)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_other_exporter_has_no_such_operator(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="v10-few chooses its detections itself, which needs --exporter dynamo"):
        onnx_from_model(free_network("v10"), out=tmp_path / "m.onnx", img=64, options=OnnxOptions(exporter="legacy"))


@pytest.mark.parametrize(("name", "precision"), [("segment26", "fp16"), ("detect26", "bf16")])
def test_half_precision_is_verified(name: str, precision: str, tmp_path: Path) -> None:
    options = PrecisionOptions(precision)  # type: ignore[arg-type]
    report = onnx_from_model(free_network(name), out=tmp_path / "m.onnx", img=SIDE, precision=options)
    assert report.parity is not None
    assert report.precision is not None
    assert report.parity.ok
    (output, *_) = onnx.load(str(report.path)).graph.output
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert UNPAIRED in {d.values for d in report.parity.differences}  # what the file chooses is compared too
    if precision == "fp16":  # which ONNX Runtime runs on a CPU
        with load(report.path) as predictor:
            assert len(predictor(sample_image())) > 10


def test_without_the_choice_it_gives_the_rows_of_every_cell() -> None:
    model, _, _ = network("v10")
    with torch.inference_mode():
        assert without_choice(model.module)(torch.zeros(1, 3, 64, 64)).shape == (1, 84, 7)
