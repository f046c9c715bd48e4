"""Networks that magnify rounding: held to what float32 can do, and to no more than that."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from deploykit.errors import ParityError
from deploykit.export import to_onnx
from deploykit.export.matching import Matching
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.float32_noise import SAFETY_FACTOR, Float32Cost, relaxed_tolerance
from deploykit.export.parity.report import ParityReport
from deploykit.export.step_timer import StepTimer
from deploykit.export.to_onnx import VerifiedExport, export_model, onnx_from_model
from deploykit.models.families.yolox.model import reference_of
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.backends import ort
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.parity.spread import QUANTILES
from deploykit.runtime.parity.tolerance import Tolerance
from tests.narrow import CLASSES, model_of, yolox_network
from tests.narrow_dense import narrow_dense

FP32 = Tolerance()


class Coarse(nn.Module):
    """A module whose output is a difference of large numbers: multiples of 1/256, whatever computes it in float32."""

    def __init__(self, module: nn.Module, largest: float | None = None) -> None:
        super().__init__()
        self.module, self.largest = module, largest

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.module(images)
        if self.largest is not None:
            found = self.largest * found / found.abs().max()
        return (found + 40_000) - 40_000


def magnifying() -> ReferenceModel:
    """The objectness of 4 cells of 84 is coarse."""
    network = yolox_network("few-yolox")
    network.head.obj_preds[-1] = Coarse(network.head.obj_preds[-1])
    return reference_of(network, "magnifying", CLASSES, 64)


def verified(model: ReferenceModel, out: Path) -> VerifiedExport:
    return export_model(model, OnnxOptions(), out=out, timer=StepTimer())


def export(model: ReferenceModel, out: Path) -> Any:
    return verified(model, out).report


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The optimization levels with which files are opened in ONNX Runtime."""
    seen: list[str] = []
    opened = ort.open_session

    def looking(path: Path, **options: Any) -> ort.OrtSession:
        seen.append(options.get("optimization", "all"))
        return opened(path, **options)

    monkeypatch.setattr(ort, "open_session", looking)
    return seen


def test_a_network_that_magnifies_rounding_is_held_to_what_float32_can_do(tmp_path: Path, levels: list[str]) -> None:
    done = verified(magnifying(), tmp_path / "m.onnx")
    report: Any = done.report
    assert done.reference is not None
    limits = report.parity.tolerance
    assert report.parity.ok
    assert limits.probability > 3 * FP32.probability
    assert (limits.pixels, limits.relative) == (FP32.pixels, FP32.relative)  # of its boxes nothing is magnified
    (note,) = (n for n in report.parity.notes if "float32" in n)
    assert f"may be off by {limits.probability:.3g}" in note
    assert "boxes" not in note
    assert done.reference.limits == limits
    assert levels == ["all", "all", "extended", "none", "all"]  # checked, then itself at every level, then again
    done.reference.save(tmp_path / "known.npz")
    assert ReferenceOutputs.load(tmp_path / "known.npz").limits == limits


def test_probabilities_of_classes_are_held_to_what_float32_can_do(tmp_path: Path) -> None:
    model = narrow_dense("resnet18")
    model = replace(model, module=Coarse(model.module, 12))
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.tolerance.dense > 3 * FP32.dense
    assert report.parity.tolerance.max_score > FP32.max_score
    assert max(m.max_score or 0.0 for m in report.parity.matchings) > FP32.max_score


def test_other_networks_keep_the_tolerances(tmp_path: Path, levels: list[str]) -> None:
    report = export(model_of("few-yolox"), tmp_path / "m.onnx")
    assert report.parity.tolerance == FP32
    assert not [note for note in report.parity.notes if "float32" in note]
    assert levels == ["all"]


def _moved_boxes(head: nn.Module) -> None:
    """A tenth of a pixel."""
    for last in head.reg_preds:  # type: ignore[union-attr]
        last.bias[:2] += 0.1 / 8  # type: ignore[index]


def _moved_scores(head: nn.Module) -> None:
    """Less than what float32 does to the worst of them, but all of them."""
    for last in head.obj_preds:  # type: ignore[union-attr]
        (last.module if isinstance(last, Coarse) else last).bias += 0.01  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("healthy", "damage", "what"),
    [(True, _moved_boxes, "boxes"), (False, _moved_boxes, "boxes"), (False, _moved_scores, "scores")],
)
def test_a_wrong_file_is_refused_all_the_same(
    healthy: bool, damage: Callable[[nn.Module], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("few-yolox") if healthy else magnifying()
    wrong = copy.deepcopy(model.module)
    damage(wrong.head)
    traced = to_onnx.export_to_ir
    monkeypatch.setattr(to_onnx, "export_to_ir", lambda module, *rest: traced(to_onnx.fuse_model(wrong), *rest))
    with pytest.raises(ParityError, match=rf"{what} of m\.onnx differ"):
        export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def cost(
    used: float = 0.5, *, values: str = "scores", score: float = 0.0, keypoint: float = 0.0, spread: float = 0.1
) -> Float32Cost:
    """A measurement by hand: one kind of value on one input."""
    return Float32Cost.of({"PyTorch": [_report(used, values, (spread,) * len(QUANTILES), score, keypoint)]})


def _report(
    used: float, values: str, spread: tuple[float, ...], score: float = 0.0, keypoint: float = 0.0
) -> ParityReport:
    names = ("the checkpoint", "PyTorch", "noise")
    difference = Difference(*names, values, 10, used * 1e-5, used, (0, 0, 0.0, 0.0), spread=spread)
    matching = Matching(*names, "detections", 1, 1, 1, 0, 1.0, score, keypoint)
    return ParityReport({}, (difference,), (matching,))


@pytest.mark.parametrize("share", [0.0, 0.3, 1 / SAFETY_FACTOR])
def test_what_float32_leaves_room_for_widens_nothing(share: float) -> None:
    assert relaxed_tolerance(FP32, cost(share)) is None


@pytest.mark.parametrize("share", [0.5, 1.0, 30.0, 1e4])
def test_a_tolerance_grows_with_what_float32_needs_of_it_and_no_other_does(share: float) -> None:
    scores = relaxed_tolerance(FP32, cost(share))
    assert scores == replace(FP32, probability=pytest.approx(SAFETY_FACTOR * share * 1e-5))
    boxes = relaxed_tolerance(FP32, cost(share, values="boxes"))
    assert boxes is not None
    assert (boxes.pixels, boxes.relative) == pytest.approx((SAFETY_FACTOR * share * 1e-3, SAFETY_FACTOR * share * 1e-5))
    assert boxes.same_box >= boxes.pixels
    assert boxes.probability == FP32.probability
    masks = relaxed_tolerance(FP32, cost(share, values="masks"))
    assert masks == replace(FP32, max_score=pytest.approx(SAFETY_FACTOR * share * 1e-4))


def test_matched_detections_may_move_as_far_as_float32_moves_them() -> None:
    assert relaxed_tolerance(FP32, cost(0.1, score=2e-4)) == replace(FP32, max_score=pytest.approx(6e-4))
    assert relaxed_tolerance(FP32, cost(0.1, keypoint=0.1)) == replace(FP32, max_keypoint=pytest.approx(0.3))


def test_rounding_explains_a_few_values_and_not_all_of_them() -> None:
    measured = cost(30.0, spread=0.5)  # the worst is 30 times its tolerance off, half of all are within half of it
    assert measured.explains(_report(80.0, "scores", (0.5, 0.9, 1.4)))
    assert not measured.explains(_report(80.0, "scores", (0.5, 0.9, 1.6)))
    assert not measured.explains(_report(2.0, "boxes", (1.1, 1.1, 1.1)))  # which were not measured to need anything


@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_what_is_no_number_widens_nothing(share: float) -> None:
    assert relaxed_tolerance(FP32, cost(share)) is None


def test_reference_values_of_older_files_have_the_limits_of_fp32(tmp_path: Path) -> None:
    known = verified(model_of("few-yolox"), tmp_path / "m.onnx").reference
    assert known is not None
    file = tmp_path / "known.npz"
    replace(known, limits=Tolerance(1.0, 1.0, 1.0)).save(file)
    with np.load(file) as arrays:
        content = dict(arrays)
    about = json.loads(content["about"].tobytes())
    del about["limits"]
    content["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(file, **content)
    assert ReferenceOutputs.load(file).limits == FP32
