"""int8 exports of networks with depthwise layers: what is folded, what it brings, and what the options leave out."""

from __future__ import annotations

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

from deploykit.errors import FoldError, UsageError
from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.precision import trials as trials_module
from deploykit.export.precision.calibration import calibration_images
from deploykit.export.precision.folds import Scaled, digest_of_changes
from deploykit.export.precision.folds.choose import choose_folds
from deploykit.export.precision.folds.equalise import Equalise
from deploykit.export.precision.observed import ObservedGraph
from deploykit.export.precision.quantize import QuantReport
from deploykit.export.precision.trials import Trials, forget
from deploykit.progress import SILENT
from tests.export.precision.test_convert import spec_in
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
    monkeypatch.setattr(Trials, "error_with", lambda self, changes, _: 0.5 if changes else first(self, changes))
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


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardswish])
def test_one_run_of_each_image_measures_what_there_is_with_folds_and_without(
    activation: Callable[[], nn.Module], tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, runs = tmp_path / "x.onnx", []
    export(file, model_of(Separable(activation)), "fp32")
    model, options = ir.load(file), PrecisionOptions("int8", calibration=calibration)
    images = calibration_images(calibration, spec_in(file), 4)
    trials, apart, later = (Trials(model, file, spec_in(file), options, images) for _ in range(3))
    changes, report = choose_folds(model, images, trials.error_with, trials.peaks, folds=[Equalise()])
    assert report is not None
    assert report.taken
    choose_folds(model, images, later.error_with, later.peaks, folds=[Equalise()])
    run = ObservedGraph._run
    monkeypatch.setattr(ObservedGraph, "_run", lambda *asked: runs.append(1) or run(*asked))
    found = trials.calibrated(changes, SILENT)
    assert len(runs) == 4 + 4  # those of the comparison, with the folds, and those that were not run before
    expected = apart.calibrated({}, SILENT) | apart.calibrated(changes, SILENT)
    assert len(runs) == 4 + 4 + 8 + 8
    assert found.keys() == expected.keys()
    for digest, one in expected.items():
        assert found[digest].largest == one.largest
        for name, counts in one.counts.items():
            np.testing.assert_array_equal(found[digest].counts[name], counts)
    assert found[b""].largest != found[digest_of_changes(changes)].largest
    kept = later.calibrated(changes, SILENT)
    assert {digest: (one.cached, one.largest) for digest, one in kept.items()} == {
        digest: (True, one.largest) for digest, one in found.items()
    }


def test_a_fold_that_scales_otherwise_than_it_says_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    file = tmp_path / "x.onnx"
    export(file, model_of(Separable(nn.ReLU)), "fp32")
    model, options = ir.load(file), PrecisionOptions("int8", calibration=calibration, cache=False)
    trials = Trials(model, file, spec_in(file), options, calibration_images(calibration, spec_in(file), 4))
    node = next(node for node in model.graph if node.op_type == "Conv")
    changes = {(str(node.name), 1): (Scaled(0, np.full(WIDTH, 2, np.float32)),)}
    trials.peaks({}, ())
    assert trials.error_with(changes, {}) > 0
    with pytest.raises(FoldError, match="a fold moved the output"):
        trials.calibrated(changes, SILENT)


def test_choices_are_made_on_few_of_large_images_and_the_last_errors_are_of_all(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = quantised(tmp_path / "full.onnx", nn.ReLU, calibration=calibration, folds="none", cache=False)
    monkeypatch.setattr(trials_module, "PIXELS", 16 * 32)  # images of 32x32 are large, and two have as many as four
    few = quantised(tmp_path / "few.onnx", nn.ReLU, calibration=calibration, folds="none", cache=False)
    assert few.ranges == full.ranges
    assert few.whole == pytest.approx(full.whole)
    assert full.whole == full.errors["minmax"] != pytest.approx(few.errors["minmax"])


@pytest.mark.parametrize(
    ("side", "ranked", "corrected"),
    [(320, [0, 1, 2], [2, 3]), (640, [0, 1, 2], [2, 3]), (800, [0, 1], [2]), (960, [1], [0]), (2000, [1], [0])],
)
def test_layers_are_ranked_on_fewer_images_the_larger_they_are(
    side: int, ranked: list[int], corrected: list[int], tmp_path: Path, calibration: Calibration
) -> None:
    """One image has to be that of the larger error: where nothing is found nothing can be told."""
    options, asked = PrecisionOptions("int8", calibration=calibration, cache=False), []

    class Asked(Trials):
        def _parts(self, ranges: Any, kept: Any, numbers: Any, progress: Any) -> tuple[float, dict[str, float]]:
            asked.append(list(numbers))
            return 1.0, {}

    spec = replace(SPEC, input=replace(SPEC.input, size=(side, side)))
    empty = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    trials = Asked(empty, tmp_path / "x.onnx", spec, options, [np.zeros(1, np.float32)] * 4)
    errors = [0.1, 0.3, 0.2, 0.2][: trials.few]
    trials.parts({}, (), errors, SILENT)
    trials.parts({}, ("layer",), errors, SILENT)
    assert asked == [ranked, corrected]


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
