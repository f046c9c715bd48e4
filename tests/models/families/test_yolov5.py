"""The YOLOv5 variants and generations against the published numbers, and checkpoints of each that are told apart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.models.checkpoint.reader import Checkpoint, Module
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.yolov5 import GENERATIONS, VARIANTS, config_of, from_checkpoint, layer_rows
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Detect, Keypoint
from deploykit.models.layers.focus import ConvFocus, Focus
from deploykit.models.registry import create_model, model_from_checkpoint
from deploykit.models.yolo_graph.description import GraphConfig, read_row
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from tests.reference.published_yolov5 import GRAPHS, layers_of

# (parameters, folded, keys of the original's state dict, batch norms, published millions, published operations / 1e9):
# all but the last two exact, and confirmed with the original's own code at the tags v3.1, v5.0 and v7.0, and with
# edgeai-yolov5's branch yolo-pose. Operations are 2 x multiply-adds at 640 px, of a pose model at 960 px.
PUBLISHED: dict[tuple[str, int], tuple[int, int, int, int, float | None, float | None]] = {
    ("yolov5n", 7): (1_872_157, 1_867_405, 349, 57, 1.9, 4.5),
    ("yolov5s", 7): (7_235_389, 7_225_885, 349, 57, 7.2, 16.5),
    ("yolov5m", 7): (21_190_557, 21_172_173, 481, 79, 21.2, 49.0),
    ("yolov5l", 7): (46_563_709, 46_533_693, 613, 101, 46.5, 109.1),
    ("yolov5x", 7): (86_749_405, 86_705_005, 745, 123, 86.7, 205.7),
    ("yolov5n6", 7): (3_246_940, 3_239_884, 459, 75, 3.2, 4.6),
    ("yolov5s6", 7): (12_626_620, 12_612_508, 459, 75, 12.6, 16.8),
    ("yolov5m6", 7): (35_731_932, 35_704_908, 627, 103, 35.7, 50.0),
    ("yolov5l6", 7): (76_770_172, 76_726_332, 795, 131, 76.8, 111.4),
    ("yolov5x6", 7): (140_794_780, 140_730_220, 963, 159, 140.7, 209.8),
    ("yolov5s", 5): (7_276_605, 7_266_973, 362, 59, 7.3, 17.0),
    ("yolov5m", 5): (21_375_645, 21_356_877, 506, 83, 21.4, 51.3),
    ("yolov5l", 5): (47_056_765, 47_025_981, 650, 107, 47.0, 115.4),
    ("yolov5x", 5): (87_775_965, 87_730_285, 794, 131, 87.7, 218.8),
    ("yolov5s6", 5): (12_667_836, 12_653_596, 472, 77, 12.7, 17.4),
    ("yolov5m6", 5): (35_917_020, 35_889_612, 652, 107, 35.9, 52.4),
    ("yolov5l6", 5): (77_263_228, 77_218_620, 832, 137, 77.2, 117.7),
    ("yolov5x6", 5): (141_821_340, 141_755_500, 1012, 167, 141.8, 222.9),
    ("yolov5s", 3): (7_468_157, 7_457_469, 370, 59, 7.5, None),
    ("yolov5m", 3): (21_805_053, 21_784_701, 514, 83, 21.8, None),
    ("yolov5l", 3): (47_818_749, 47_785_853, 658, 107, 47.8, None),
    ("yolov5x", 3): (88_965_245, 88_916_925, 802, 131, 89.0, None),
    ("yolov5s6_pose", 5): (15_114_860, 15_086_540, 744, 121, None, 45.6),
    ("yolov5m6_pose", 5): (41_430_924, 41_382_396, 924, 151, None, 132.6),
    ("yolov5l6_pose", 5): (87_072_812, 87_000_044, 1104, 181, None, 291.2),
    ("yolov5s6_pose_ti_lite", 5): (12_560_328, 12_546_076, 486, 78, None, 38.6),
    ("yolov5m6_pose_ti_lite", 5): (35_755_752, 35_728_332, 666, 108, None, 117.4),
    ("yolov5l6_pose_ti_lite", 5): (77_048_200, 77_003_580, 846, 138, None, None),
}
EVERY = pytest.mark.parametrize(("name", "generation"), PUBLISHED, ids=str)
LATEST = [name for name, generation in PUBLISHED if generation == 7 or VARIANTS[name].pose]


@cache
def on_meta(name: str, generation: int) -> LayerGraph:
    """The full-width graph without memory for its weights."""
    with torch.device("meta"):
        return build_graph(config_of(name, classes_of(name), generation=generation))


def classes_of(name: str) -> int:
    return 1 if VARIANTS[name].pose else 80


def bare(name: str, generation: int, **changes: Any) -> Checkpoint:
    """A checkpoint of full size, without memory for its weights and without a description."""
    state = {
        key: tensor
        for key, tensor in on_meta(name, generation).state_dict().items()
        if generation < 7 or not key.endswith("anchor_grid")
    }
    nothing = {"yaml": None, "names": None, "stride": None, "modules": (), "metadata": {}, "notes": ()}
    facts = {"path": Path("best.pt"), "size": 0, "sha256": "0" * 64, "format": "torch-zip", "entry": "model"}
    return Checkpoint(**{**facts, **nothing, "state_dict": state, **changes})  # type: ignore[arg-type]


def yaml_of(name: str, generation: int) -> dict[str, Any]:
    config, v = config_of(name, classes_of(name), generation=generation), VARIANTS[name]
    rows = [list(row) for row in config.rows]
    keypoints = {"nkpt": 17, **({"act": "ReLU"} if v.lite else {"dw_conv_kpt": True})} if v.pose else {}
    return {
        "nc": config.num_classes, "depth_multiple": v.depth, "width_multiple": v.width, "anchors": list(config.anchors),
        "backbone": rows[:10], "head": rows[10:], **keypoints,
    }  # fmt: skip


def test_every_variant_has_published_numbers() -> None:
    assert sorted(LATEST) == sorted(name for name, variant in VARIANTS.items() if not variant.masks)


@EVERY
def test_parameters_keys_and_batch_norms_are_the_published_ones(name: str, generation: int) -> None:
    graph = on_meta(name, generation)
    parameters, folded, keys, norms, millions, _ = PUBLISHED[name, generation]
    found = [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(p.numel() for p in graph.parameters()) == parameters
    assert parameters - sum(m.num_features for m in found) == folded, "of a batch norm a bias remains"
    assert len(bare(name, generation).state_dict) == keys
    assert len(found) == norms
    assert {m.eps for m in found} == {1e-3}
    assert millions is None or abs(folded / 1e6 - millions) < 0.1


@pytest.mark.parametrize(("name", "generation"), [("yolov5n", 7), ("yolov5s", 5), ("yolov5s", 3), ("yolov5s6_pose", 5)])
def test_folding_for_real_leaves_the_published_number_of_parameters(name: str, generation: int) -> None:
    fused = fuse_model(build_graph(config_of(name, classes_of(name), generation=generation)))
    assert sum(p.numel() for p in fused.parameters()) == PUBLISHED[name, generation][1]
    assert not any(isinstance(m, nn.BatchNorm2d | Focus) for m in fused.modules())


@pytest.mark.parametrize(("name", "generation"), [key for key, known in PUBLISHED.items() if known[5]])
def test_operations_are_the_published_ones(name: str, generation: int) -> None:
    """Every layer's size and width enters this number; the published ones count a little beside the convolutions."""
    graph, total = on_meta(name, generation), 0

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += 2 * conv.weight[0].numel() * output.numel()

    hooks = [m.register_forward_hook(count) for m in graph.modules() if isinstance(m, nn.Conv2d)]
    size = 960 if VARIANTS[name].pose else 640
    graph(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    published = PUBLISHED[name, generation][5]
    assert published is not None
    assert 0.99 * published <= total / 1e9 <= published + 0.05


@pytest.mark.parametrize(("levels", "generation"), GRAPHS)
def test_every_layer_is_the_published_one(levels: int, generation: int) -> None:
    """Kind, wiring and numbers: the order of a concatenation, for one, is in no shape and no count."""
    found = []
    for i, row in enumerate(layer_rows(levels, generation=generation)):
        sources, repeats, kind, arguments = read_row(i, row)
        found.append((kind, sources, repeats, tuple(arguments)))
    assert found == layers_of(levels, generation)
    if (levels, generation) == (4, 5):
        pose = layer_rows(4, generation=5, pose=True)
        assert pose[:-1] == layer_rows(4, generation=5)[:-1]
        assert pose[-1] == [[23, 26, 29, 32], 1, "Detect", ["nc", "anchors", "nkpt"]]


@pytest.mark.parametrize(
    ("name", "generation", "keys"),
    [
        ("yolov5n", 7, {"model.0.conv.weight": (16, 3, 6, 6), "model.9.cv2.conv.weight": (256, 512, 1, 1)}),
        ("yolov5s", 5, {"model.0.conv.conv.weight": (32, 12, 3, 3), "model.24.anchor_grid": (3, 1, 3, 1, 1, 2)}),
        ("yolov5x", 5, {"model.4.m.11.cv2.conv.weight": (160, 160, 3, 3), "model.24.m.2.weight": (255, 1280, 1, 1)}),
        ("yolov5s", 3, {"model.2.cv3.weight": (32, 32, 1, 1), "model.2.bn.weight": (64,)}),
        ("yolov5m6", 7, {"model.33.anchors": (4, 3, 2), "model.33.m.3.bias": (255,)}),
        ("yolov5s6_pose", 5, {"model.33.m_kpt.3.10.conv.weight": (512, 1, 3, 3), "model.33.m.0.bias": (18,)}),
    ],
)
def test_keys_are_the_originals(name: str, generation: int, keys: dict[str, tuple[int, ...]]) -> None:
    state = bare(name, generation).state_dict
    assert {key: tuple(state[key].shape) for key in keys} == keys


@pytest.mark.parametrize("name", LATEST)
def test_predictions_strides_and_columns_are_the_published_ones(name: str) -> None:
    v = VARIANTS[name]
    with torch.device("meta"):
        model = create_model(name)
        rows = model.module(torch.empty(1, 3, v.size, v.size))
    count = {640: 25_200, 960: 57_375, 1280: 102_000}[v.size]
    assert rows.shape == (1, count, 57 if v.pose else 85)
    assert model.module.head.stride == (8, 16, 32, 64)[: v.levels]
    assert model.spec.input.size == (v.size, v.size)
    thresholds = (model.spec.thresholds.conf, model.spec.thresholds.iou)
    assert thresholds == (0.25, 0.65 if v.pose else 0.45)


@pytest.mark.parametrize(
    ("name", "generation"), [("yolov5s", 3), ("yolov5s", 7), ("yolov5s6", 5), ("yolov5s6_pose", 5)]
)
def test_strides_are_what_the_layers_make_of_them(name: str, generation: int) -> None:
    described = config_of(name, 3, width=0.0625, generation=generation)
    with torch.device("meta"):
        assert build_graph(replace(described, strides=())).head.stride == described.strides


@pytest.mark.parametrize(
    ("generation", "kinds"), [(3, {nn.Hardswish: 51, nn.LeakyReLU: 8}), (5, {nn.SiLU: 59}), (7, {nn.SiLU: 57})]
)
def test_activations_are_those_of_their_generation(generation: int, kinds: dict[type[nn.Module], int]) -> None:
    found = [type(m) for m in on_meta("yolov5s", generation).modules() if type(m).__module__.endswith("activation")]
    assert {kind: found.count(kind) for kind in set(found)} == kinds


@pytest.mark.parametrize("described", [True, False])
def test_a_lite_model_has_relu_but_in_its_pooling_and_one_convolution_for_its_keypoints(described: bool) -> None:
    """Its project does not hand ``act`` to SPP, which keeps SiLU."""
    name = "yolov5s6_pose_ti_lite"
    graph = on_meta(name, 5)
    if described:
        with torch.device("meta"):
            graph = build_graph(GraphConfig.from_yaml(yaml_of(name, 5)))
    activations = {path: type(m) for path, m in graph.named_modules() if type(m).__module__.endswith("activation")}
    assert {path for path, kind in activations.items() if kind is nn.SiLU} == {"model.10.cv1.act", "model.10.cv2.act"}
    assert set(activations.values()) == {nn.ReLU, nn.SiLU}
    assert isinstance(graph.model[0], ConvFocus)
    assert isinstance(graph.head, Keypoint)
    assert [type(branch) for branch in graph.head.m_kpt] == [nn.Conv2d] * 4


# Checkpoints: which one is it?


@EVERY
def test_a_bare_state_dict_of_full_size_is_told_from_every_other(name: str, generation: int) -> None:
    model = from_checkpoint(bare(name, generation))
    assert model is not None
    assert (model.name, model.family) == (name.replace("_", "-"), "YOLOv5")
    pose, early, lite = VARIANTS[name].pose, generation < 7 and not VARIANTS[name].pose, VARIANTS[name].lite
    assert any(f"layers are those of YOLOv5 {GENERATIONS[generation]}" in note for note in model.notes) is early
    named = "Hardswish and LeakyReLU" if generation == 3 else "ReLU and SiLU" if lite else "SiLU"
    said, *more = model.spec.assumptions
    assert said == f"{named} activations and a batch-norm eps of 0.001, as {model.name} has them: no tensor tells"
    order = "the first layer's blocks in the order of edgeai-yolov5: no tensor tells"
    assert more == ([order] if pose and not lite else [])
    assert isinstance(model.module, LayerGraph)
    assert isinstance(model.module.head, Keypoint if pose else Detect)
    assert {m.rows_first for m in model.module.modules() if isinstance(m, Focus)} == (
        {not pose} if (early or pose) and not lite else set()
    )


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("yolov5n", 7),
        ("yolov5s", 3),
        ("yolov5m", 5),
        ("yolov5l6", 7),
        ("yolov5x6", 5),
        ("yolov5m6_pose", 5),
        ("yolov5s6_pose_ti_lite", 5),
    ],
)
def test_a_description_says_the_variant_and_its_generation(name: str, generation: int) -> None:
    model = from_checkpoint(bare(name, generation, yaml=yaml_of(name, generation)))
    assert model is not None
    assert model.name == name.replace("_", "-")
    assert model.spec.input.size == (VARIANTS[name].size,) * 2
    expected = (
        [] if generation == 7 or VARIANTS[name].pose else [f"its layers are those of YOLOv5 {GENERATIONS[generation]}"]
    )
    assert [note for note in model.notes if "layers" in note] == expected


def test_other_multiples_are_in_the_name() -> None:
    yaml = {**yaml_of("yolov5s", 7), "depth_multiple": 0.5}
    with torch.device("meta"):
        graph = build_graph(replace(config_of("yolov5s", 80), depth_multiple=0.5))
    model = from_checkpoint(bare("yolov5s", 7, yaml=yaml, state_dict=graph.state_dict()))
    assert model is not None
    assert (model.name, model.spec.input.size) == ("yolov5-depth-0.5-width-0.5", (640, 640))


@pytest.mark.parametrize("described", [True, False])
def test_a_relative_is_refused_by_what_it_is(described: bool) -> None:
    yaml = yaml_of("yolov5s", 7) if described else None
    checkpoint = bare("yolov5s", 7, yaml=yaml, modules=(Module("", "models.models.Darknet", {}),))
    match = r"best\.pt is a model of a Darknet description.*deploykit models lists what can be loaded"
    with pytest.raises(CheckpointError, match=match):
        model_from_checkpoint(checkpoint)


def test_a_bare_state_dict_that_may_be_kapaos_is_not_trusted() -> None:
    with torch.device("meta"):
        state = build_graph(config_of("yolov5s6", 52, generation=5)).state_dict()
    model = from_checkpoint(bare("yolov5s6", 5, state_dict=state))
    assert model is not None
    assert any("a KaPao model has the same tensors" in note for note in model.notes)


@pytest.mark.parametrize("key", ["model.0.conv.weight", "model.17.m.0.cv2.bn.running_mean"])
def test_a_wrong_tensor_is_named(key: str) -> None:
    state = bare("yolov5s", 7).state_dict
    changed = {**state, key: torch.zeros(7, 3, 6, 6, device="meta")}
    with pytest.raises(WeightsMismatchError, match=rf"{key} is \[7, 3, 6, 6\], expected .*of a changed yolov5s"):
        from_checkpoint(bare("yolov5s", 7, state_dict=changed))
    with pytest.raises(WeightsMismatchError, match=f"lacks the tensor {key}"):
        from_checkpoint(bare("yolov5s", 7, state_dict={k: t for k, t in state.items() if k != key}))


def test_a_description_of_yolov7s_layers_is_left_to_yolov7() -> None:
    rows = {"backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[-1], 1, "Detect", ["nc", "anchors"]]]}
    assert from_checkpoint(bare("yolov5n", 7, yaml={"nc": 80, "anchors": [[1, 2]], **rows})) is None


@pytest.mark.parametrize("yaml", [{"backbone": 5, "head": [None]}, {"backbone": [[-1, 1, ["C3"], []]], "head": "C3"}])
def test_a_description_that_cannot_be_read_is_left_to_others(yaml: dict[str, Any]) -> None:
    assert from_checkpoint(bare("yolov5n", 7, yaml=yaml)) is None


def test_the_anchors_in_cells_are_turned_into_pixels() -> None:
    """6.0 and later have no others, and those of a file may not be the published ones."""
    torch.manual_seed(0)
    graph = build_graph(config_of("yolov5n", 2))
    randomise(graph)
    state = {key: t for key, t in graph.state_dict().items() if not key.endswith("anchor_grid")}
    state["model.24.anchors"] = state["model.24.anchors"] * 3
    model = from_checkpoint(bare("yolov5n", 7, state_dict=state))
    assert model is not None
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, after = graph(images), model.module(images)
    torch.testing.assert_close(after[..., 2:4], before[..., 2:4] * 3)
    assert torch.equal(after[..., :2], before[..., :2])


def test_images_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    for generation in GENERATIONS:
        graph = build_graph(config_of("yolov5s", 3, width=0.125, generation=generation))
        randomise(graph)
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            together = graph(images)
            for i in (0, 1):
                torch.testing.assert_close(together[i : i + 1], graph(images[i : i + 1]), rtol=1e-4, atol=1e-3)
            assert not torch.allclose(together[0], together[1], rtol=1e-4, atol=1e-3)
