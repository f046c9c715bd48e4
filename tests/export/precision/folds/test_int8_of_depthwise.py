"""int8 exports of networks with depthwise layers: what is folded, what it brings, and what the options leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import UsageError
from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.precision.folds import Scaled
from deploykit.export.precision.quantize import QuantReport
from deploykit.export.precision.trials import Trials, forget
from tests.export.precision.test_half_search import export, model_of
from tests.export.precision.test_quantize import SPEC

WIDTH = 16


class Separable(nn.Module):
    """Depthwise layers behind channels whose ranges differ by up to 64 times, all of which matter equally."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = 2.0 ** torch.linspace(-3, 3, WIDTH)
        layers: list[nn.Module] = []
        for channels in (3, WIDTH, WIDTH):
            wide, deep = nn.Conv2d(channels, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
            with torch.no_grad():
                wide.weight.mul_(sizes[torch.randperm(WIDTH)].reshape(-1, 1, 1, 1))
                deep.weight.div_(wide.weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
            layers += [wide, activation(), deep, activation()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(WIDTH, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images)
        return found


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("images")
    chance = np.random.default_rng(0)
    for i in range(8):
        small = chance.integers(0, 256, (6, 9, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(small, (48, 32), interpolation=cv2.INTER_CUBIC))
    return Calibration(folder, method="minmax")


def quantised(out: Path, activation: Callable[[], nn.Module], **options: Any) -> QuantReport:
    report = export(out, model_of(Separable(activation)), "int8", nodes_to_exclude="none", **options)
    assert report.precision is not None
    assert report.precision.quantised is not None
    return report.precision.quantised


@pytest.mark.parametrize(
    ("activation", "name", "products"),
    [(nn.ReLU, "equalise channels", 0), (nn.Hardswish, "equalise before 3 depthwise layers", 3)],
    ids=["ReLU", "Hardswish"],
)
def test_what_is_folded_lowers_the_error_and_is_told(
    activation: Callable[[], nn.Module], name: str, products: int, tmp_path: Path, calibration: Calibration
) -> None:
    plain = quantised(tmp_path / "plain.onnx", activation, calibration=calibration, folds="none")
    assert (plain.folds, plain.corrected) == (None, None)
    assert not {"folded", "corrected"} & dict(plain.lines()).keys()
    done = quantised(tmp_path / "done.onnx", activation, calibration=calibration)
    assert done.folds is not None
    assert done.corrected is not None
    (taken,) = done.folds.taken
    assert taken.startswith(name)
    assert done.error is not None
    assert plain.error is not None
    assert done.error < 0.7 * plain.error
    assert done.error == (done.corrected.after if done.corrected.taken else done.errors["minmax"])
    assert {"folded", "corrected"} <= dict(done.lines()).keys()
    kinds = [[n.op_type for n in onnx.load(str(tmp_path / f)).graph.node] for f in ("plain.onnx", "done.onnx")]
    assert kinds[1].count("Mul") - kinds[0].count("Mul") == products


def test_folds_are_chosen_by_name(tmp_path: Path, calibration: Calibration) -> None:
    found = quantised(tmp_path / "x.onnx", nn.ReLU, calibration=calibration, folds=("correct",))
    assert found.folds is None
    assert found.corrected is not None
    found = quantised(tmp_path / "x.onnx", nn.ReLU, calibration=calibration, folds=("equalise",))
    assert found.folds is not None
    assert found.corrected is None
    with pytest.raises(UsageError, match=r"folds are auto, none, or some of equalise, smooth, correct, got \('x',\)"):
        PrecisionOptions("int8", calibration=calibration, folds=("x",))
    with pytest.raises(UsageError, match="--folds goes with --precision int8 and fp8, not with fp16"):
        PrecisionOptions("fp16", folds="none")


def test_with_as_many_images_as_are_compared_nothing_is_corrected(tmp_path: Path, calibration: Calibration) -> None:
    few = Calibration(calibration.source, size=4, method="minmax")
    assert quantised(tmp_path / "x.onnx", nn.ReLU, calibration=few).corrected is None


def test_what_does_not_help_with_the_ranges_of_all_images_is_left_out(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse_with_folds(self: Trials, *asked: Any) -> list[float]:
        return [2.0 if self.changes else 1.0] * len(self.images)

    plain = quantised(tmp_path / "plain.onnx", nn.ReLU, calibration=calibration, folds="none", cache=False)
    first = Trials.error_with
    monkeypatch.setattr(Trials, "error_with", lambda self, changes: 0.5 if changes else first(self, changes))
    monkeypatch.setattr(Trials, "errors", worse_with_folds)
    done = quantised(tmp_path / "done.onnx", nn.ReLU, calibration=calibration, folds=("equalise",), cache=False)
    assert done.folds is not None
    assert (done.folds.taken, done.folds.dropped) == ((), ("equalise channels",))
    assert "equalise channels was left out" in dict(done.lines())["folded"]
    assert done.ranges == plain.ranges
    weights = [
        {t.name: t.raw_data for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer}
        for name in ("plain", "done")
    ]
    assert weights[0] == weights[1]


def test_graphs_share_their_weights_with_the_one_that_becomes_the_file(
    tmp_path: Path, calibration: Calibration
) -> None:
    export(tmp_path / "x.onnx", model_of(Separable(nn.ReLU)), "fp32")
    model, options = ir.load(tmp_path / "x.onnx"), PrecisionOptions("int8", calibration=calibration, cache=False)
    trials = Trials(model, tmp_path / "x.onnx", SPEC, options, [])

    def weights(of: ir.Model) -> dict[str, Any]:
        return {name: value.const_value for name, value in of.graph.initializers.items()}

    assert list(map(id, weights(trials.graph()).values())) == list(map(id, weights(model).values()))
    node = next(node for node in model.graph if node.op_type == "Conv")
    trials.changes = {(str(node.name), 1): (Scaled(0, np.full(WIDTH, 2, np.float32)),)}
    folded, plain = weights(trials.graph()), weights(model)
    name = str(node.inputs[1].name if node.inputs[1] else "")
    np.testing.assert_array_equal(folded[name].numpy(), 2 * plain[name].numpy())
    assert [one for one in folded if folded[one] is not plain[one]] == [name]
    trials.settle()
    assert weights(trials.graph())[name] is weights(model)[name]
    np.testing.assert_array_equal(weights(model)[name].numpy(), folded[name].numpy())
    forget(trials.graph())
    assert weights(trials.graph())[name] is not None
