"""YOLOX: the published numbers, and every form in which its state dicts come."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.errors import CheckpointError, UsageError, WeightsMismatchError
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.create.random_weights import create_checkpoint, randomise
from deploykit.models.families.yolox import model as yolox
from deploykit.models.families.yolox.blocks import DepthwiseConv
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv
from deploykit.models.layers.focus import Focus
from deploykit.models.registry import create_model, load_model, with_preprocessing
from deploykit.spec import COCO_KEYPOINTS, Fit, KeypointSpec, RawDetections, Thresholds

State = dict[str, Tensor]

PUBLISHED = {
    "yolox-nano": (912_159, 904_463, 642, "3bb40b0511a5f905"),
    "yolox-tiny": (5_055_855, 5_047_191, 462, "94b84951f5111594"),
    "yolox-s": (8_968_255, 8_956_703, 462, "d0fc0633634b486c"),
    "yolox-m": (25_326_495, 25_304_847, 606, "446823ef5ea1313d"),
    "yolox-l": (54_208_895, 54_174_271, 750, "51ced5da4d6556be"),
    "yolox-x": (99_071_455, 99_020_975, 894, "946f1400621891b7"),
    "yolox-darknet53": (63_724_767, 63_695_903, 528, "d0bd1bcc34f617db"),
    "yolox-nano-ti-lite": (2_257_403, 2_251_615, 468, "597e7a1e5c1ade30"),
    "yolox-tiny-ti-lite": (5_056_203, 5_047_527, 468, "49d7c8a9c0cbb812"),
    "yolox-s-ti-lite": (8_968_603, 8_957_039, 468, "1afa963b7a86f788"),
    "yolox-m-ti-lite": (25_326_843, 25_305_183, 612, "213102dc895e7bfc"),
    "yolox-s-pose": (9_843_691, 9_831_371, 504, "51ea624fa268685d"),
    "yolox-s-pose-ti-lite": (9_844_039, 9_831_707, 510, "e274e8591f1558ac"),
}
"""Parameters, the same folded, tensors of the state dict, and the beginning of the SHA-256 of their names and shapes.

All but the folded ones are of the originals' own code, run: Megvii-BaseDetection/YOLOX and TexasInstruments/
edgeai-yolox. The folded counts follow from them: a batch norm leaves one of its two vectors, as a bias.
"""


def digest(state: State) -> str:
    lines = sorted(f"{key} {tuple(t.shape)}" for key, t in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def after_folding(module: nn.Module) -> int:
    return parameters(module) - sum(m.num_features for m in module.modules() if isinstance(m, nn.BatchNorm2d))


def narrow(name: str, num_classes: int = 3, *, width: float = 0.125, num_keypoints: int = 4) -> yolox.Yolox:
    torch.manual_seed(0)
    config = yolox.VARIANTS[name].config(num_classes, num_keypoints=num_keypoints, width=width)
    network = yolox.build_yolox(config)
    randomise(network)
    return network


@pytest.fixture
def state() -> State:
    return narrow("yolox_s").state_dict()


# What was published


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_variant_has_the_originals_tensors(name: str) -> None:
    with torch.device("meta"):
        module = create_model(name).module
    found = module.state_dict()
    assert (parameters(module), after_folding(module), len(found), digest(found)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_darknet53", "yolox_s_pose_ti_lite"])
def test_folding_leaves_a_bias_of_each_batch_norm(name: str) -> None:
    network = narrow(name)
    folded = fuse_model(network)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d | Focus)]
    assert parameters(folded) == after_folding(network)


def test_a_depthwise_fold_is_depthwise_still() -> None:
    folded = fuse_model(narrow("yolox_nano"))
    pairs = [m for m in folded.modules() if isinstance(m, DepthwiseConv)]
    assert len(pairs) == 30
    assert all(m.dconv.conv.groups == m.dconv.conv.in_channels for m in pairs)


def test_the_batch_norms_are_those_of_the_original() -> None:
    norms = [m for m in narrow("yolox_nano").modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize(
    ("name", "kind"), [("yolox_s", nn.SiLU), ("yolox_s_ti_lite", nn.ReLU), ("yolox_darknet53", nn.LeakyReLU)]
)
def test_activations_are_as_published(name: str, kind: type[nn.Module]) -> None:
    acts = [m.act for m in narrow(name).modules() if isinstance(m, Conv)]
    assert {type(act) for act in acts} == {kind}
    assert {getattr(act, "negative_slope", 0.1) for act in acts} == {0.1}


def test_the_spec_is_that_of_the_original_programs() -> None:
    spec = create_model("yolox-nano").spec
    assert (spec.input.size, spec.input.colour, spec.input.scale) == ((416, 416), "bgr", 1.0)
    assert (spec.input.mean, spec.input.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert spec.input.fit == Fit("letterbox", stride=32, pad_value=114, anchor="top-left", rounding="floor")
    assert spec.output == RawDetections(cls=(5, 85))
    assert spec.thresholds == Thresholds(conf=0.25, iou=0.45)
    assert spec.classes == COCO_CLASSES


def test_a_grid_of_640_has_8400_cells() -> None:
    with torch.no_grad():
        rows = narrow("yolox_s")(torch.zeros(1, 3, 640, 640))
    assert rows.shape == (1, 8400, 8)


def test_one_cell_is_decoded_by_the_published_equations() -> None:
    head = narrow("yolox_s_pose", num_classes=1, num_keypoints=2).head
    raw = torch.tensor([0.5, -0.25, 1.0, 0.0, 0.0, 2.0, 0.3, 0.1, 0.26, 0.0, 0.0, 0.25])
    row = head.rows_of(raw, torch.tensor([3.0, 2.0]), 16).tolist()
    logit = (2 * 0.26 - 0.5) * 16  # the original's own value, which it trains as a logit
    expected = [56.0, 28.0, 16 * 2.718282, 16.0, 0.5, 0.880797]
    points = [(0.6 - 0.5 + 3) * 16, (0.2 - 0.5 + 2) * 16, 1 / (1 + 2.718282**-logit), 2.5 * 16, 1.5 * 16, 0.5]
    assert row == pytest.approx([*expected, *points], abs=1e-4)


# Checkpoints


@pytest.mark.parametrize("name", yolox.VARIANTS)
def test_a_created_checkpoint_is_recognised(name: str, tmp_path: Path) -> None:
    if yolox.VARIANTS[name].width > 0.5:
        with torch.device("meta"):  # the name follows from keys and shapes, whatever the values are
            config = yolox.VARIANTS[name].config(80)
        assert yolox._name_of(config) == (name, yolox.VARIANTS[name].size)
        return
    path = create_checkpoint(name, tmp_path / "it.pth", seed=3)
    content = torch.load(path, weights_only=True)
    assert sorted(content) == ["model", "names", "random_seed"]
    assert {t.dtype for t in content["model"].values()} == {torch.float32, torch.int64}
    model = load_model(path)
    assert model.name == name.replace("_", "-")
    activation = "ReLU" if "ti_lite" in name else "SiLU"
    assumed = (f"{activation} activations and a batch-norm eps of 0.001, as {model.name} has them: no tensor tells",)
    assert model.spec == replace(create_model(name).spec, source=model.spec.source, assumptions=assumed)
    assert model.notes == ("random weights (seed 3): predictions are meaningless",)


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_s_ti_lite", "yolox_darknet53"])
def test_a_model_that_its_project_folded_computes_the_same(save: Any, name: str) -> None:
    network = narrow(name)
    state = network.state_dict()
    for path, module in network.named_modules():
        if isinstance(module, Conv):
            conv = module.fuse(path).conv
            assert conv.bias is not None
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{path}.bn.")}
            state |= {f"{path}.conv.weight": conv.weight, f"{path}.conv.bias": conv.bias}
    model = load_model(save({"model": state}))
    assert model.notes == ("it was saved after its project fused its batch norms: taken as it is",)
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        expected = network(images)
        for form in (model.module, fuse_model(model.module)):
            torch.testing.assert_close(form(images), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("name", "num_classes"), [("yolox_nano", 1), ("yolox_s", 4), ("yolox_darknet53", 7)])
def test_any_number_of_classes_is_recognised(save: Any, name: str, num_classes: int) -> None:
    model = load_model(save({"model": narrow(name, num_classes).state_dict()}))
    assert model.spec.classes == tuple(f"class {i}" for i in range(num_classes))
    assert model.spec.output == RawDetections(cls=(5, 5 + num_classes))
    assert model.notes == ()


@pytest.mark.parametrize(
    ("name", "width", "called"),
    [
        ("yolox_m", 0.125, "yolox-depth-0.67-width-0.125"),
        ("yolox_x", 0.3125, "yolox-depth-1.33-width-0.3125"),
        ("yolox_nano", 0.125, "yolox-depthwise-depth-0.33-width-0.125"),
        ("yolox_s_ti_lite", 0.125, "yolox-ti-lite-depth-0.33-width-0.125"),
        ("yolox_s_pose_ti_lite", 0.125, "yolox-pose-ti-lite-depth-0.33-width-0.125"),
        ("yolox_darknet53", 0.25, "yolox-darknet53-width-0.25"),
        ("yolox_s", 0.5, "yolox-s"),
    ],
)
def test_any_width_is_recognised(save: Any, name: str, width: float, called: str) -> None:
    network = narrow(name, 2, width=width)
    model = load_model(save(network.state_dict()))
    assert (model.name, model.family) == (called, "YOLOX")
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        assert torch.equal(model.module(images), network(images))


@pytest.mark.parametrize("num_keypoints", [17, 5])
def test_any_number_of_keypoints_is_recognised(save: Any, num_keypoints: int) -> None:
    model = load_model(save(narrow("yolox_s_pose", 1, num_keypoints=num_keypoints).state_dict()))
    assert model.spec.task == "keypoints"
    assert model.spec.keypoints == (COCO_KEYPOINTS if num_keypoints == 17 else KeypointSpec.unnamed(num_keypoints))
    assert model.spec.output == RawDetections(cls=(5, 6), keypoints=(6, 6 + 3 * num_keypoints))
    assert model.notes == ()


def test_keypoints_of_several_classes_are_said_to_be_ours(save: Any) -> None:
    model = load_model(save(narrow("yolox_s_pose", 2).state_dict()))
    assert model.notes == ("the original decodes keypoints right for one class only: with more, ours is what it means",)


def test_every_container_gives_the_same_model(save: Any, state: State, tmp_path: Path) -> None:
    training = {
        "start_epoch": 300,
        "model": state,
        "optimizer": {"state": {0: {"momentum": state["head.cls_preds.0.bias"]}}},
    }
    contents: dict[str, Any] = {
        "bare": state,
        "training": {**training, "best_ap": 0.4, "curr_ap": 0.3},
        "DataParallel": {"model": {f"module.{key}": t for key, t in state.items()}},
        "without counters": {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")},
    }
    for name, content in contents.items():
        model = load_model(save(content))
        found = model.module.state_dict()
        assert all(torch.equal(t, found[key]) for key, t in state.items()), name
        assert found.keys() == state.keys()
    save_file(state, tmp_path / "weights.safetensors")
    found = load_model(tmp_path / "weights.safetensors").module.state_dict()
    assert all(torch.equal(t, found[key]) for key, t in state.items())


def test_half_precision_is_read_as_float32(save: Any, state: State) -> None:
    model = load_model(save({key: t.half() if t.is_floating_point() else t for key, t in state.items()}))
    assert {t.dtype for t in model.module.state_dict().values()} == {torch.float32, torch.int64}


def test_class_names_beside_the_weights_are_used_where_they_are_as_many(save: Any, state: State) -> None:
    assert load_model(save({"model": state, "names": ["cat", "dog", "fox"]})).spec.classes == ("cat", "dog", "fox")
    model = load_model(save({"model": state, "names": ["cat"]}))
    assert model.spec.classes == ("class 0", "class 1", "class 2")
    assert model.notes == ("it names 1 classes and has 3: they are numbered instead",)


# What is refused


def without(state: State, *beginnings: str) -> State:
    return {key: t for key, t in state.items() if not key.startswith(beginnings)}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda s: without(s, "backbone.C3_n4."), WeightsMismatchError, r"lacks the tensor backbone\.C3_n4\."),
        (lambda s: dict(list(s.items())[-200:]), CheckpointError, r"stem\.conv\.conv\.weight is missing: expected"),
        (lambda s: without(s, "head.obj_preds.2."), WeightsMismatchError, r"lacks the tensor head\.obj_preds\.2\."),
        (lambda s: without(s, "head.cls_preds.0."), CheckpointError, r"head\.cls_preds\.0\.weight is missing"),
        (
            lambda s: s | {"head.cls_preds.1.weight": torch.zeros(5, 32, 1, 1)},
            WeightsMismatchError,
            r"head\.cls_preds\.1\.weight is \[5, 32, 1, 1\], expected \[3, 32, 1, 1\]",
        ),
        (
            lambda s: s | {f"head.cls_preds.{i}.weight": torch.zeros(3, 64, 1, 1) for i in range(3)},
            WeightsMismatchError,
            r"head\.cls_preds\.0\.weight is \[3, 64, 1, 1\], expected \[3, 32, 1, 1\]",
        ),
        (
            lambda s: s | {"head.reg_preds.0.weight": torch.zeros(5, 32, 1, 1)},
            WeightsMismatchError,
            r"head\.reg_preds\.0\.weight is \[5, 32, 1, 1\], expected \[4, 32, 1, 1\]",
        ),
        (
            lambda s: s | {"head.kpts_preds.0.weight": torch.zeros(50, 32, 1, 1)},
            CheckpointError,
            r"gives 50 values, expected 3 for each keypoint",
        ),
        (lambda s: s | {"head.cls_preds.0.weight": torch.zeros(3)}, CheckpointError, r"cls_preds\.0\.weight is \[3\]"),
        (lambda s: s | {"head.extra": torch.zeros(1)}, WeightsMismatchError, r"holds the tensor head\.extra, which"),
        (
            lambda s: s | {"backbone.backbone.dark2.1.m.9999.conv1.conv.weight": torch.zeros(1)},
            WeightsMismatchError,
            r"lacks the tensor backbone\.backbone\.dark2\.1\.m\.1\.",
        ),
        (
            lambda s: s | {"backbone.backbone.stem.conv.conv.weight": torch.zeros(40_000, 1, 1, 1)},
            WeightsMismatchError,
            r"stem\.conv\.conv\.weight is \[40000, 1, 1, 1\], expected \[40000, 12, 3, 3\]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_by_name(
    save: Any, state: State, change: Callable[[State], State], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as refused:
        load_model(save({"model": change(state)}))
    assert re.search(r"of another (network|model) \(deploykit inspect shows it\)", str(refused.value))


def test_a_state_dict_that_only_begins_like_one_is_of_no_family(save: Any, state: State) -> None:
    with pytest.raises(CheckpointError, match="of a model that deploykit does not know"):
        load_model(save(without(state, "head.")))


# Preprocessing


def test_legacy_preprocessing_is_chosen_by_name() -> None:
    model = create_model("yolox-s")
    legacy = with_preprocessing(model, "legacy")
    assert legacy.spec.input == replace(
        model.spec.input, colour="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert legacy.notes == ("images are prepared as legacy weights want it (--preprocessing legacy)",)
    assert with_preprocessing(model, "default") is model


def test_a_preprocessing_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="yolox-s has no preprocessing 'old'; it has default, legacy"):
        with_preprocessing(create_model("yolox-s"), "old")
    with pytest.raises(UsageError, match="yolov7-tiny has no preprocessing 'legacy'; it has default"):
        with_preprocessing(create_model("yolov7-tiny"), "legacy")


@pytest.mark.parametrize("name", ["yolox_s", "yolox_s_ti_lite", "yolox_darknet53"])
@pytest.mark.parametrize(("mean", "said"), [(114.0, False), (0.45, True), (-0.1, True)])
def test_weights_of_scaled_images_are_noticed(save: Any, name: str, mean: float, said: bool) -> None:
    """The first batch norm's means are those of images of one grey, and of some noise."""
    network = narrow(name)
    first = network.first
    sums = first.conv.weight.sum((1, 2, 3))
    first.bn.running_mean = mean * sums + 0.01 * first.conv.weight.std() * torch.randn(len(sums))  # type: ignore[assignment]
    assert yolox.mean_pixel(network) == pytest.approx(mean, abs=0.05)
    notes = [note for note in load_model(save(network.state_dict())).notes if "--preprocessing legacy" in note]
    assert len(notes) == said
    assert all("was trained on pixels of mean" in note for note in notes)


# Random weights


@pytest.mark.parametrize(
    "name", ["yolox_x", "yolox_nano", "yolox_darknet53", "yolox_m_ti_lite", "yolox_s_pose_ti_lite"]
)
def test_random_weights_see_the_image_and_are_not_chaotic(name: str) -> None:
    network = narrow(name, 1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator) * torch.tensor([255.0, 60.0])[:, None, None, None]
    with torch.no_grad():
        rows, folded = network(images), fuse_model(network)(images)
    assert float((rows - folded)[..., :4].abs().max()) < 1e-3
    assert float((rows - folded)[..., 4:6].abs().max()) < 1e-5
    assert float((rows[0, :, :4] - rows[1, :, :4]).abs().max()) > 0.05
    assert 0 < float(rows[..., 4].mean()) < 0.1
    assert rows[..., 2:4].max() < 2000
