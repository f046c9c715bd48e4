"""Checkpoints of models that were changed after they were described: folded, pruned, given further buffers."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import yolov5, yolov7
from deploykit.models.fuse import fold_conv_bn, fuse_model
from deploykit.models.layers.anchor_head import Detect, IDetect, IKeypoint
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.csp import C3
from deploykit.models.layers.rep import RepConv
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from tests.narrow import few_layers, older_layers

TINY = yolov7.config_of("yolov7_tiny", 3, width=0.125, training=True)
AUXILIARY = yolov7.config_of("yolov7_w6", 3, width=0.0625, training=True)
YOLOV5 = yolov5.config_of("yolov5s", 2, width=0.125)
DEEP = yolov5.config_of("yolov5l", 2, width=0.0625)
FOLDED = "it was saved after its project fused its batch norms: taken as it is"


def fuseforward(self: nn.Module, *x: Tensor) -> Tensor:
    """The name of what YOLOv7 makes a folded module run."""
    raise AssertionError("nothing of a file is called")


def graph_of(config: GraphConfig) -> Any:
    torch.manual_seed(0)
    graph: Any = build_graph(config)
    randomise(graph)
    return described(graph, config)


def described(graph: Any, config: GraphConfig) -> Any:
    graph.yaml = {
        "nc": config.num_classes,
        "nkpt": config.num_keypoints,
        "dw_conv_kpt": config.depthwise_keypoints,
        "anchors": [list(level) for level in config.anchors],
        "depth_multiple": config.depth_multiple,
        "width_multiple": config.width_multiple,
        "activation": config.activation,
        "backbone": [list(row) for row in config.rows[:-1]],
        "head": [list(config.rows[-1])],
    }
    return graph


def folded_by_its_project(graph: Any, *, implicits: bool = True) -> None:
    """What ``Model.fuse()`` of YOLOv7 does: nothing but bound methods and tensors tells of it afterwards."""
    for module in list(graph.modules()):
        if isinstance(module, RepConv):
            module.rbr_reparam = module.fuse("")[0]  # type: ignore[assignment]
            del module.rbr_dense, module.rbr_1x1, module.rbr_identity
            module.rbr_dense = module.rbr_1x1 = module.rbr_identity = None  # type: ignore[assignment]
        elif isinstance(module, Conv):
            module.conv = fold_conv_bn(module.conv, module.bn, "")  # type: ignore[arg-type]
            del module.bn
            module.forward = types.MethodType(fuseforward, module)
        elif isinstance(module, IDetect) and implicits:
            module.m = module.fuse("").m
            module.forward = types.MethodType(fuseforward, module)


def rows_of(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)))  # type: ignore[no-any-return]


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[Any], ReferenceModel]:
    def load(model: Any) -> ReferenceModel:
        torch.save({"model": model}, tmp_path / "best.pt")
        return load_model(tmp_path / "best.pt")

    return load


def assert_same(model: ReferenceModel, expected: Tensor) -> None:
    torch.testing.assert_close(rows_of(model.module), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(rows_of(fuse_model(model.module)), expected, rtol=1e-5, atol=1e-3)


# Folded


@pytest.mark.parametrize(
    ("config", "head"),
    [(TINY, Detect), (AUXILIARY, Detect), (few_layers(num_keypoints=3), IKeypoint), (YOLOV5, Detect)],
    ids=["implicits", "auxiliary heads", "RepConv and keypoints", "YOLOv5"],
)
def test_a_model_that_its_project_folded_computes_the_same(
    loaded: Any, config: GraphConfig, head: type[Detect]
) -> None:
    graph = graph_of(config)
    expected = rows_of(graph)
    folded_by_its_project(graph)
    model = loaded(graph)
    assert FOLDED in model.notes
    assert model.spec.assumptions == ()
    assert type(model.module.head) is head
    assert_same(model, expected)


def test_batch_norms_that_the_project_does_not_fold_stay(loaded: Any) -> None:
    """BottleneckCSP's own is shared by two convolutions, which ``fuse()`` leaves alone."""
    config = older_layers()
    graph = graph_of(config)
    expected = rows_of(graph)
    folded_by_its_project(graph)
    model = loaded(graph)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.module.modules()) == 1
    assert_same(model, expected)


def test_implicits_are_still_applied_where_an_early_version_folded_batch_norms_only(loaded: Any) -> None:
    graph = graph_of(TINY)
    expected = rows_of(graph)
    folded_by_its_project(graph, implicits=False)
    model = loaded(graph)
    assert type(model.module.head) is IDetect
    assert_same(model, expected)


@pytest.mark.parametrize("name", ["yolov7_tiny", "yolov7"])
def test_a_state_dict_without_batch_norms_is_recognised(loaded: Any, name: str) -> None:
    config = yolov7.config_of(name, 3, training=True)
    graph = graph_of(config)
    folded_by_its_project(graph)
    expected = graph.state_dict()
    model = loaded(expected)
    assert (model.name, model.notes) == (name.replace("_", "-"), (FOLDED,))
    activation = "LeakyReLU" if name == "yolov7_tiny" else "SiLU"
    assert model.spec.assumptions == (
        f"{activation} activations, as {model.name} has them: no tensor tells",
        "its head's implicits are in its convolutions, as its batch norms are: YOLOv7 folds both at once",
    )
    assert type(model.module.head) is Detect
    assert torch.equal(model.module.head.m[0].weight, expected[f"model.{len(graph.model) - 1}.m.0.weight"])


def test_keypoints_of_a_folded_state_dict_keep_their_implicits(tmp_path: Path) -> None:
    """YOLOv7's pose branch folds no implicits of a keypoint head."""
    graph = graph_of(few_layers(num_keypoints=3))
    expected = rows_of(graph)
    folded_by_its_project(graph)
    torch.save({"state_dict": graph.state_dict(), "yaml": graph.yaml}, tmp_path / "plain.pt")
    model = load_model(tmp_path / "plain.pt")
    assert model.spec.assumptions == ("SiLU and LeakyReLU activations, as its description has them: no tensor tells",)
    assert isinstance(model.module, LayerGraph)
    assert type(model.module.head) is IKeypoint
    assert_same(model, expected)


# Pruned


def narrowed(conv: Conv, outputs: int) -> None:
    """Keep the first channels of a convolution, as pruning libraries do: in the tensors and in the numbers."""
    conv.conv.weight = nn.Parameter(conv.conv.weight.detach()[:outputs])
    conv.conv.out_channels = outputs
    assert isinstance(conv.bn, nn.BatchNorm2d)
    for name in ("weight", "bias"):
        setattr(conv.bn, name, nn.Parameter(getattr(conv.bn, name).detach()[:outputs]))
    for name in ("running_mean", "running_var"):
        conv.bn._buffers[name] = getattr(conv.bn, name)[:outputs]
    conv.bn.num_features = outputs


def fed_less(conv: nn.Conv2d, kept: list[int]) -> None:
    conv.weight = nn.Parameter(conv.weight.detach()[:, kept])
    conv.in_channels = len(kept)


def pruned() -> Any:
    """A YOLOv5 of which the second layer gives 5 of its 16 channels and a bottleneck 3 of its 8."""
    graph = graph_of(YOLOV5)
    narrowed(graph.model[1], 5)
    for conv in (graph.model[2].cv1, graph.model[2].cv2):
        fed_less(conv.conv, list(range(5)))
    narrowed(graph.model[2].m[0].cv1, 3)
    fed_less(graph.model[2].m[0].cv2.conv, [0, 1, 2])
    return graph


def test_a_pruned_model_has_the_channels_of_its_modules(loaded: Any) -> None:
    graph = pruned()
    expected = rows_of(graph)
    model = loaded(graph)
    assert model.notes == (
        "5 convolutions have other channels (pruning), as in the pickled model; its layer description does not say so",
    )
    assert torch.equal(rows_of(model.module), expected)
    assert_same(model, expected)


def test_a_pruned_model_may_be_folded_too(loaded: Any) -> None:
    graph = pruned()
    expected = rows_of(graph)
    folded_by_its_project(graph)
    assert_same(loaded(graph), expected)


def test_depthwise_convolutions_are_pruned_in_groups(loaded: Any) -> None:
    graph = graph_of(few_layers(num_keypoints=3))
    branch = graph.model[-1].m_kpt[0]
    narrowed(branch[1], 7)
    narrowed(branch[2], 7)
    branch[2].conv.in_channels = branch[2].conv.groups = 7
    fed_less(branch[3].conv, list(range(7)))
    expected = rows_of(graph)
    assert torch.equal(rows_of(loaded(graph).module), expected)


def test_implicits_are_pruned_with_what_they_are_added_to(loaded: Any) -> None:
    graph = graph_of(few_layers())
    narrowed(graph.model[10], 12)
    head = graph.model[-1]
    fed_less(head.m[0], list(range(12)))
    head.ia[0].implicit = nn.Parameter(head.ia[0].implicit.detach()[:, :12])
    head.ia[0].channel = 12
    expected = rows_of(graph)
    assert torch.equal(rows_of(loaded(graph).module), expected)


def test_channels_that_do_not_fit_one_another_are_refused(loaded: Any) -> None:
    graph = graph_of(YOLOV5)
    narrowed(graph.model[1], 5)  # and what it feeds still takes 16
    with pytest.raises(CheckpointError, match=r"do not fit one another: .*; expected a model that was pruned as a"):
        loaded(graph)


def test_columns_of_the_rows_are_never_pruned(loaded: Any) -> None:
    graph = graph_of(YOLOV5)
    last = graph.model[-1].m[0]
    last.weight, last.bias = nn.Parameter(last.weight.detach()[:14]), nn.Parameter(last.bias.detach()[:14])
    last.out_channels = 14
    with pytest.raises(WeightsMismatchError, match=r"m\.0\.weight is \[14, 32, 1, 1\], expected \[21, 32, 1, 1\]"):
        loaded(graph)


def test_a_pruned_state_dict_is_refused_because_nothing_tells_its_channels(loaded: Any) -> None:
    graph = pruned()
    with pytest.raises(CheckpointError):
        loaded(graph.state_dict())


@pytest.mark.parametrize(("blocks", "what"), [(1, "fewer"), (8, "more")])
def test_blocks_are_as_many_as_in_the_pickled_model(loaded: Any, blocks: int, what: str) -> None:
    graph = graph_of(DEEP)
    layer = graph.model[4]
    assert isinstance(layer, C3)
    hidden = layer.m[0].cv1.conv.in_channels
    layer.m = C3(hidden, 2 * hidden, blocks).m
    randomise(layer.m)
    expected = rows_of(graph.eval())
    model = loaded(graph)
    assert model.notes == (
        f"1 C3 has {what} bottlenecks than repeats, as in the pickled model; its layer description does not say so",
    )
    assert torch.equal(rows_of(model.module), expected)


def test_a_layer_that_is_fed_by_another_is_refused(loaded: Any) -> None:
    graph = graph_of(TINY)
    graph.model[3].i, graph.model[3].f = 3, -1
    with pytest.raises(CheckpointError, match=r"layer 3 is fed by \[2\] in the pickled model, and by \[1\] by"):
        loaded(graph)


def test_a_shortcut_is_that_of_the_pickled_model(loaded: Any) -> None:
    graph = graph_of(YOLOV5)
    graph.model[2].m[0].add = False
    expected = rows_of(graph)
    assert torch.equal(rows_of(loaded(graph).module), expected)


# Further buffers


def test_a_further_buffer_is_ignored_and_named(loaded: Any) -> None:
    graph = graph_of(TINY)
    expected = rows_of(graph)
    graph.register_buffer("steps", torch.tensor(7))
    graph.model[4].register_buffer("ages", torch.zeros(3))
    model = loaded(graph)
    assert model.notes == (
        "it has buffers that the original's layers do not have, which are ignored: steps, model.4.ages",
    )
    assert torch.equal(rows_of(model.module), expected)


def test_a_further_parameter_is_no_buffer_and_refused(loaded: Any) -> None:
    graph = graph_of(TINY)
    graph.model[4].gate = nn.Parameter(torch.zeros(8))
    with pytest.raises(WeightsMismatchError, match=r"holds the tensor model\.4\.gate, which yolov7-tiny"):
        loaded(graph)


def test_a_buffer_of_a_further_module_is_refused_with_it(loaded: Any) -> None:
    graph = graph_of(TINY)
    graph.model[4].gate = nn.Module()
    graph.model[4].gate.register_buffer("scale", torch.zeros(8))
    with pytest.raises(WeightsMismatchError, match=r"holds the tensor model\.4\.gate\.scale"):
        loaded(graph)
