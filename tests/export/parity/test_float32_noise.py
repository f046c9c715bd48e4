"""Networks that magnify rounding: held to what float32 can do, and to no more than that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ParityError
from deploykit.export import to_onnx
from deploykit.export.parity import float32_noise as rounding
from deploykit.export.parity.float32_noise import MOST, eased
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.families.yolox.model import reference_of
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.parity.expected import Expected
from deploykit.runtime.parity.tolerance import Tolerance
from tests.narrow import CLASSES, model_of, yolox_network
from tests.narrow_dense import narrow_dense

LIMITS = Tolerance()


def magnifying(factor: float) -> ReferenceModel:
    """Every objectness is a difference of large numbers: their rounding is ``factor`` times as large as usual."""
    network = yolox_network("few-yolox")
    with torch.no_grad():
        for last in network.head.obj_preds:
            last.weight *= factor  # type: ignore[operator]
    return reference_of(network, "magnifying", CLASSES, 64)


def export(model: ReferenceModel, out: Path, **options: Any) -> Any:
    return onnx_from_model(model, out=out, exporter="legacy", **options)


def test_a_network_that_magnifies_rounding_is_held_to_what_float32_can_do(tmp_path: Path) -> None:
    known: list[Expected] = []
    report = export(magnifying(3000), tmp_path / "m.onnx", on_expected=known.append)
    limits = report.parity.tolerance
    assert report.parity.ok
    factor = limits.probability / LIMITS.probability
    assert 2 < factor <= MOST
    assert (limits.pixels, limits.relative) == pytest.approx((1e-3 * factor, 1e-5 * factor))
    (note,) = (n for n in report.parity.notes if "PyTorch in float32" in n)
    assert note == (
        f"PyTorch in float32 uses {factor / 2:.3g} times the limits itself: they are {factor:.3g} times as wide here"
    )
    assert known[0].limits == limits
    known[0].save(tmp_path / "known.npz")
    assert Expected.load(tmp_path / "known.npz").limits == limits


class Coarse(nn.Module):
    """Logits that are differences of large numbers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return (12 * logits / logits.abs().max() + 40_000) - 40_000


def test_probabilities_of_classes_are_held_to_what_float32_can_do(tmp_path: Path) -> None:
    model = narrow_dense("resnet18")
    model = replace(model, module=Coarse(model.module))
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    assert report.parity is not None
    factor = report.parity.tolerance.dense / LIMITS.dense
    assert 2 < factor <= MOST
    assert report.parity.tolerance.max_score == pytest.approx(LIMITS.max_score * factor)
    assert max(m.max_score or 0.0 for m in report.parity.matchings) > LIMITS.max_score


def test_other_networks_keep_the_limits(tmp_path: Path) -> None:
    report = export(model_of("few-yolox"), tmp_path / "m.onnx")
    assert report.parity.tolerance == LIMITS
    assert not [note for note in report.parity.notes if "float32" in note]


@pytest.mark.parametrize("factor", [1.0, 3000.0])
def test_a_wrong_file_is_refused_all_the_same(factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its boxes are a tenth of a pixel off, whatever rounding does to the others."""
    model = magnifying(factor)
    wrong = yolox_network("few-yolox")
    wrong.load_state_dict(model.module.state_dict())
    for last in wrong.head.reg_preds:
        last.bias[:2] += 0.1 / 8  # type: ignore[index]
    traced = to_onnx.traced
    monkeypatch.setattr(to_onnx, "traced", lambda module, *rest: traced(to_onnx.fuse_model(wrong), *rest))
    with pytest.raises(ParityError, match=r"boxes of m\.onnx differ"):
        export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_beyond_the_widest_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MOST", 1.001)
    with pytest.raises(ParityError, match=r"scores of m\.onnx differ"):
        export(magnifying(3000), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("share", "factor"), [(0.5, None), (1.0, None), (1.5, 3.0), (20.0, 40.0), (30.0, MOST), (1e9, MOST)]
)
def test_limits_grow_by_twice_the_share_and_not_beyond(share: float, factor: float | None) -> None:
    wider = eased(LIMITS, share)
    if factor is None:
        assert wider is None
        return
    assert wider is not None
    assert np.allclose([wider.pixels, wider.relative, wider.probability], [1e-3 * factor, 1e-5 * factor, 1e-5 * factor])
    assert wider.max_score == LIMITS.max_score  # of detections


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_what_is_no_number_eases_nothing(share: float) -> None:
    assert eased(LIMITS, share) is None


def test_reference_values_of_older_files_have_the_limits_of_fp32(tmp_path: Path) -> None:
    known: list[Expected] = []
    export(model_of("few-yolox"), tmp_path / "m.onnx", on_expected=known.append)
    file = tmp_path / "known.npz"
    replace(known[0], limits=Tolerance(1.0, 1.0, 1.0)).save(file)
    with np.load(file) as arrays:
        content = dict(arrays)
    about = json.loads(content["about"].tobytes())
    del about["limits"]
    content["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(file, **content)
    assert Expected.load(file).limits == LIMITS
