"""The YOLOv7 variants against the published numbers: parameters, keys, layers, predictions, operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.yolov7 import VARIANTS, config_of, layer_rows
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Detect, IAuxDetect, Keypoint
from deploykit.models.layers.rep import ImplicitA, ImplicitM, RepConv
from deploykit.models.registry import create_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from tests.reference.published import ANCHORS, layers_of


@dataclass(frozen=True)
class Published:
    """Facts of one variant: exact, and confirmed with the original's own graphs.

    ``layers`` are the head's index and so the number of layers before it; operations are 2 x multiply-adds of the
    convolutions, folded, at the published size, in units of 1e9.
    """

    size: int
    training: int
    deploy: int | None
    fused: int
    training_keys: tuple[int, int]
    deploy_keys: tuple[int, int] | None
    training_layers: int
    deploy_layers: int
    predictions: int
    operations: float


PUBLISHED = {
    "yolov7_tiny": Published(640, 6_228_762, 6_227_101, 6_219_709, (344, 55), (338, 55), 77, 77, 25_200, 13.7),
    "yolov7": Published(640, 37_622_682, 37_620_125, 36_905_341, (566, 92), (560, 92), 105, 105, 25_200, 104.5),
    "yolov7x": Published(640, 71_347_394, 71_344_389, 71_311_741, (644, 105), (638, 105), 121, 121, 25_200, 189.7),
    "yolov7_w6": Published(1280, 82_312_436, 70_426_236, 70_394_300, (668, 107), (628, 103), 122, 118, 102_000, 359.7),
    "yolov7_e6": Published(1280, 111_898_292, 97_246_652, 97_202_940, (896, 145), (856, 141), 144, 140, 102_000, 514.4),
    "yolov7_d6": Published(
        1280, 154_709_364, 133_810_044, 133_757_052, (1028, 167), (988, 163), 166, 162, 102_000, 701.7
    ),
    "yolov7_e6e": Published(
        1280, 166_408_884, 151_757_244, 151_687_420, (1490, 244), (1450, 240), 265, 261, 102_000, 842.2
    ),
    "yolov7_w6_pose": Published(960, 80_238_452, None, 80_175_724, (908, 147), None, 118, 118, 57_375, 228.5),
}
ALL = pytest.mark.parametrize("name", VARIANTS)
BOTH = pytest.mark.parametrize("training", [False, True], ids=["deploy", "training"])
QUICK = ("yolov7_tiny", "yolov7")


@cache
def on_meta(name: str, training: bool) -> LayerGraph:
    """The full-width graph without memory for its weights."""
    with torch.device("meta"):
        return build_graph(full(name, training))


def full(name: str, training: bool, **changes: Any) -> GraphConfig:
    return config_of(name, 1 if name == "yolov7_w6_pose" else 80, training=training, **changes)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def folded_parameters(graph: LayerGraph) -> int:
    """What remains after folding: of a batch norm a bias, of a RepConv one 3x3, of implicits nothing."""
    count = parameters(graph)
    for m in graph.modules():
        if isinstance(m, nn.BatchNorm2d):
            count -= m.num_features
        elif isinstance(m, RepConv):
            count -= m.rbr_1x1[0].weight.numel() + m.rbr_1x1[1].num_features
            count -= m.rbr_identity.num_features if m.rbr_identity is not None else 0
        elif isinstance(m, ImplicitA | ImplicitM):
            count -= m.implicit.numel()
    return count


def test_every_variant_has_published_numbers() -> None:
    assert tuple(PUBLISHED) == VARIANTS


@ALL
def test_parameters_are_the_published_ones(name: str) -> None:
    known = PUBLISHED[name]
    assert parameters(on_meta(name, True)) == known.training
    if known.deploy is not None:
        assert parameters(on_meta(name, False)) == known.deploy
    assert folded_parameters(on_meta(name, False)) == known.fused


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_folding_for_real_leaves_the_published_number_of_parameters(name: str) -> None:
    """Of the training graph: the auxiliary heads and the implicit knowledge go as well."""
    fused = fuse_model(build_graph(full(name, True)))
    assert parameters(fused) == PUBLISHED[name].fused
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


@ALL
@BOTH
def test_a_state_dict_has_the_published_number_of_keys_and_batch_norms(name: str, training: bool) -> None:
    known = PUBLISHED[name].training_keys if training else PUBLISHED[name].deploy_keys
    graph = on_meta(name, training)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    assert (len(graph.state_dict()), norms) == (known or PUBLISHED[name].training_keys)


@ALL
@BOTH
def test_every_batch_norm_has_the_eps_that_no_state_dict_holds(name: str, training: bool) -> None:
    assert {m.eps for m in on_meta(name, training).modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


@ALL
@BOTH
def test_the_head_sits_at_the_published_index(name: str, training: bool) -> None:
    known = PUBLISHED[name]
    rows = layer_rows(name, training=training)
    assert len(rows) - 1 == (known.training_layers if training else known.deploy_layers)
    assert isinstance(on_meta(name, training).model[-1], Detect)


@ALL
@BOTH
def test_every_layer_is_the_published_one(name: str, training: bool) -> None:
    """Kind, wiring and numbers: the order of a concatenation, for one, is in no shape and no count."""
    found = []
    for i, (origin, repeats, kind, arguments) in enumerate(layer_rows(name, training=training)):
        assert repeats == 1
        sources = tuple(s if s >= 0 else i + s for s in ([origin] if isinstance(origin, int) else origin))
        numbers = tuple(a for a in arguments if isinstance(a, int))
        if kind in ("Conv", "RepConv"):
            numbers = (*numbers, 1, 1)[:3]
        elif kind in ("Concat", "Shortcut"):
            numbers = ()
        found.append(("Head" if kind.endswith(("Detect", "Keypoint")) else kind, sources, numbers))
    assert found == layers_of(name, training=training)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("yolov7", {"model.102.rbr_dense.0.weight": (256, 128, 3, 3), "model.102.rbr_1x1.1.running_var": (256,)}),
        ("yolov7", {"model.51.cv7.conv.weight": (512, 1024, 1, 1), "model.105.anchors": (3, 3, 2)}),
        ("yolov7_e6", {"model.2.cv3.conv.weight": (80, 80, 1, 1), "model.140.m.3.weight": (255, 1280, 1, 1)}),
        ("yolov7_w6", {"model.118.m.0.weight": (255, 256, 1, 1), "model.118.anchor_grid": (4, 1, 3, 1, 1, 2)}),
        (
            "yolov7_w6_pose",
            {"model.118.m_kpt.3.10.conv.weight": (1024, 1, 3, 3), "model.118.m.0.weight": (18, 256, 1, 1)},
        ),
        (
            "yolov7_w6_pose",
            {"model.118.m_kpt.0.11.weight": (153, 256, 1, 1), "model.118.ia.1.implicit": (1, 512, 1, 1)},
        ),
    ],
)
def test_keys_are_the_originals(name: str, keys: dict[str, tuple[int, ...]]) -> None:
    state = on_meta(name, False).state_dict()
    assert {key: tuple(state[key].shape) for key in keys} == keys


def test_the_base_never_has_an_identity_branch() -> None:
    assert not any("rbr_identity" in key for key in on_meta("yolov7", True).state_dict())


@pytest.mark.parametrize(
    ("name", "sources", "widths"),
    [
        ("yolov7_w6", (83, 71, 59, 47), (320, 640, 960, 1280)),
        ("yolov7_e6", (99, 85, 71, 57), (320, 640, 960, 1280)),
        ("yolov7_d6", (115, 99, 83, 67), (384, 768, 1152, 1536)),
        ("yolov7_e6e", (186, 161, 136, 112), (320, 640, 960, 1280)),
    ],
)
def test_auxiliary_convolutions_look_where_the_originals_do(
    name: str, sources: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    graph = on_meta(name, True)
    first = PUBLISHED[name].deploy_layers
    assert graph.sources[first : first + 4] == tuple((s,) for s in sources)
    assert tuple(graph.state_dict()[f"model.{first + i}.conv.weight"].shape[0] for i in range(4)) == widths
    assert isinstance(graph.head, IAuxDetect)


@ALL
def test_predictions_strides_and_columns_are_the_published_ones(name: str) -> None:
    known, graph = PUBLISHED[name], on_meta(name, False)
    columns = 57 if name == "yolov7_w6_pose" else 85
    assert graph(torch.empty(1, 3, known.size, known.size, device="meta")).shape == (1, known.predictions, columns)
    strides = (8, 16, 32) if known.size == 640 else (8, 16, 32, 64)
    assert graph.head.stride == strides
    spec = create_on_meta(name)
    assert spec.input.size == (known.size, known.size)
    assert spec.input.fit.stride == strides[-1]


def create_on_meta(name: str) -> Any:
    with torch.device("meta"):
        return create_model(name).spec


@ALL
def test_anchors_are_the_published_ones_in_pixels_and_in_cells(name: str) -> None:
    head = build_graph(full(name, False, width=0.0625)).head
    pixels = torch.tensor([[float(side) for side in anchor.split(",")] for anchor in ANCHORS[name].split()])
    assert torch.equal(head.anchor_grid.view(-1, 2), pixels)
    stride = torch.tensor(head.stride).repeat_interleave(3)[:, None]
    assert torch.equal(head.anchors.view(-1, 2), pixels / stride)


@ALL
def test_strides_are_what_the_layers_make_of_them(name: str) -> None:
    """The variants are told their strides; here they are found."""
    described = full(name, True, width=0.0625)
    with torch.device("meta"):
        found = build_graph(GraphConfig(**{**vars(described), "strides": ()}))
    assert found.head.stride == on_meta(name, True).head.stride == described.strides


@ALL
def test_operations_are_the_published_ones(name: str) -> None:
    """Every layer's size and width enters this number."""
    graph, total = on_meta(name, False), 0

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += 2 * conv.weight[0].numel() * output.numel()

    folded_away = [m.rbr_1x1[0] for m in graph.modules() if isinstance(m, RepConv)]
    convs = [m for m in graph.modules() if isinstance(m, nn.Conv2d) and not any(m is f for f in folded_away)]
    hooks = [m.register_forward_hook(count) for m in convs]
    size = PUBLISHED[name].size
    graph(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    assert round(total / 1e9, 1) == PUBLISHED[name].operations


def test_activations_are_leaky_in_tiny_and_smooth_elsewhere() -> None:
    for name in VARIANTS:
        kinds = {type(m) for m in on_meta(name, False).modules() if isinstance(m, nn.SiLU | nn.LeakyReLU)}
        assert kinds == {nn.LeakyReLU if name == "yolov7_tiny" else nn.SiLU}, name
    slopes = {m.negative_slope for m in on_meta("yolov7_tiny", False).modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}


@ALL
def test_training_and_deploy_graphs_fold_to_one_and_the_same(name: str) -> None:
    """Same keys, shapes and wiring; and the same numbers once they have the same weights."""
    forms = []
    for training in (True, False):
        torch.manual_seed(0)
        graph = build_graph(full(name, training, width=0.125))
        randomise(graph)
        forms.append(fuse_model(graph))
    trained, deployed = forms
    assert isinstance(trained, LayerGraph)
    assert isinstance(deployed, LayerGraph)
    assert {k: t.shape for k, t in trained.state_dict().items()} == {
        k: t.shape for k, t in deployed.state_dict().items()
    }
    assert trained.sources == deployed.sources
    assert type(trained.head) is type(deployed.head) is (Keypoint if name == "yolov7_w6_pose" else Detect)
    deployed.load_state_dict(trained.state_dict())
    images = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        assert torch.equal(trained(images), deployed(images))


@ALL
@BOTH
def test_images_of_a_batch_do_not_see_each_other(name: str, training: bool) -> None:
    torch.manual_seed(0)
    graph = build_graph(full(name, training, width=0.0625))
    randomise(graph)
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = graph(images)
        for i in (0, 1, 2):
            torch.testing.assert_close(together[i : i + 1], graph(images[i : i + 1]), rtol=1e-4, atol=1e-3)
        assert not torch.allclose(together[0], together[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("num_classes", [1, 2, 80, 81])
@pytest.mark.parametrize("name", ["yolov7_tiny", "yolov7_w6_pose"])
def test_any_number_of_classes_has_its_columns(name: str, num_classes: int) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes)
        rows = model.module(torch.empty(1, 3, 64, 64))
    keypoints = 51 if name == "yolov7_w6_pose" else 0
    assert rows.shape[-1] == 5 + num_classes + keypoints == model.spec.output.columns
    assert len(model.spec.classes) == num_classes
