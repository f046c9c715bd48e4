"""What no tensor of a vision transformer tells: heads, pooling, activations, heads of several layers, its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.models.classifier_head import HeadLayer
from deploykit.models.families.vit import VisionTransformer, VitConfig
from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from tests.models.families.test_vit import narrow

CONFIG = VitConfig(192, 1, 3, 48, patch=8, grid=2, num_classes=3, head="token")
STATE = narrow(config=CONFIG).module.state_dict()
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def loaded(folder: Path, beside: dict[str, Any] | None = None, state: Any = None, **options: Any) -> ReferenceModel:
    torch.save({"state_dict": STATE if state is None else state, **(beside or {})}, folder / "m.pth")
    return load_model(folder / "m.pth", loading=LoadOptions(**options))


def config_of(model: ReferenceModel) -> VitConfig:
    assert isinstance(model.module, VisionTransformer)
    return model.module.config


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maelite_tiny_12heads", {"heads": 12}),
        ("moco_v3_style_12heads_of_16", {"heads": 12}),
        ("timm_avg_pool_norm", {"pool": "avg"}),
    ],
)
@pytest.mark.data
def test_networks_from_practice_give_their_own_logits(shared: Path, name: str, options: dict[str, Any]) -> None:
    folder = shared / "cases" / "classifiers"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    right = np.load(folder / "expected.npz")
    for fold in (False, True):
        model = load_model(folder / f"{name}.pth", loading=LoadOptions(**options))
        session = TorchSession(fuse_model(model.module) if fold else model.module, spec_of_module(model), exact=True)
        found = session.run({"images": right["x"]})["logits"]
        np.testing.assert_allclose(found, right[name], rtol=0, atol=2e-5)
        assert np.abs(found - right[f"{name}__as_deploykit"]).max() > 1  # what was assumed before is another network


def test_the_pooling_is_that_of_the_file(tmp_path: Path) -> None:
    token, average = config_of(loaded(tmp_path, pool="token")), config_of(loaded(tmp_path, pool="avg"))
    assert (token.head, average.head) == ("token", "avg")
    for told, head in ((True, "avg"), ("avg", "avg"), (False, "token"), ("token", "token")):
        model = loaded(tmp_path, {"args": {"global_pool": told}})
        assert config_of(model).head == head
        assert not any("--pool" in text for text in model.spec.assumptions)
    with pytest.raises(UsageError, match=r"--pool token contradicts .*, whose args.global_pool says avg"):
        loaded(tmp_path, {"args": {"global_pool": True}}, pool="token")
    with pytest.raises(CheckpointError, match="'max', token and avg are built"):
        loaded(tmp_path, {"args": {"gp": "max"}})
    model = loaded(tmp_path, {"args": {"gp": None}})
    assert any(text.startswith("the class token is classified") and "--pool" in text for text in model.spec.assumptions)
    mean = narrow(config=replace(CONFIG, head="mean")).module.state_dict()
    with pytest.raises(UsageError, match=r"whose tensor fc_norm.weight says avg"):
        loaded(tmp_path, state=mean, pool="token")
    with pytest.raises(CheckpointError, match="its fc_norm is of an average of the patches"):
        loaded(tmp_path, {"args": {"global_pool": False}}, state=mean)


@pytest.mark.parametrize(
    ("told", "name", "own"),
    [
        ("gelu", "gelu", functional.gelu),
        ("gelu_new", "gelu-tanh", lambda x: functional.gelu(x, approximate="tanh")),
        ("quick_gelu", "quick-gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_activations_are_asked_for_or_told(tmp_path: Path, told: str, name: str, own: Any) -> None:
    for model in (loaded(tmp_path, activation=name), loaded(tmp_path, {"config": {"hidden_act": told}})):
        assert isinstance(model.module, VisionTransformer)
        torch.testing.assert_close(model.module.blocks[0].mlp.act(IMAGES), own(IMAGES))
        assert not any("GELU" in text for text in model.spec.assumptions)
    assert any("GELU by the error function" in text for text in loaded(tmp_path).spec.assumptions)
    with pytest.raises(UsageError, match="--activation of a vision transformer is one of gelu, gelu-tanh, quick-gelu"):
        loaded(tmp_path, activation="relu")
    with pytest.raises(CheckpointError, match=r"args.act_layer says 'relu': gelu, gelu-tanh, quick-gelu are built"):
        loaded(tmp_path, {"args": {"act_layer": "relu"}})


def test_the_eps_of_the_norms_is_told_or_assumed(tmp_path: Path) -> None:
    model = loaded(tmp_path, {"config": {"layer_norm_eps": 1e-5}})
    norms = [module for module in model.module.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert not any("eps" in text for text in model.spec.assumptions)
    assert "layer norms with an eps of 1e-06, as timm's ViTs have: no tensor tells" in loaded(tmp_path).spec.assumptions


def with_head(head: nn.Module, name: str = "head") -> dict[str, torch.Tensor]:
    own = {key: value for key, value in STATE.items() if not key.startswith("head.")}
    return own | {f"{name}.{key}": value for key, value in head.state_dict().items()}


HEADS: dict[str, tuple[nn.Sequential, tuple[HeadLayer, ...]]] = {
    "dropout": (nn.Sequential(nn.Dropout(0.1), nn.Linear(192, 3)), (HeadLayer(1, "linear", 3),)),
    "norm": (
        nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 3, bias=False)),
        (HeadLayer(0, "layer-norm", 192), HeadLayer(1, "linear", 3, False)),
    ),
    "two": (
        nn.Sequential(nn.Linear(192, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)),
        (HeadLayer(0, "linear", 8), HeadLayer(3, "linear", 3)),
    ),
    "moco": (
        nn.Sequential(
            nn.Linear(192, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False),
            nn.BatchNorm1d(3, affine=False),
        ),
        (HeadLayer(0, "linear", 8, False), HeadLayer(1, "batch-norm", 8), HeadLayer(3, "linear", 3, False),
         HeadLayer(4, "batch-norm", 3, False)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_several_layers_are_read(tmp_path: Path, kind: str) -> None:
    head, layers = HEADS[kind]
    torch.manual_seed(0)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    model = loaded(tmp_path, state=with_head(head))
    assert config_of(model).layers == layers
    features = load_model(tmp_path / "m.pth", loading=LoadOptions(pool="token")).module
    assert isinstance(features, VisionTransformer)
    features.head = head.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model.module(IMAGES), features(IMAGES))
    gaps = any("--head-activation" in text for text in model.spec.assumptions)
    assert gaps == (kind in ("two", "moco"))
    if gaps:
        other = loaded(tmp_path, state=with_head(head), head_activation="tanh")
        assert not any("--head-activation" in text for text in other.spec.assumptions)
        with torch.inference_mode():
            assert not torch.allclose(other.module(IMAGES), model.module(IMAGES), atol=1e-3)
        with pytest.raises(UsageError, match="must be one of relu, gelu, silu, tanh, none, got 'mish'"):
            loaded(tmp_path, state=with_head(head), head_activation="mish")
    else:
        with pytest.raises(UsageError, match=r"--head-activation tanh: the head of .* has no place for one"):
            loaded(tmp_path, state=with_head(head), head_activation="tanh")


def test_a_head_without_bias_and_timms_former_representation_are_read(tmp_path: Path) -> None:
    state = {key: value for key, value in STATE.items() if key != "head.bias"}
    assert not config_of(loaded(tmp_path, state=state)).bias
    torch.manual_seed(0)
    state = with_head(nn.Linear(16, 3)) | {
        f"pre_logits.fc.{key}": value for key, value in nn.Linear(192, 16).state_dict().items()
    }
    model = loaded(tmp_path, state=state)
    assert config_of(model).representation == 16
    with torch.inference_mode():
        token = loaded(tmp_path, state={k: v for k, v in STATE.items() if "head" not in k}, pool="token").module(IMAGES)
        inner = torch.tanh(functional.linear(token, state["pre_logits.fc.weight"], state["pre_logits.fc.bias"]))
        expected = functional.linear(inner, state["head.weight"], state["head.bias"])
        torch.testing.assert_close(model.module(IMAGES), expected)
    with pytest.raises(CheckpointError, match="its head head has no linear layer"):
        loaded(tmp_path, state=with_head(nn.Sequential(nn.LayerNorm(192))))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            "vit_small_patch8_224",
            "by its arch, which has 384 channels, and its tensors have 192",
        ),
        ("deit-tiny-patch16-224", "which has 16 pixels a patch, and its tensors have 8"),
        ("vit_tiny_patch8_224", ""),
        ("my_vit", ""),
    ],
)
def test_a_name_that_contradicts_the_tensors_is_refused(tmp_path: Path, arch: str, message: str) -> None:
    if not message:
        assert config_of(loaded(tmp_path, {"arch": arch})).dim == 192
        return
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, {"arch": arch})
