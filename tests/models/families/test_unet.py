"""U-Nets: the published numbers, every form in which their state dicts come, and trained ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.create.random_weights import create_checkpoint, randomise
from deploykit.models.families.unet import model as family
from deploykit.models.families.unet.key_layouts import LAYOUTS, MODULE_LISTS, POOLED
from deploykit.models.families.unet.network import Level, UNet, UNet2015, UNetConfig, build_unet, least_side
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import FAMILIES, create_model, load_model
from deploykit.runtime.images.reading import read_image
from deploykit.spec import DenseOutput, Fit

State = dict[str, Tensor]

PUBLISHED = {"unet": (31_037_698, 118), "unet-bilinear": (17_263_042, 110), "unet-2015": (31_030_658, 46)}
"""Parameters and tensors; of the paper's the sum over its figure."""

POOLED_CONFIG = UNetConfig(
    4, 1, (Level(16, 16, 0, 7), Level(6, 8)), (Level(7, 6, 16), Level(4, 3, 1)), "pooled", skip_first=False
)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def narrow(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = UNetConfig.published(**{"width": 4, "depth": 3, "num_classes": 3} | changes)
    network = build_unet(config)
    randomise(network)
    return network


def theirs(network: nn.Module, layout: Any, depth: int) -> State:
    """The network's tensors as a project calls them."""
    return {layout.own_name(key, depth): tensor for key, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def state() -> State:
    return narrow().state_dict()


# What was published


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_variant_has_the_originals_tensors(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert (model.parameters, len(model.module.state_dict())) == PUBLISHED[name]


def test_the_paper_is_added_up() -> None:
    """Its figure: 23 convolutions, those of 3x3 in pairs."""
    widths = [64, 128, 256, 512, 1024]
    down = sum(9 * a * b + b + 9 * b * b + b for a, b in zip([1, *widths[:-1]], widths, strict=True))
    up = sum(4 * 2 * c * c + c + 9 * 2 * c * c + c + 9 * c * c + c for c in widths[:-1])
    assert down + up + 64 * 2 + 2 == PUBLISHED["unet-2015"][0]
    with torch.device("meta"):
        module = create_model("unet-2015").module
    assert isinstance(module, UNet2015)
    assert module.margin == 92, "572 pixels in, 388 out"


@pytest.mark.parametrize("num_classes", [1, 3])
def test_another_number_of_classes_is_another_last_layer(num_classes: int) -> None:
    with torch.device("meta"):
        model = create_model("unet", num_classes=num_classes)
    assert model.parameters == PUBLISHED["unet"][0] + 65 * (num_classes - 2)
    expected = ("background", "foreground") if num_classes == 1 else ("class 0", "class 1", "class 2")
    assert model.spec.classes == expected


def test_the_spec_is_that_of_the_original_program() -> None:
    spec = create_model("unet").spec
    assert (spec.task, spec.output, spec.classes) == ("segment", DenseOutput(name="logits"), ("background", "car"))
    assert (spec.input.size, spec.input.channels, spec.input.colour, spec.input.scale) == (
        (640, 959),
        3,
        "rgb",
        1 / 255,
    )
    assert spec.input.fit == Fit("letterbox", stride=1, shrink="area", least=16)
    with torch.device("meta"):
        old = create_model("unet-2015").spec
    assert (old.input.size, old.input.channels, old.input.fit) == ((388, 388), 1, Fit("pad", stride=1, least=108))
    assert len(old.input.mean) == len(old.input.std) == 1


def test_the_batch_norms_are_those_of_the_original() -> None:
    norms = [m for m in narrow().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-5}
    assert len(norms) == 14


@pytest.mark.parametrize("config", [{}, {"bilinear": True}], ids=["transposed", "bilinear"])
def test_folding_keeps_the_keys_and_leaves_a_bias_of_each_batch_norm(config: dict[str, Any]) -> None:
    network = narrow(**config)
    folded = fuse_model(network)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    norms = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert parameters(folded) == parameters(network) - sum(norms)
    convolutions = {key for key, p in network.named_parameters() if p.ndim == 4}
    assert {key for key, p in folded.named_parameters() if p.ndim == 4} == convolutions
    assert "down1.maxpool_conv.1.double_conv.3.bias" in folded.state_dict()


@pytest.mark.parametrize("config", [UNetConfig.published(width=16), UNetConfig.published(width=16, bilinear=True)])
def test_random_weights_see_the_image_and_are_not_chaotic(config: UNetConfig) -> None:
    torch.manual_seed(0)
    network = build_unet(config)
    randomise(network)
    images = torch.rand(1, 3, 61, 45)
    with torch.no_grad():
        logits, moved = network(images), network(images + 0.02 * torch.randn_like(images))
        wide = network.double()(images.double())
    span = float(logits.max() - logits.min())
    assert span > 0.1
    assert float((logits - moved).abs().max()) > 0.01 * span
    assert float((logits - wide).abs().max()) < 1e-5 * span


WIDE, BILINEAR = narrow(), narrow(bilinear=True, num_classes=1)


@settings(max_examples=20)
@given(height=st.integers(8, 70), width=st.integers(8, 70), bilinear=st.booleans())
def test_logits_are_as_large_as_the_image(height: int, width: int, bilinear: bool) -> None:
    with torch.no_grad():
        logits = (BILINEAR if bilinear else WIDE)(torch.rand(1, 3, height, width))
    assert logits.shape == (1, 1 if bilinear else 3, height, width)
    assert bool(logits.isfinite().all())


# Checkpoints


@pytest.mark.parametrize("name", ["unet-bilinear", "unet-2015"])
def test_a_created_checkpoint_is_recognised(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an eighth of the width, which tells the same and is read faster."""
    narrow = {
        "unet-bilinear": UNetConfig.published(num_classes=2, bilinear=True, width=8),
        "unet-2015": replace(UNetConfig.published(channels=1, num_classes=2, width=8), kind="valid"),
    }
    monkeypatch.setitem(family.VARIANTS, name.replace("-", "_"), narrow[name])
    monkeypatch.setattr(family, "WIDTH", 8)
    model = load_model(create_checkpoint(name, tmp_path / "it.pth", seed=3))
    assert model.name == name
    assert model.spec == replace(create_model(name).spec, source=model.spec.source, assumptions=model.spec.assumptions)
    assert model.notes == ("random weights (seed 3): predictions are meaningless",)


@pytest.mark.parametrize(
    ("changes", "called"),
    [
        ({}, "unet-depth-3-width-4"),
        ({"depth": 4, "width": 64}, "unet"),
        ({"depth": 4, "channels": 4}, "unet-width-4-channels-4"),
        ({"bilinear": True, "depth": 1, "width": 2}, "unet-bilinear-depth-1-width-2"),
    ],
)
def test_any_width_depth_and_number_of_channels_is_recognised(save: Any, changes: dict[str, Any], called: str) -> None:
    if changes.get("width") == 64:
        assert family._name_of(UNetConfig.published(num_classes=7)) == called
        return
    network = narrow(**changes)
    model = load_model(save(network.state_dict()))
    assert (model.name, model.family, model.notes) == (called, "U-Net", ())
    assert model.spec.input.channels == len(model.spec.input.mean) == changes.get("channels", 3)
    images = torch.rand(1, model.spec.input.channels, 40, 33)
    with torch.no_grad():
        assert torch.equal(model.module(images), network(images))


def test_levels_of_any_sizes_are_recognised(save: Any) -> None:
    contracting = (Level(3, 5), Level(7, 6), Level(9, 11))
    network = build_unet(UNetConfig(2, 4, contracting, (Level(5, 3, 4), Level(8, 7, 2))))
    model = load_model(save(network.state_dict()))
    assert model.name == "unet-depth-2-width-5-channels-2-custom"
    assert isinstance(model.module, UNet)
    assert model.module(torch.rand(1, 2, 9, 9)).shape == (1, 4, 9, 9)


@pytest.mark.parametrize(
    ("num_classes", "values", "classes", "note"),
    [
        (2, [0, 1], ("class 0", "class 1"), None),
        (2, [0, 255], ("mask 0", "mask 255"), None),
        (1, [0, 255], ("mask 0", "mask 255"), None),
        (1, [0, 1], ("background", "foreground"), None),
        (3, [0, 0.5, 1.0], ("mask 0", "mask 0.5", "mask 1"), None),
        (2, [[0, 0, 0], [255, 0, 0]], ("mask 0 0 0", "mask 255 0 0"), None),
        (3, [0, 1], ("class 0", "class 1", "class 2"), "it has mask values of 2 classes and 3 classes"),
        (2, "none", ("class 0", "class 1"), None),
    ],
)
def test_mask_values_name_the_classes(
    save: Any, num_classes: int, values: Any, classes: tuple[str, ...], note: str | None
) -> None:
    state = dict(narrow(num_classes=num_classes).state_dict())
    model = load_model(save({**state, "mask_values": values}))
    assert model.spec.classes == classes
    assert [n.split(":")[0] for n in model.notes] == ([note] if note else [])


def test_class_names_beside_the_weights_are_used_where_they_are_as_many(save: Any, state: State) -> None:
    assert load_model(save({"model": state, "names": ["sky", "sea", "land"]})).spec.classes == ("sky", "sea", "land")
    one = narrow(num_classes=1).state_dict()
    assert load_model(save({"model": one, "names": ["cloud"]})).spec.classes == ("background", "cloud")
    model = load_model(save({"model": state, "names": ["sky"]}))
    assert model.spec.classes == ("class 0", "class 1", "class 2")
    assert model.notes == ("it names 1 classes and has 3: they are numbered instead",)


def test_every_container_gives_the_same_model(save: Any, state: State, tmp_path: Path) -> None:
    contents: dict[str, Any] = {
        "bare": state,
        "training": {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
        "DataParallel": {f"module.{key}": t for key, t in state.items()},
        "without counters": {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")},
        "masks inside": {"state_dict": {**state, "mask_values": [0, 1, 2]}},
    }
    for name, content in contents.items():
        found = load_model(save(content)).module.state_dict()
        assert all(torch.equal(t, found[key]) for key, t in state.items()), name
    save_file(state, tmp_path / "weights.safetensors")
    found = load_model(tmp_path / "weights.safetensors").module.state_dict()
    assert all(torch.equal(t, found[key]) for key, t in state.items())
    half = load_model(save({key: t.half() if t.is_floating_point() else t for key, t in state.items()}))
    assert {t.dtype for t in half.module.state_dict().values()} == {torch.float32, torch.int64}


# Other projects' keys


@pytest.mark.parametrize("depth", [1, 3])
def test_module_lists_are_read_through_their_map(save: Any, depth: int) -> None:
    torch.manual_seed(0)
    network = build_unet(replace(UNetConfig.published(width=4, depth=depth), skip_first=False))
    randomise(network)
    content = theirs(network, MODULE_LISTS, depth)
    assert {f"down_sample.{depth - 1}.conv.conv.0.weight", f"up_sample.{depth - 1}.up.bias"} <= set(content)
    model = load_model(save(content))
    images = torch.rand(1, 3, 17, 24)
    with torch.no_grad():
        assert torch.equal(model.module(images), network(images))
    assert model.notes == MODULE_LISTS.notes


def test_a_pooled_network_is_read_through_its_map(save: Any) -> None:
    torch.manual_seed(0)
    network = build_unet(POOLED_CONFIG)
    randomise(network)
    content = theirs(network, POOLED, 2)
    assert {"conv1.0.weight", "conv2.4.running_var", "upconv2.0.weight", "upconv1.6.bias"} <= set(content)
    model = load_model(save(content))
    assert (model.name, model.stride, model.spec.input.channels) == ("unet-pooled-width-16", 4, 4)
    assert model.notes == POOLED.notes
    images = torch.rand(1, 4, 16, 24)
    with torch.no_grad():
        assert torch.equal(model.module(images), network(images))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.signature[-1])
def test_no_two_tensors_have_one_name(layout: Any) -> None:
    config = POOLED_CONFIG if layout is POOLED else replace(UNetConfig.published(width=2, depth=3), kind=layout.kind)
    network = build_unet(config)
    assert len(theirs(network, layout, config.depth)) == len(network.state_dict())
    assert layout.depth(theirs(network, layout, config.depth)) == config.depth
    assert set(layout.signature) <= set(theirs(network, layout, config.depth))


@pytest.mark.parametrize(
    ("mean", "scale", "said"),
    [
        ([0.3, 0.5, 0.9], 1 / 255, None),
        ([90.0, 100.0, 120.0], 1.0, "pixels of 0 to 255 (the means of its channels were 90, 100, 120)"),
        ([0.1, -0.5, 0.2], 1.0, "standardised images, whose channels had the means 0.1, -0.5, 0.2; the file does"),
    ],
)
def test_the_first_batch_norm_tells_what_images_were_like(
    save: Any, mean: list[float], scale: float, said: str | None
) -> None:
    network = narrow(width=12)
    conv, norm = (network.get_submodule(f"inc.double_conv.{i}") for i in (0, 1))
    norm.running_mean.copy_(conv.weight.sum((2, 3)).detach() @ torch.tensor(mean))  # type: ignore[operator]  # tensors
    assert family.channel_means(network) == pytest.approx(mean, abs=1e-4)
    model = load_model(save(network.state_dict()))
    assert model.spec.input.scale == scale
    assert len(model.notes) == (said is not None)
    assert said is None or f"it was trained on {said}" in model.notes[0]


def test_weights_that_are_no_numbers_say_nothing_of_images() -> None:
    network = narrow(width=12)
    norm = network.get_submodule("inc.double_conv.1")
    norm.running_mean.fill_(torch.nan)  # type: ignore[operator]  # a tensor
    assert family.channel_means(network) is None
    assert family.channel_means(narrow(width=11)) is None, "too few outputs to tell"


# What is refused


def without(state: State, *beginnings: str) -> State:
    return {key: t for key, t in state.items() if not key.startswith(beginnings)}


REFUSED: dict[str, tuple[Callable[[State], State], type[Exception], str]] = {
    "statistics": (
        lambda s: without(s, "down2.maxpool_conv.1.double_conv.1.running_mean"), WeightsMismatchError,
        r"lacks the tensor down2\.maxpool_conv\.1\.double_conv\.1\.running_mean \[16\]",
    ),
    "a convolution": (
        lambda s: without(s, "up2.conv.double_conv.3."), CheckpointError,
        r"up2\.conv\.double_conv\.3\.weight is missing: expected the weights of a convolution",
    ),
    "one up": (lambda s: without(s, "up2.up."), CheckpointError, r"up2\.up\.weight is missing"),
    "the lowest level": (
        lambda s: without(s, "down3."), WeightsMismatchError,
        r"up1\.up\.weight is \[32, 16, 2, 2\], expected \[16, 16, 2, 2\]",
    ),
    "all levels": (lambda s: without(s, "down"), CheckpointError, "no level between them"),
    "extra": (
        lambda s: s | {"up1.extra": torch.zeros(1)}, WeightsMismatchError, r"holds the tensor up1\.extra, which unet-",
    ),
    "level 999": (
        lambda s: s | {"down999.maxpool_conv.1.double_conv.0.weight": torch.zeros(1)}, CheckpointError,
        r"down4\.maxpool_conv\.1\.double_conv\.0\.weight is missing",
    ),
    "wider": (
        lambda s: s | {"up3.conv.double_conv.0.weight": torch.zeros(4, 9, 3, 3)}, WeightsMismatchError,
        r"up3\.conv\.double_conv\.0\.weight is \[4, 9, 3, 3\], expected \[4, 8, 3, 3\]",
    ),
    "5x5": (
        lambda s: s | {"down1.maxpool_conv.1.double_conv.0.weight": torch.zeros(8, 4, 5, 5)}, WeightsMismatchError,
        r"is \[8, 4, 5, 5\], expected \[8, 4, 3, 3\]",
    ),
    "flat": (lambda s: s | {"outc.conv.weight": torch.zeros(12)}, CheckpointError, r"outc\.conv\.weight is \[12\]"),
    "no channels": (
        lambda s: s | {"inc.double_conv.0.weight": torch.zeros(4, 0, 3, 3)}, CheckpointError, r"is \[4, 0, 3, 3\]",
    ),
    "huge": (
        lambda s: s | {"inc.double_conv.3.weight": torch.zeros(60_000, 1, 1, 1)}, WeightsMismatchError,
        r"inc\.double_conv\.3\.weight is \[60000, 1, 1, 1\], expected \[60000, 4, 3, 3\]",
    ),
    "too many": (
        lambda s: s | {"inc.double_conv.0.weight": torch.zeros(70_000, 1, 1, 1)}, CheckpointError, "70000, 1, 1, 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    save: Any, state: State, change: Callable[[State], State], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as refused:
        load_model(save(change(state)))
    assert type(refused.value) is error
    assert "or of another network (deploykit inspect shows it)" in str(refused.value)


def test_other_projects_tensors_are_refused_by_their_own_names(save: Any) -> None:
    lists = theirs(build_unet(replace(UNetConfig.published(width=2, depth=2), skip_first=False)), MODULE_LISTS, 2)
    for key in ("bottle_neck.conv.1.bias", "down_sample.1.conv.conv.4.running_var", "up_sample.1.up.bias"):
        with pytest.raises(WeightsMismatchError, match=f"lacks the tensor {key}".replace(".", r"\.")):
            load_model(save(without(lists, key)))
    with pytest.raises(WeightsMismatchError, match=r"holds the tensor inc\.double_conv\.0\.weight, which"):
        load_model(save(lists | {"inc.double_conv.0.weight": torch.zeros(2, 3, 3, 3)}))
    pooled = theirs(build_unet(POOLED_CONFIG), POOLED, 2)
    with pytest.raises(WeightsMismatchError, match=r"lacks the tensor upconv2\.4\.bias \[6\]"):
        load_model(save(without(pooled, "upconv2.4.bias")))
    with pytest.raises(CheckpointError, match=r"conv1\.0\.weight is \[16, 4, 99, 99\]"):
        load_model(save(pooled | {"conv1.0.weight": torch.zeros(16, 4, 99, 99)}))
    with pytest.raises(CheckpointError, match=r"upconv1\.0\.weight is \[4, 21, 4, 4\]"):
        load_model(save(pooled | {"upconv1.0.weight": torch.zeros(4, 21, 4, 4)}))
    with pytest.raises(WeightsMismatchError, match=r"upconv1\.6\.weight is \[3, 1, 2, 2\], expected \[3, 1, 3, 3\]"):
        load_model(save(pooled | {"upconv1.6.weight": torch.zeros(3, 1, 2, 2)}))


def test_no_other_family_takes_one_and_none_of_theirs_is_taken(save: Any, state: State, tmp_path: Path) -> None:
    ours = read_checkpoint(save(state))
    claims = [name for name in FAMILIES if import_module(name).from_checkpoint(ours) is not None]
    assert claims == ["deploykit.models.families.unet.model"]
    for name in ("yolov5n", "yolox-nano", "yolov7-tiny"):
        assert family.from_checkpoint(read_checkpoint(create_checkpoint(name, tmp_path / "it.pt"))) is None
    assert family.from_checkpoint(read_checkpoint(save(without(state, "outc.")))) is None


# Trained ones, and what the original made of random weights


@pytest.mark.data
@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
def test_the_originals_own_output_is_reproduced(shared: Path, fused: bool) -> None:
    model = load_model(shared / "golden" / "unet-narrow.pt")
    assert (model.name, model.spec.classes, model.notes) == ("unet-width-8", ("class 0", "class 1"), ())
    with np.load(shared / "golden" / "unet-narrow.npz") as golden:
        images, expected = torch.from_numpy(golden["images"]), golden["output"]
    with torch.no_grad():
        found = (fuse_model(model.module) if fused else model.module)(images).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def photographs(shared: Path, side: int, count: int) -> np.ndarray:
    """Images as RGB ``(count, 3, side, side)`` of 0 to 1."""
    paths = sorted((shared / "data" / "images" / "coco-mini" / "val2017").glob("*.jpg"))[:count]
    resized = [cv2.resize(read_image(path), (side, side), interpolation=cv2.INTER_AREA) for path in paths]
    return np.stack(resized)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255


@pytest.mark.data
@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
def test_the_cloud_model_agrees_with_somebody_elses_export(shared: Path, fused: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = load_model(shared / "data" / "weights" / "unet_clouds_4ch.pth")
    graph = onnx.load(str(shared / "data" / "onnx" / "unet_clouds_4ch.onnx"))
    sigmoid = next(node for node in graph.graph.node if node.op_type == "Sigmoid")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(sigmoid.input[0], onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    means = family.channel_means(model.module)
    assert means is not None
    rgb = photographs(shared, 224, 3)
    images = np.concatenate([rgb, rgb.mean(1, keepdims=True)], 1)
    images = (images - images.mean((2, 3), keepdims=True)) / images.std((2, 3), keepdims=True)
    images += np.array(means, np.float32)[:, None, None]
    network = fuse_model(model.module) if fused else model.module
    for image in images:
        cloudy, expected = session.run(None, {"input": image[None]})
        with torch.no_grad():
            found = network(torch.from_numpy(image[None])).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
        assert 0.5 < cloudy.mean() < 1, "both classes are there"
        assert np.count_nonzero((found[0, 0] > 0) != cloudy) <= 2


@pytest.mark.data
def test_the_cloud_model_says_what_it_is(shared: Path) -> None:
    model = load_model(shared / "data" / "weights" / "unet_clouds_4ch.pth")
    assert (model.name, model.stride, model.parameters) == ("unet-pooled-width-32", 8, 538_297)
    assert (model.spec.input.channels, model.spec.input.size, model.spec.input.scale) == (4, (224, 224), 1.0)
    assert "standardised images, whose channels had the means 0.338, 0.212, 0.603, -1.15" in model.notes[1]


@pytest.mark.data
def test_the_levels_of_the_car_model_are_joined_as_its_statistics_say(shared: Path) -> None:
    """Its joined convolution has, over its channels, the variances of the training only with what was enlarged first;
    images are divided by 255: with none of the other ways does the first layer have its own."""
    model = load_model(shared / "data" / "weights" / "unet_carvana_small.pth")
    assert (model.name, model.parameters, model.spec.classes) == (
        "unet-depth-1-width-32", 101_793, ("background", "foreground"),
    )  # fmt: skip
    assert model.spec.input.scale == 1 / 255
    means = family.channel_means(model.module)
    assert means == pytest.approx((0.606, 0.557, 0.551), abs=1e-3)
    images = torch.from_numpy(photographs(shared, 160, 6))
    norm = model.module.get_submodule("up1.conv.double_conv.4")
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].var((0, 2, 3))))
    up = model.module.get_submodule("up1")
    with torch.no_grad():
        for first in (False, True):
            up.skip_first = first  # type: ignore[assignment]  # a plain attribute
            model.module(images)
    trained = norm.running_var.log()  # type: ignore[operator]  # a tensor
    off = [float((variance.log() - trained).abs().mean()) for variance in seen]
    assert off[0] < 1.0
    assert off[1] > 1.5


@pytest.mark.parametrize("kind", ["joined", "pooled", "valid"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_side_from_the_least_on_goes_in(kind: Any, depth: int) -> None:
    config = replace(UNetConfig.published(width=2, depth=depth), kind=kind)
    if kind == "pooled":
        levels = tuple(Level(2, 2, 2) for _ in range(depth))
        config = UNetConfig(3, 2, levels, levels, "pooled", False)
    network, least = build_unet(config), least_side(config)
    step = 1 << depth
    with torch.no_grad():
        for side in range(least, least + 2 * step, step if kind == "pooled" else 1):
            assert network(torch.zeros(1, 3, side, least)).shape[2:] == (side, least)
        if kind != "pooled":  # whose sides are whole strides, so none is between
            with pytest.raises(RuntimeError):
                network(torch.zeros(1, 3, step // 2 if kind == "joined" else 6 * step - 4, least))
