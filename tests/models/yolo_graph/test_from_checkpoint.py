"""Pickled models with a description of their layers: what is taken from where, and what does not fit together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, UnknownLayerError, WeightsMismatchError
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.yolov5 import GENERATIONS
from deploykit.models.families.yolov5 import config_of as config_of_yolov5
from deploykit.models.families.yolov7 import config_of
from deploykit.models.layers.anchor_head import IKeypoint
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph

TINY = config_of("yolov7_tiny", 3, width=0.125, training=True)
CUSTOM = GraphConfig(
    rows=(
        [-1, 1, "Conv", [8, 3, 2, "None", 1, "nn.LeakyReLU(0.1)"]],
        [-1, 2, "Conv", [8, 3, 2]],
        [-1, 1, "MP", [2]],
        [[-1], 1, "IKeypoint", ["nc", "anchors", "nkpt"]],
    ),
    num_classes=2,
    anchors=((10, 20, 30, 40),),
    num_keypoints=3,
)


YOLOV5 = config_of_yolov5("yolov5s", 2, width=0.125, generation=5)


def yaml_of(config: GraphConfig) -> dict[str, Any]:
    return {
        "nc": config.num_classes,
        "nkpt": config.num_keypoints,
        "dw_conv_kpt": config.depthwise_keypoints,
        "anchors": [list(level) for level in config.anchors],
        "depth_multiple": config.depth_multiple,
        "width_multiple": config.width_multiple,
        "ch": config.channels,
        "backbone": [list(row) for row in config.rows[:2]],
        "head": [list(row) for row in config.rows[2:]],
    }


def pickled(config: GraphConfig) -> Any:
    """A module tree that carries its description, as the original projects save theirs."""
    torch.manual_seed(0)
    graph: Any = build_graph(config)
    randomise(graph)
    graph.yaml, graph.names = yaml_of(config), [f"kind {i}" for i in range(config.num_classes)]
    return graph


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(graph: nn.Module) -> Path:
        torch.save({"model": copy.deepcopy(graph).half(), "epoch": -1, "optimizer": None}, tmp_path / "best.pt")
        return tmp_path / "best.pt"

    return write


def rows_of(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))  # type: ignore[no-any-return]


def test_a_described_variant_is_recognised_and_computes_the_same(save: Any) -> None:
    graph = pickled(TINY)
    model = load_model(save(graph))
    assert (model.name, model.family, model.notes) == ("yolov7-tiny-width-0.125", "YOLOv7", ())
    assert model.spec.classes == ("kind 0", "kind 1", "kind 2")
    assert torch.equal(rows_of(model.module), rows_of(graph.half().float()))


def test_a_narrow_pose_model_keeps_the_size_it_was_published_for(save: Any) -> None:
    model = load_model(save(pickled(config_of("yolov7_w6_pose", 1, width=0.0625))))
    assert model.spec.input.size == (960, 960)
    assert model.spec.keypoints is not None


def test_a_custom_model_is_built_from_its_own_description(save: Any) -> None:
    graph = pickled(CUSTOM)
    model = load_model(save(graph))
    assert model.name == "yolov7-custom"
    assert isinstance(model.module, LayerGraph)
    assert isinstance(model.module.head, IKeypoint)
    assert (model.stride, model.module.head.stride) == (16, (16,))
    assert torch.equal(rows_of(model.module), rows_of(graph.half().float()))


@pytest.mark.parametrize(
    ("yaml_file", "name"),
    [
        ("cfg/training/plates.yaml", "plates"),
        ("C:\\models\\my plates.yaml", "my-plates"),
        ("yolov7-tiny.yaml", "yolov7-tiny-custom"),
        ("../../yolov7_w6_pose.yaml", "yolov7-w6-pose-custom"),
        ("\x1b[31m\n.yaml", "-31m-"),
        ("", "yolov7-custom"),
        ("A" * 10_000, "A" * 64),
        (7, "7"),
    ],
)
def test_a_custom_model_is_called_after_its_description_and_never_like_a_published_one(
    save: Any, yaml_file: Any, name: str
) -> None:
    graph = pickled(CUSTOM)
    graph.yaml_file = yaml_file
    assert load_model(save(graph)).name == name


def test_four_input_channels_reach_the_spec(save: Any) -> None:
    spec = load_model(save(pickled(replace(CUSTOM, channels=4)))).spec
    assert (spec.input.channels, len(spec.input.mean), len(spec.input.std)) == (4, 4, 4)


def test_activations_and_eps_are_those_of_the_pickled_modules(save: Any) -> None:
    graph = pickled(TINY)
    for i in range(5):
        graph.model[i].act = nn.LeakyReLU(0.2)
    graph.model[7].act = nn.Hardswish()
    for m in graph.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 1e-2
    model = load_model(save(graph))
    assert torch.equal(rows_of(model.module), rows_of(graph.half().float()))
    assert model.notes == (
        "5 activations are LeakyReLU, as in the pickled model; its layer description does not say so",
        "1 activation is Hardswish, as in the pickled model; its layer description does not say so",
    )


class Contract(nn.Module):
    """What edgeai-yolov5 has in its Focus: no weights, and another order of the blocks."""

    gain = 2


def test_the_order_of_a_focus_is_that_of_the_pickled_modules(save: Any) -> None:
    graph = pickled(YOLOV5)
    graph.model[0].rows_first = False
    plain = load_model(save(graph))
    graph.model[0].contract = Contract()
    contracted = load_model(save(graph))
    expected = rows_of(graph.half().float())
    assert torch.equal(rows_of(contracted.module), expected)
    assert not torch.allclose(rows_of(plain.module), expected, atol=1e-2)
    assert plain.notes == contracted.notes == ("its layers are those of YOLOv5 4.0 and 5.0",)


def test_pools_in_a_row_are_one_pool(save: Any) -> None:
    graph = pickled(YOLOV5)
    expected = rows_of(copy.deepcopy(graph).half().float())
    spp = graph.model[8]
    for i, pool in enumerate(spp.m):
        spp.m[i] = nn.Sequential(*(nn.MaxPool2d(3, 1, 1) for _ in range(pool.kernel_size // 2)))
    assert torch.equal(rows_of(load_model(save(graph)).module), expected)
    spp.m[1].append(nn.MaxPool2d(3, 1, 1))
    with pytest.raises(
        CheckpointError, match=r"model\.8\.m\.1 is 5 3x3 max pools in the pickled model, and one of 9 by"
    ):
        load_model(save(graph))
    spp.m[1] = nn.Sequential(*(nn.MaxPool2d(3, 2, 1) for _ in range(4)))
    with pytest.raises(CheckpointError, match=r"stride of model\.8\.m\.1\.0 is \(2, 2\) in the pickled model, and"):
        load_model(save(graph))


def test_ghost_bottlenecks_that_are_not_in_the_pickled_model_are_left_out(save: Any) -> None:
    rows = ([-1, 1, "Focus", [8, 3]], [-1, 2, "C3Ghost", [16]], [-1, 2, "C3Ghost", [16, False]])
    graph = pickled(replace(CUSTOM, rows=(*rows, [[-1], 1, "Detect", ["nc", "anchors", "nkpt"]])))
    graph.model[2].m = nn.Sequential()
    model = load_model(save(graph))
    assert torch.equal(rows_of(model.module), rows_of(graph.half().float()))
    assert model.notes == (
        "1 C3Ghost has fewer bottlenecks than repeats, as in the pickled model; its layer description does not say so",
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_yolov5_is_built_from_its_description(save: Any, generation: int) -> None:
    config = config_of_yolov5("yolov5s6", 2, width=0.125, generation=generation)
    graph = pickled(config)
    if generation == 7:
        del graph.model[-1].anchor_grid
    model = load_model(save(graph))
    assert model.name == "yolov5-p6-depth-0.33-width-0.125"
    assert (model.family, model.spec.classes, model.spec.input.size) == ("YOLOv5", ("kind 0", "kind 1"), (1280, 1280))
    expected = pickled(config).half().float()
    assert torch.equal(rows_of(model.module), rows_of(expected))
    said = " ".join(model.notes)
    assert (f"its layers are those of YOLOv5 {GENERATIONS[generation]}" in said) is (generation < 7)
    assert "activation" not in said


def test_leaky_activations_of_an_older_generation_are_kept(save: Any) -> None:
    """2.0 has the layers of 3.0 and 3.1, and no Hardswish."""
    graph = pickled(config_of_yolov5("yolov5s", 2, width=0.125, generation=3))
    for path, module in list(graph.named_modules()):
        if isinstance(module, nn.Hardswish):
            graph.set_submodule(path, nn.LeakyReLU(0.1))
    model = load_model(save(graph))
    assert torch.equal(rows_of(model.module), rows_of(graph.half().float()))
    assert model.notes[1].startswith("51 activations are LeakyReLU, as in the pickled model")


def test_anchors_that_were_found_while_training_are_those_of_the_weights(save: Any) -> None:
    graph = pickled(YOLOV5)
    graph.yaml["anchors"] = 3
    expected = rows_of(copy.deepcopy(graph).half().float())
    assert torch.equal(rows_of(load_model(save(graph)).module), expected)


@pytest.mark.parametrize("kind", [nn.Softsign, nn.PReLU, nn.Conv2d], ids=lambda kind: kind.__name__)
def test_an_activation_that_is_not_known_is_refused_by_its_place(save: Any, kind: type[nn.Module]) -> None:
    graph = pickled(TINY)
    graph.model[4].act = kind(8, 8, 1) if kind is nn.Conv2d else kind()
    with pytest.raises(
        UnknownLayerError, match=rf"model\.4\.act of the pickled model is torch\.nn\..*{kind.__name__}, an"
    ):
        load_model(save(graph))


def _strided(graph: Any) -> None:
    graph.model[2].conv.stride = (2, 2)


def _dilated(graph: Any) -> None:
    graph.model[4].conv.dilation = (2, 2)


def _unpadded(graph: Any) -> None:
    graph.model[0].conv.padding = (0, 0)


def _pooled(graph: Any) -> None:
    graph.model[8].m.kernel_size = 3


def _interpolated(graph: Any) -> None:
    next(m for m in graph.model if isinstance(m, nn.Upsample)).mode = "bilinear"


def _eps_a_word(graph: Any) -> None:
    graph.model[7].bn.eps = "small"


def _eps_nan(graph: Any) -> None:
    graph.model[7].bn.eps = float("nan")


def _slope_none(graph: Any) -> None:
    graph.model[7].act.negative_slope = None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_strided, r"stride of model\.2\.conv is \(2, 2\) in the pickled model, and \(1, 1\) by its layer description"),
        (_dilated, r"dilation of model\.4\.conv is \(2, 2\)"),
        (_unpadded, r"padding of model\.0\.conv is \(0, 0\) in the pickled model, and \(1, 1\) by"),
        (_pooled, r"kernel_size of model\.8\.m is \(3, 3\) in the pickled model, and \(2, 2\) by"),
        (_interpolated, r"mode of model\.\d+ is 'bilinear' in the pickled model, and nearest by"),
        (_eps_a_word, r"eps of model\.7\.bn in the pickled model is 'small', expected a number"),
        (_eps_nan, r"eps of model\.7\.bn in the pickled model is nan, expected a number"),
        (_slope_none, r"negative_slope of model\.7\.act in the pickled model is None, expected a number"),
    ],
)
def test_a_pickled_module_that_is_not_what_is_described_is_refused(
    save: Any, change: Callable[[Any], None], match: str
) -> None:
    """The weights would load all the same, and every number would be wrong."""
    graph = pickled(TINY)
    change(graph)
    with pytest.raises(CheckpointError, match=match):
        load_model(save(graph))


def _lost(graph: Any) -> None:
    del graph.model[5].bn._buffers["running_var"]


def _added(graph: Any) -> None:
    graph.model[5].gate = nn.Linear(2, 2)


def _wider(graph: Any) -> None:
    graph.model[0].conv.weight = nn.Parameter(torch.zeros(16, 3, 3, 3))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_lost, r"lacks the tensor model\.5\.bn\.running_var \[8\]: .*of a changed yolov7-tiny-width-0\.125"),
        (_added, r"holds the tensor model\.5\.gate\.weight, which yolov7-tiny-width-0\.125 does not have"),
        (_wider, r"model\.0\.conv\.weight is \[16, 3, 3, 3\], expected \[8, 3, 3, 3\]"),
    ],
)
def test_weights_that_do_not_fit_the_description_are_named(
    save: Any, change: Callable[[Any], None], match: str
) -> None:
    graph = pickled(TINY)
    change(graph)
    with pytest.raises(WeightsMismatchError, match=match):
        load_model(save(graph))


def test_a_description_that_lies_about_its_sizes_costs_nothing(save: Any, tmp_path: Path) -> None:
    """The pickled modules know their channels; without them the sizes are those of the description."""
    graph = pickled(TINY)
    graph.yaml["width_multiple"] = 32.0
    assert torch.equal(rows_of(load_model(save(graph)).module), rows_of(graph.half().float()))
    torch.save({"state_dict": graph.state_dict(), "yaml": graph.yaml}, tmp_path / "plain.pt")
    with pytest.raises(
        WeightsMismatchError, match=r"model\.0\.conv\.weight is \[8, 3, 3, 3\], expected \[1024, 3, 3, 3\]"
    ):
        load_model(tmp_path / "plain.pt")


@pytest.mark.parametrize(
    "row", [None, 7, "Conv", [-1], [5, 1, "Conv", [8]], [-1, 1, "C2f", [8]], [[-1] * 9, 1, "Conv", {}]]
)
def test_a_damaged_row_in_a_file_is_refused(save: Any, row: Any) -> None:
    graph = pickled(TINY)
    graph.yaml["backbone"][1] = row
    with pytest.raises(CheckpointError, match=r"layer 1 of the model's description"):
        load_model(save(graph))


def test_a_model_saved_from_data_parallel_is_the_same(tmp_path: Path, save: Any) -> None:
    graph = pickled(CUSTOM)
    plain = load_model(save(graph))
    wrapped: Any = nn.DataParallel(copy.deepcopy(graph).half())
    torch.save({"model": wrapped}, tmp_path / "wrapped.pt")
    found = load_model(tmp_path / "wrapped.pt")
    assert found.notes == ("DataParallel prefix 'module.' removed",)
    assert torch.equal(rows_of(found.module), rows_of(plain.module))
