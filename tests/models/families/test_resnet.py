"""ResNets in torchvision's layout: their definition, what is read from a file, exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.export.engine.build import build_engine
from deploykit.export.options import PrecisionOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.class_names import CIFAR10_CLASSES
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import resnet
from deploykit.models.families.resnet import Resnet, ResnetConfig
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, load_model
from tests.meta_model import meta_model
from tests.reference.resnet import resnet as reference

PUBLISHED = {
    "resnet18": (11_689_512,),
    "resnet34": (21_797_672,),
    "resnet50": (25_557_032,),
    "resnet101": (44_549_160,),
    "resnet152": (60_192_808,),
    "resnext50_32x4d": (25_028_904,),
    "resnext101_32x8d": (88_791_336,),
    "wide_resnet50_2": (68_883_240,),
    "wide_resnet101_2": (126_886_696,),
    "resnet20_cifar10": (269_722,),
    "resnet56_cifar10": (853_018,),
}
"""Parameters of torchvision's models, and of akamaster's for CIFAR-10."""

KINDS = {
    "basic": ResnetConfig("basic", (2, 1, 1, 1), num_classes=5),
    "bottleneck": ResnetConfig("bottleneck", (1, 1, 1, 1), num_classes=5, channels=1),
    "groups": ResnetConfig("bottleneck", (1, 1, 1, 1), 128, 32, num_classes=5),
    "small": ResnetConfig("basic", (2, 2, 1), 8, num_classes=10, small=True),
}


def made(kind: str, seed: int = 0) -> ReferenceModel:
    config = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Resnet(config).eval()
        randomise(network)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.2)
                assert module.running_mean is not None
                nn.init.normal_(module.running_mean, std=0.2)
    return resnet.FAMILY.reference(config, network)


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    """Nothing but the weights, as torchvision publishes them."""
    torch.save(state, folder / "m.pth")
    return folder / "m.pth"


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_originals(name: str) -> None:
    assert meta_model(name).parameters == PUBLISHED[name][0]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_its_definition(kind: str, folded: bool) -> None:
    model = made(kind)
    images = torch.randn(2, KINDS[kind].channels, 75, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = (fuse_model(model.module) if folded else model.module)(images)
    expected = reference(images, model.module.state_dict())
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_read_from_the_tensors(tmp_path: Path, kind: str) -> None:
    model = made(kind)
    for prefix in ("", "module."):
        state = {prefix + key: value for key, value in model.module.state_dict().items()}
        found = load_model(saved(tmp_path, state))
        assert found.name == model.name
        assert replace(found.spec, source=model.spec.source, assumptions=()) == model.spec
        images = torch.randn(1, KINDS[kind].channels, 64, 64)
        with torch.inference_mode():
            assert torch.equal(found.module(images), model.module(images))


def test_a_fine_tuned_file_has_its_own_classes(tmp_path: Path) -> None:
    """Somebody replaced ``fc`` and trained on."""
    with torch.device("meta"):
        state = Resnet(replace(resnet.VARIANTS["resnet18"], num_classes=2)).state_dict()
    found = load_model(saved(tmp_path, {key: torch.ones(value.shape).to(value.dtype) for key, value in state.items()}))
    assert (found.name, found.spec.classes) == ("resnet18", ("class 0", "class 1"))


def test_a_dropout_before_the_classifier_is_nothing(tmp_path: Path) -> None:
    model = made("basic")
    state = {key.replace("fc.", "fc.1."): value for key, value in model.module.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load_model(saved(tmp_path, state)).module(images), model.module(images))


@pytest.mark.data
@pytest.mark.parametrize("folded", [False, True])
def test_a_trained_one_is_read(shared: Path, folded: bool) -> None:
    model = load_model(shared / "data" / "weights" / "resnet20_cifar10.th")
    assert (model.name, model.spec.classes, model.spec.input.size) == ("resnet20-cifar10", CIFAR10_CLASSES, (32, 32))
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        found = (fuse_model(model.module) if folded else model.module)(images)
    torch.testing.assert_close(found.double(), reference(images, model.module.state_dict()), rtol=1e-4, atol=1e-4)


@pytest.mark.data
def test_its_export_is_verified_on_images(shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "data" / "weights" / "resnet20_cifar10.th")
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "groups")) for kind in KINDS])
def test_its_export_has_no_batch_norm_left(tmp_path: Path, kind: str) -> None:
    report = onnx_from_model(made(kind), out=tmp_path / "m.onnx", img=64, dynamic="batch")
    assert report.parity is not None
    assert report.parity.ok
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert "BatchNormalization" not in operators


@pytest.mark.parametrize("kind", ["groups", pytest.param("small", marks=pytest.mark.slow)])
def test_fp16_is_verified_and_an_engine_built(tmp_path: Path, kind: str) -> None:
    report = onnx_from_model(made(kind), out=tmp_path / "m.onnx", img=64, precision=PrecisionOptions(precision="fp16"))
    assert report.parity is not None
    assert report.parity.ok
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path).record.layers > 0


def test_a_file_that_is_nearly_one_is_refused(tmp_path: Path) -> None:
    state = made("basic").module.state_dict()
    for key, value, message in (
        ("conv1.weight", torch.zeros(64, 3, 5, 5), "a kernel of 5x5: torchvision's have 64 and 7x7"),
        ("conv1.weight", torch.zeros(32, 3, 7, 7), "32 channels and a kernel of 7x7"),
        ("fc.weight", torch.zeros(3), "fc.weight is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(saved(tmp_path, {**state, key: value}))
    with pytest.raises(WeightsMismatchError, match="holds the tensor extra"):
        load_model(saved(tmp_path, {**state, "extra": torch.zeros(1)}))
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    with pytest.raises(CheckpointError, match="no fc, its classifier; it has no other tensors: a backbone"):
        load_model(saved(tmp_path, headless))
    other = {**headless, "head.fc.weight": torch.zeros(8, 512)}
    with pytest.raises(CheckpointError, match=r"its classifier; it has head.fc.weight: a backbone"):
        load_model(saved(tmp_path, other))
