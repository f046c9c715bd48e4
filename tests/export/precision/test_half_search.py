"""Networks that fp16 or bf16 alone breaks, and the nodes that a search keeps in fp32 for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploykit.errors import ParityError
from deploykit.export.options import OnnxOptions, PrecisionOptions
from deploykit.export.precision import convert_half as module
from deploykit.export.precision.search.minimal import EVERY, first_enough, smallest_set
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec
from tests.free_networks import free_network
from tests.masked_network import masked_model
from tests.narrow import model_of as few
from tests.narrow_dense import narrow_dense


class Offset(nn.Module):
    """A large offset that a later layer takes away: what half rounds at the offset is lost for good."""

    def __init__(self, offset: float, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth)))
        self.up = nn.Conv2d(8, 8, 1, groups=8)
        self.down = nn.Conv2d(8, 8, 1, groups=8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        for layer, weight, bias in ((self.up, 1.0, offset), (self.down, 0.5, -offset / 2)):
            nn.init.constant_(layer.weight, weight)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.body(self.stem(images)))
        found: Tensor = self.last(self.down(self.up(x)))
        return found


def model_of(module: nn.Module, task: Any = "restore") -> ReferenceModel:
    canvas = InputSpec(size=(32, 48), mean=(0.0,) * 3, std=(1.0,) * 3, fit=Fit(kind="pad", stride=1))
    return ReferenceModel(task, "test", module.eval(), ModelSpec(task, canvas, DenseOutput(name="image"), ()))


def export(out: Path, model: ReferenceModel, precision: Any = "fp16", **options: Any) -> ExportReport:
    asked = PrecisionOptions(precision, **{"cache": False, **options})
    return onnx_from_model(model, out=out, precision=asked, options=OnnxOptions(exporter="legacy"))


@pytest.mark.parametrize(("kind", "depth"), [("fp16", 2), ("bf16", 12)])
def test_the_layers_around_an_offset_stay_in_fp32(kind: str, depth: int, tmp_path: Path) -> None:
    """Neither alone helps: a Cast between the two rounds what a half tensor would."""
    model = model_of(Offset(300.0, depth))
    with pytest.raises(ParityError, match=f"{kind} in torch"):
        export(tmp_path / "none.onnx", model, kind, nodes_to_exclude="none")
    report = export(tmp_path / "x.onnx", model, kind)
    assert report.parity is not None
    assert report.parity.ok
    assert report.precision is not None
    kept = report.precision.kept
    assert {layer.layer for layer in kept} == {"up", "down"}
    for alone in ("up", "down"):
        with pytest.raises(ParityError, match=f"{kind} in torch"):
            export(tmp_path / "alone.onnx", model, kind, nodes_to_exclude=(alone,))
    assert {layer.why for layer in kept} == {"tolerance"}
    assert sum(layer.share or 0.0 for layer in kept) > 0.9
    assert all(layer.size > 0 and 0 < layer.time < 0.1 for layer in kept)
    assert report.precision.search is not None
    assert report.precision.search.ranked_by == "derivatives"
    assert report.precision.half is not None
    assert len(report.precision.half.kept["tolerance"]) == 2


def test_a_search_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, failing = model_of(Offset(300.0, 12)), module._Search._failing
    run: list[tuple[str, ...]] = []

    def noted(self: Any, kept: tuple[str, ...]) -> str:
        if len(run) == stop:
            raise KeyboardInterrupt
        run.append(kept)
        return failing(self, kept)

    monkeypatch.setattr(module._Search, "_failing", noted)
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "x.onnx", model, cache=True)
    monkeypatch.setattr(module, "half_parts", None)  # it is not ranked again
    stop = -1
    report = export(tmp_path / "x.onnx", model, cache=True).precision
    assert report is not None
    assert report.search is not None
    assert report.search.recalled == 2
    assert len(run) == len(set(run)) == report.search.trials
    assert {layer.layer for layer in report.kept} == {"up", "down"}
    again = export(tmp_path / "y.onnx", model, cache=True).precision
    assert again is not None
    assert again.kept == report.kept
    assert len(run) == report.search.trials
    assert (tmp_path / "x.onnx").read_bytes() == (tmp_path / "y.onnx").read_bytes()


def test_what_no_derivative_reaches_is_ranked_by_groups(tmp_path: Path) -> None:
    class Ended(Offset):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.selu(super().forward(images))  # onnx's reference computes it

    report = export(tmp_path / "x.onnx", model_of(Ended(300.0, 12))).precision
    assert report is not None
    assert report.search is not None
    assert report.search.ranked_by == "groups"
    assert {layer.layer for layer in report.kept} == {"up", "down"}


def test_a_network_that_nothing_helps_is_refused(tmp_path: Path) -> None:
    """Its layers are all alike."""

    class Everywhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Offset(3000.0, 0) for _ in range(3))

        def forward(self, images: Tensor) -> Tensor:
            for part in self.parts:
                images = part(images)
            return images

    with pytest.raises(ParityError, match=r"fp16 in torch .*; no set of nodes that stay in fp32 helps, of \d+ of \d+"):
        export(tmp_path / "x.onnx", model_of(Everywhere()))
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_out_of_range_is_named_with_its_image(tmp_path: Path) -> None:
    report = export(tmp_path / "x.onnx", model_of(Offset(30000.0, 0)), nodes_to_exclude="none").precision
    assert report is not None
    assert report.half is not None
    (tensor, (value, image)), *_ = report.half.out_of_range.items()
    assert "up" in tensor
    assert value == pytest.approx(30000, abs=10)
    assert image in ("apollo11_crew.jpg", "noise (seed 0)")


sets = st.integers(1, 11).flatmap(
    lambda count: st.tuples(
        st.permutations([f"layer {i}" for i in range(count)]),
        st.lists(st.sets(st.integers(0, count - 1), min_size=1), min_size=1, max_size=3),
    )
)


@settings(max_examples=150)
@given(sets)
def test_the_search_finds_what_brute_force_finds(case: tuple[list[str], list[set[int]]]) -> None:
    """Some sets of layers are enough, each with any others beside it."""
    ranked, enough = case
    needed = [{f"layer {i}" for i in each} for each in enough]

    def holds(kept: tuple[str, ...]) -> bool:
        return any(each <= set(kept) for each in needed)

    found = smallest_set(ranked, holds)
    assert found is not None
    assert holds(found)
    least = next(size for size in range(1, 12) if any(holds(each) for each in combinations(ranked, size)))
    if len(ranked) <= EVERY:
        assert len(found) == least
    assert not any(holds(tuple(name for name in found if name != one)) for one in found)
    assert smallest_set(ranked, holds, least - 1) is None or len(ranked) > EVERY


@given(st.integers(0, 40), st.integers(1, 60))
def test_the_first_count_that_is_enough(most: int, least: int) -> None:
    assert first_enough(most, lambda count: count >= least) == (least if least <= most else None)


def offset_before(model: ReferenceModel) -> ReferenceModel:
    """The same network behind an offset of its image that is taken away again."""
    network = copy.deepcopy(model.module)
    offset = 4000.0 if isinstance(network, LayerGraph) else 300.0  # what is not seen of it in random detections
    channels = model.spec.input.channels
    shift = nn.Sequential(*(nn.Conv2d(channels, channels, 1, groups=channels) for _ in range(2)))
    for layer, weight, bias in zip(shift, (1.0, 0.5), (offset, -offset / 2), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    shift.requires_grad_(False)
    if isinstance(network, LayerGraph):  # which is built anew when it is folded
        network.model[0] = nn.Sequential(*shift, network.model[0])
    else:
        network.add_module("shift", shift)
        network.register_forward_pre_hook(lambda module, given: (module.shift(given[0]), *given[1:]))
    return replace(model, module=network.eval())


TASKS: dict[str, Callable[[], ReferenceModel]] = {
    "detect": lambda: few("few", objectness=3.0),
    "keypoints": lambda: few("few", num_keypoints=3, objectness=3.0),
    "pose objects": lambda: few("pose objects"),
    "end to end": lambda: free_network("pose26"),
    "oriented": lambda: free_network("oriented"),
    "instances": masked_model,
    "classify": lambda: narrow_dense("resnet18"),
    "classify, attention": lambda: narrow_dense("mae-vit-b16"),
    "segment": lambda: narrow_dense("unet"),
    "restore": lambda: narrow_dense("nafnet-w32-gopro"),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_search(task: str, tmp_path: Path) -> None:
    model = offset_before(TASKS[task]())
    precision = PrecisionOptions("fp16", cache=False)
    with pytest.raises(ParityError, match="fp16 in torch"):
        onnx_from_model(model, out=tmp_path / "x.onnx", precision=replace(precision, nodes_to_exclude="none"))
    report = onnx_from_model(model, out=tmp_path / "x.onnx", precision=precision)
    assert report.parity is not None
    assert report.parity.ok
    assert report.precision is not None
    names = {"model.0.0", "model.0.1"} if isinstance(model.module, LayerGraph) else {"shift.0", "shift.1"}
    assert names <= {layer.layer for layer in report.precision.kept}
    assert len(report.precision.kept) <= 4


@pytest.mark.data
@pytest.mark.slow
def test_a_trained_network_that_bf16_breaks_keeps_one_layer(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "data" / "weights" / "unet_carvana_small.pth")
    options = OnnxOptions(img=(320, 480))
    precision = PrecisionOptions("bf16", cache=False)
    alone = replace(precision, nodes_to_exclude="none")
    with pytest.raises(ParityError, match="bf16 in torch"):
        onnx_from_model(model, out=tmp_path / "x.onnx", precision=alone, options=options)
    report = onnx_from_model(model, out=tmp_path / "x.onnx", precision=precision, options=options)
    assert report.precision is not None
    (layer,) = report.precision.kept
    assert layer.layer == "inc.double_conv.0"
    assert layer.share is not None
    assert layer.share > 0.5
