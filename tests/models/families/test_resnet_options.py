"""What no tensor of a ResNet tells: its name in the file, other stems, heads of several layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import resnet
from deploykit.models.families.resnet import Resnet, ResnetConfig
from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def state_of(config: ResnetConfig) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Resnet(config).eval()
        randomise(network)
    return network.state_dict()


SMALL = state_of(ResnetConfig("basic", (1, 1), num_classes=3))
EIGHTEEN = {key: torch.zeros(value.shape) for key, value in state_of(resnet.VARIANTS["resnet18"]).items()}


def loaded(folder: Path, beside: dict[str, Any] | None = None, state: Any = None, **options: Any) -> ReferenceModel:
    torch.save({"state_dict": SMALL if state is None else state, **(beside or {})}, folder / "m.pth.tar")
    return load_model(folder / "m.pth.tar", loading=LoadOptions(**options))


def pooled(model: ReferenceModel) -> bool:
    return any(text.startswith("torchvision's ResNet") for text in model.spec.assumptions)


@pytest.mark.parametrize("name", ["resnetblur18", "resnetaa50", "resnet18d", "seresnet18", "resnet50_gn", "resnest14d"])
@pytest.mark.parametrize("where", ["arch", "args", "model_name"])
def test_a_network_that_only_has_torchvisions_tensors_is_refused_by_its_name(
    tmp_path: Path, where: str, name: str
) -> None:
    beside = {"args": {"model": name}} if where == "args" else {where: name}
    said = rf"is a {name} by its (arch|args.model|model_name), .* --timm-model {name}"
    with pytest.raises(CheckpointError, match=said):
        loaded(tmp_path, beside, EIGHTEEN)


@pytest.mark.parametrize(
    "name", ["resnet18", "tv_resnet18", "resnet18.a1_in1k", "gluon_resnet18_v1b", "ssl_resnet18", "ResNet18"]
)
def test_a_name_that_is_built_leaves_nothing_to_assume(tmp_path: Path, name: str) -> None:
    model = loaded(tmp_path, {"arch": name}, EIGHTEEN)
    assert model.name == "resnet18"
    assert not pooled(model)


def test_a_network_of_other_tensors_is_refused_by_its_name_too(tmp_path: Path) -> None:
    state = {key.replace("conv1.weight", "conv1.0.weight", 1): value for key, value in EIGHTEEN.items()}
    said = r"does not know, a resnet18d by its arch: .*, and a model of timm is named by --timm-model"
    with pytest.raises(CheckpointError, match=said):
        loaded(tmp_path, {"arch": "resnet18d"}, state)


def test_where_nothing_tells_torchvisions_network_is_assumed(tmp_path: Path) -> None:
    for beside in ({}, {"arch": "my_classifier"}, {"args": {"model": None}}):
        assert pooled(loaded(tmp_path, beside, EIGHTEEN))


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_a_name_that_contradicts_the_tensors_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"names a {name}, whose blocks are .*: the name or the weights are of"):
        loaded(tmp_path, {"arch": name}, EIGHTEEN)


def reference(images: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """A ResNet of basic blocks for images of 32 pixels, a second time, by plain functions."""

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        own = [state[f"{name}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *own)

    def convolved(x: torch.Tensor, name: str, stride: int, pad: int) -> torch.Tensor:
        return functional.conv2d(x, state[f"{name}.weight"].double(), None, stride, pad)

    x = normed(convolved(images.double(), "conv1", 1, 1), "bn1").relu()
    for stage in (1, 2):
        at, stride = f"layer{stage}.0", stage
        y = normed(convolved(x, f"{at}.conv1", stride, 1), f"{at}.bn1").relu()
        y = normed(convolved(y, f"{at}.conv2", 1, 1), f"{at}.bn2")
        if stage == 2:
            x = normed(convolved(x, f"{at}.downsample.0", 2, 0), f"{at}.downsample.1")
        x = (x + y).relu()
    return functional.linear(x.mean((2, 3)), state["fc.weight"].double(), state["fc.bias"].double())


@pytest.mark.parametrize("names", ["torchvision", "pytorch-cifar"])
def test_a_stem_of_3x3_keeps_the_size_and_is_said(tmp_path: Path, names: str) -> None:
    """torchvision's network with its first convolution replaced, and kuangliu/pytorch-cifar's (MIT) names of layers."""
    state = state_of(ResnetConfig("basic", (1, 1), num_classes=3, stem="small"))
    assert "layer2.0.downsample.0.weight" in state
    named = state
    if names == "pytorch-cifar":
        named = {key.replace("downsample", "shortcut").replace("fc.", "linear."): value for key, value in state.items()}
    model = loaded(tmp_path, state=named)
    assert model.name == "resnet-basic-1-1-small"
    assert model.spec.input.size == (32, 32)
    assert any("3x3 with a stride of 1 and no pooling" in text for text in model.spec.assumptions)
    for module in (model.module, fuse_model(model.module)):
        with torch.inference_mode():
            torch.testing.assert_close(module(IMAGES).double(), reference(IMAGES, state), rtol=1e-4, atol=1e-4)
    narrow = {key: value[:32] if key.startswith("conv1.") else value for key, value in state.items()}
    with pytest.raises(CheckpointError, match="32 channels and a kernel of 3x3"):
        loaded(tmp_path, state=narrow)


def test_heads_of_several_layers_and_without_bias_are_read(tmp_path: Path) -> None:
    head = nn.Sequential(nn.Linear(128, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)).eval()
    body = {key: value for key, value in SMALL.items() if not key.startswith("fc.")}
    model = loaded(tmp_path, state=body | {f"fc.{key}": value for key, value in head.state_dict().items()})
    assert model.spec.classes == ("class 0", "class 1", "class 2")
    assert any("fc.0, fc.3" in text and "--head-activation" in text for text in model.spec.assumptions)
    plain = loaded(tmp_path)
    assert isinstance(plain.module, Resnet)
    plain.module.fc = head
    with torch.inference_mode():
        torch.testing.assert_close(model.module(IMAGES), plain.module(IMAGES))
    with pytest.raises(UsageError, match="has no place for one"):
        loaded(tmp_path, head_activation="gelu")
    model = loaded(tmp_path, state={key: value for key, value in SMALL.items() if key != "fc.bias"})
    assert "fc.bias" not in model.module.state_dict()
