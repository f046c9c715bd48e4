"""Checkpoints that are no more than a state dict: made with random weights, recognised by keys and shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.errors import CheckpointError, NotFoundError, OutputError, UsageError, WeightsMismatchError
from deploykit.models.create.random_weights import create_checkpoint, randomise
from deploykit.models.families import yolov5
from deploykit.models.families.yolov7 import config_of
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.models.yolo_graph.one_class import OBJECTNESS
from deploykit.spec import KeypointSpec
from tests.meta_model import meta_model

State = dict[str, Tensor]


def tiny(num_classes: int, *, training: bool = False, seed: int = 0) -> State:
    torch.manual_seed(seed)
    graph = build_graph(config_of("yolov7_tiny", num_classes, training=training))
    randomise(graph)
    return {key: t.half() if t.is_floating_point() else t for key, t in graph.state_dict().items()}


@pytest.fixture(scope="module")
def state() -> State:
    return tiny(3)


# What create_checkpoint writes


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    paths = [create_checkpoint("yolov7-tiny", tmp_path / f"{i}.pt", seed=seed) for i, seed in enumerate((7, 7, 8))]
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]
    assert digests[0] == digests[1] != digests[2]
    first, _, other = (load_model(p).module.state_dict() for p in paths)
    changed = {key for key in first if not torch.equal(first[key], other[key])}
    assert {key for key in first if key.endswith("conv.weight")} <= changed


def test_torchs_own_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create_checkpoint("yolov7-tiny", tmp_path / "x.pt")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "size", "notes"),
    [
        ("yolov7-tiny", 640, 1),
        ("yolov5n", 640, 1),
        ("yolov5s6-pose", 960, 1),
        ("kapao-s", 1280, 1),
        pytest.param("yolov7-w6-pose", 960, 1, marks=pytest.mark.slow),
    ],
)
def test_a_created_checkpoint_is_recognised_and_says_what_it_is_worth(
    tmp_path: Path, name: str, size: int, notes: int
) -> None:
    path = create_checkpoint(name, tmp_path / "made" / "it.pt", seed=3)
    model = load_model(path)
    assert model.name == model.spec.source.model == name
    assert model.spec.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.spec.input.size == (size, size)
    assert model.spec.classes[0] == "person"
    told = replace(model.spec, assumptions=())  # a builder assumes nothing
    assert told == replace(meta_model(name).spec, source=model.spec.source)
    assert len(model.notes) == notes
    assert model.notes[-1] == "random weights (seed 3): predictions are meaningless"
    assert {t.dtype for t in model.module.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert [p.name for p in path.parent.iterdir()] == ["it.pt"], "nothing else is left behind"


def test_random_weights_detect_a_little_and_see_the_image(tmp_path: Path) -> None:
    module = load_model(create_checkpoint("yolov7-tiny", tmp_path / "x.pt")).module
    with torch.no_grad():
        rows = module(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert bool(rows.isfinite().all())
    assert 0 < float(rows[..., 4].mean()) < 0.1
    assert float((rows[0, :, :4] - rows[1, :, :4]).abs().max()) > 1


@pytest.mark.parametrize(("name", "generation"), [("yolov5x6", 7), ("yolov5x", 3)])
def test_random_weights_of_the_deepest_networks_are_not_chaotic(name: str, generation: int) -> None:
    """Folding changes no more than rounding does; with shortcuts that add up it would be hundreds of times more."""
    torch.manual_seed(0)
    graph = build_graph(yolov5.config_of(name, 1, width=0.125, generation=generation))
    randomise(graph)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        rows, folded = graph(images), fuse_model(graph)(images)
    assert float((rows - folded).abs().max()) < 1e-3
    assert float((rows[0, :, :4] - rows[1, :, :4]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": "yolov7-tinny"}, NotFoundError, "did you mean yolov7-tiny"),
        ({"out": "x.onnx"}, UsageError, r"ends in \.pt or \.pth, got x\.onnx"),
        ({"out": "x.safetensors"}, UsageError, r"ends in \.pt or \.pth, got x\.safetensors"),
        ({"num_classes": 0}, UsageError, "at least 1 class, got 0"),
        ({"seed": -1}, UsageError, "a seed is 0 to 9223372036854775807, got -1"),
        ({"seed": 2**70}, UsageError, "a seed is 0 to"),
        ({"out": "taken.txt/x.pt"}, OutputError, "cannot write"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    (tmp_path / "taken.txt").write_text("a file where a folder would be needed")
    out = tmp_path / arguments.pop("out", "x.pt")
    with pytest.raises(error, match=match):
        create_checkpoint(**{"name": "yolov7-tiny", "out": out, **arguments})
    assert [p.name for p in tmp_path.iterdir()] == ["taken.txt"]


# State dicts that come from elsewhere


@pytest.mark.parametrize("num_classes", [1, 2, 80, 365])
@pytest.mark.parametrize("training", [False, True], ids=["deploy", "training"])
def test_any_number_of_classes_is_recognised(save: Any, num_classes: int, training: bool) -> None:
    model = load_model(save(tiny(num_classes, training=training)))
    assert model.name == "yolov7-tiny"
    assert model.spec.classes == tuple(f"class {i}" for i in range(num_classes))
    assert model.notes == ((OBJECTNESS,) if num_classes == 1 else ())
    assert isinstance(model.module, LayerGraph)
    assert hasattr(model.module.head, "ia") is training


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "num_keypoints"), [(1, 17), (2, 5)])
def test_any_number_of_keypoints_is_recognised(save: Any, num_classes: int, num_keypoints: int) -> None:
    graph = build_graph(config_of("yolov7_w6_pose", num_classes, num_keypoints=num_keypoints))
    model = load_model(save(graph.half().state_dict()))
    assert model.name == "yolov7-w6-pose"
    assert model.spec.keypoints is not None
    assert len(model.spec.keypoints.names) == num_keypoints
    assert (model.spec.keypoints == KeypointSpec.unnamed(num_keypoints)) == (num_keypoints != 17)


@pytest.mark.slow
def test_training_and_deploy_form_of_a_large_variant_are_told_apart(save: Any) -> None:
    for training, head in ((False, "Detect"), (True, "IAuxDetect")):
        graph = build_graph(config_of("yolov7_w6", 4, training=training))
        model = load_model(save({"model": graph.half().state_dict()}))
        assert (model.name, type(model.module.head).__name__) == ("yolov7-w6", head)
        assert any("auxiliary heads are dropped" in note for note in model.notes) is training


def test_every_container_and_prefix_gives_the_same_model(save: Any, state: State, tmp_path: Path) -> None:
    plain = load_model(save(state)).module.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    wrapped = {f"module.{key}": t for key, t in state.items()}
    paths: dict[str, Any] = {
        "state_dict": {"state_dict": state, "epoch": 3},
        "ema before model": {"ema": state, "model": {key: t * 0 for key, t in state.items()}},
        "DataParallel": {"model": wrapped},
        "float32": {key: t.float() if t.is_floating_point() else t for key, t in state.items()},
    }
    for name, content in paths.items():
        model = load_model(save(content))
        found = model.module.state_dict()
        assert all(torch.equal(plain[key], found[key]) for key in plain), name
        assert [n for n in model.notes if "prefix" in n] == (
            ["DataParallel prefix 'module.' removed"] if name == "DataParallel" else []
        )
    found = load_model(tmp_path / "weights.safetensors").module.state_dict()
    assert all(torch.equal(plain[key], found[key]) for key in plain)


def test_class_names_beside_a_state_dict_are_used(save: Any, state: State) -> None:
    model = load_model(save({"model": state, "names": ["cat", "dog", "bird"]}))
    assert model.spec.classes == ("cat", "dog", "bird")


def test_class_names_of_another_number_are_not_guessed_at(save: Any, state: State) -> None:
    model = load_model(save({"model": state, "names": ["cat", "dog"]}))
    assert model.spec.classes == ("class 0", "class 1", "class 2")
    assert model.notes == ("it names 2 classes and has 3: they are numbered instead",)


def test_the_anchors_are_those_of_the_file(save: Any, state: State) -> None:
    changed = {**state, "model.77.anchor_grid": state["model.77.anchor_grid"] * 2}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, after = (load_model(save(s)).module(images) for s in (state, changed))
    torch.testing.assert_close(after[..., 2:4], before[..., 2:4] * 2)
    assert torch.equal(after[..., :2], before[..., :2])


@pytest.mark.parametrize("change", ["absent", "averaged"])
def test_the_counters_of_training_may_be_absent_or_floats(save: Any, state: State, change: str) -> None:
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    rest = {key: t for key, t in state.items() if key not in counters}
    model = load_model(save(rest if change == "absent" else {**state, **dict.fromkeys(counters, torch.tensor(0.5))}))
    assert model.name == "yolov7-tiny"
    loaded = model.module.state_dict()
    assert {loaded[key].dtype for key in counters} == {torch.int64}
    assert all(torch.equal(loaded[key], t.float()) for key, t in rest.items())


# State dicts that do not fit


def changed(state: State, key: str, value: Tensor | None) -> State:
    new = {k: t for k, t in state.items() if k != key}
    return new if value is None else {**new, key: value}


WRONG: dict[str, tuple[str, Tensor | None, str]] = {
    "missing": ("model.21.conv.weight", None, r"lacks the tensor model\.21\.conv\.weight \[256, 512, 1, 1\]"),
    "missing statistics": ("model.5.bn.running_var", None, r"lacks the tensor model\.5\.bn\.running_var \[32\]"),
    "missing anchors": ("model.77.anchors", None, r"lacks the tensor model\.77\.anchors \[3, 3, 2\]"),
    "missing head": ("model.77.m.0.weight", None, r"lacks the tensor model\.77\.m\.0\.weight \[24, 128, 1, 1\]"),
    "extra": ("model.3.extra", torch.zeros(3), r"holds the tensor model\.3\.extra, which yolov7-tiny does not have"),
    "extra layer": ("model.78.conv.weight", torch.zeros(3), r"holds the tensor model\.78\.conv\.weight"),
    "wider": ("model.0.conv.weight", torch.zeros(48, 3, 3, 3), r"is \[48, 3, 3, 3\], expected \[32, 3, 3, 3\]"),
    "flat": ("model.0.conv.weight", torch.zeros(864), r"0\.conv\.weight is \[864\], expected \[32, 3, 3, 3\]"),
    "a number": ("model.9.bn.bias", torch.tensor(0.0), r"9\.bn\.bias is \[\], expected \[64\]"),
    "empty": ("model.9.bn.bias", torch.zeros(0), r"9\.bn\.bias is \[0\], expected \[64\]"),
    "integers": ("model.9.bn.bias", torch.zeros(64).int(), r"9\.bn\.bias is of torch\.int32, expected torch\.float32"),
    "four anchors": ("model.77.anchor_grid", torch.zeros(3, 1, 4, 1, 1, 2), r"77\.anchor_grid is \[3, 1, 4, 1, 1, 2\]"),
    "another level's classes": ("model.77.m.2.bias", torch.zeros(27), r"77\.m\.2\.bias is \[27\], expected \[24\]"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "match"), WRONG.values(), ids=WRONG)
def test_a_wrong_tensor_is_named(save: Any, state: State, key: str, value: Tensor | None, match: str) -> None:
    path = save(changed(state, key, value))
    with pytest.raises(WeightsMismatchError, match=match) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(
        "it is of a changed yolov7-tiny, or of another network (deploykit inspect shows it)"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict(),
        lambda: {"model.77.anchors": torch.zeros(3, 3, 2)},
        lambda: {"model.77.m.0.weight": torch.zeros(24, 128, 1, 1)},
        lambda: {"model.77.m.0.weight": torch.zeros(())},
        lambda: {"model.77.m.0.weight": torch.zeros(0, 128, 1, 1), "model.77.anchors": torch.zeros(0)},
        lambda: {"model.77.m.0.weight": torch.zeros(10**9, 0, 1, 1)},
        lambda: {"model.118.m_kpt.0.11.weight": torch.zeros(()), "model.118.m.0.weight": torch.zeros(18, 0, 1, 1)},
        lambda: {"model.9999.m.0.weight": torch.zeros(24, 1)},
        lambda: {"model.99999999999999999999.m.0.weight": torch.zeros(24, 1)},
    ],
    ids=["another model", "anchors only", "head only", "no shape", "no classes", "a billion classes", "no keypoints",
         "layer 9999", "layer 1e20"],
)  # fmt: skip
def test_another_models_state_dict_is_refused_with_what_to_do(save: Any, make: Callable[[], State]) -> None:
    path = save(make())
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert type(caught.value) is CheckpointError
    assert str(caught.value).startswith(f"{path} is a checkpoint of a model that deploykit does not know: ")
    assert str(caught.value).endswith("deploykit inspect shows it, deploykit models lists what can be loaded")


def test_a_narrower_model_without_a_description_is_not_taken_for_the_wide_one(save: Any) -> None:
    with pytest.raises(CheckpointError, match="a model that deploykit does not know"):
        load_model(save(build_graph(config_of("yolov7_tiny", 3, width=0.5)).state_dict()))
