"""Vision transformers: their definition, MAE's layouts, other sizes, exports, and what a file must have."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError, UsageError, WeightsMismatchError
from deploykit.export.engine.build import build_engine
from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import vit
from deploykit.models.families.vit import Head, VisionTransformer, VitConfig
from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.runtime.results.dense import Features
from deploykit.runtime.session import open_session
from deploykit.spec import Dynamic
from tests.meta_model import meta_model
from tests.models.families.attention_kernels import attention_kernels
from tests.models.files import saved
from tests.outliers import Outliers, add_outliers
from tests.reference.vit import vit as reference

PUBLISHED = {"mae_vit_b16": (86_567_656,), "mae_vit_l16": (304_326_632,), "mae_vit_h14": (632_045_800,)}
"""Parameters of the original's own code, fine-tuned for ImageNet."""

POOLS: dict[Head, Literal["token", "avg"]] = {"avg": "avg", "token-features": "token"}
"""What must be asked for: no tensor tells it, and something else is assumed."""

slow = pytest.mark.slow
KINDS: tuple[Head, ...] = ("mean", "avg", "token", "probe", "features", "token-features")


def narrow(head: Head = "mean", seed: int = 0, config: VitConfig | None = None) -> ReferenceModel:
    config = config or VitConfig(32, 2, 1, 48, patch=8, grid=4, num_classes=1 if head in vit.FEATURES else 5, head=head)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = VisionTransformer(config).eval()
        randomise(network)
        if head == "probe":
            norm = network.head[0]  # type: ignore[index]  # a ProbeHead, which is a Sequential
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return vit.FAMILY.reference(config, network)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_the_originals(name: str) -> None:
    model = meta_model(name)
    assert model.parameters == PUBLISHED[name][0]
    assert model.spec.input.fit.resample == "bicubic"
    assert model.spec.input.size == (224, 224)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [1, 4])
def test_it_is_its_definition(kind: Head, folded: bool, heads: int) -> None:
    model = narrow(kind)
    network = model.module
    for module in network.modules():
        if isinstance(module, vit.TransformerBlock):
            module.attn.heads, module.attn.scale = heads, (32 // heads) ** -0.5
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = (fuse_model(network) if folded else network)(images)
    expected = reference(images, network.state_dict(), 8, heads, 2, kind)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_each_layout_is_read(tmp_path: Path, kind: Head) -> None:
    model = narrow(kind)
    pool = POOLS.get(kind)
    found = load_model(saved(tmp_path, model.module.state_dict()), loading=LoadOptions(heads=1, pool=pool))
    tail = {"probe": "-linear-probe", "mean": "", "token": ""}.get(kind, f"-{kind}")
    assert found.name == f"{'vit' if kind in ('token', 'avg') else 'mae-vit'}-d32-2-p8-h1{tail}"
    assert found.spec.task == ("features" if "features" in kind else "classify")
    assert not any("heads" in text for text in found.spec.assumptions)
    assert any("--pool" in text for text in found.spec.assumptions) == (kind in ("token", "features"))
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(found.module(images), model.module(images))


def test_the_decoder_of_a_pretraining_is_dropped(tmp_path: Path) -> None:
    model = narrow("features")
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_embed.weight": torch.zeros(16, 32),
        "decoder_blocks.0.attn.qkv.weight": torch.zeros(48, 16),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
    }
    found = load_model(saved(tmp_path, model.module.state_dict() | decoder), loading=LoadOptions(heads=1))
    assert found.notes[-1] == "the decoder of its pretraining is dropped (4 tensors)"
    assert found.spec.task == "features"


def test_published_widths_have_their_published_heads(tmp_path: Path) -> None:
    for dim, heads in vit.HEADS.items():
        config = VitConfig(dim, 1, heads, 8, patch=8, grid=2, num_classes=2)
        with torch.device("meta"):
            state = VisionTransformer(config).state_dict()
        found = load_model(saved(tmp_path, {key: torch.zeros(value.shape) for key, value in state.items()}))
        assert isinstance(found.module, VisionTransformer)
        assert found.module.config == config
        assert f"{heads} heads for {dim} channels, as published ViTs of that width have" in found.spec.assumptions[0]


def test_positions_of_another_grid_are_those_of_torchs_bicubic(tmp_path: Path) -> None:
    network = narrow().module
    assert isinstance(network, VisionTransformer)
    with torch.inference_mode():
        assert torch.equal(network.positions(4, 4), network.pos_embed[:, 1:])
        grid = network.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
        expected = nn.functional.interpolate(grid, (5, 3), mode="bicubic", align_corners=False)
        found = network.positions(5, 3).transpose(1, 2).reshape(1, 32, 5, 3)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("img", "dynamic"),
    [
        pytest.param(32, "none", marks=slow),
        ((40, 56), "none"),
        pytest.param(32, "batch", marks=slow),
        pytest.param(32, "shape", marks=slow),
    ],
    ids=str,
)
def test_its_export_is_verified(tmp_path: Path, img: int | tuple[int, int], dynamic: Dynamic) -> None:
    report = onnx_from_model(narrow(), out=tmp_path / "m.onnx", img=img, dynamic=dynamic)
    assert report.parity is not None
    assert report.parity.ok
    assert 0.95 < report.weight_size / (4 * report.parameters) <= 1.0  # transposed weights are weights too
    graph = onnx.load(report.path).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("LayerNormalization") == 5
    assert operators.count("Softmax") == 2
    assert operators.count("Resize") == (dynamic == "shape")  # else computed once
    if dynamic != "shape":  # where sizes are multiplied too
        assert operators.count("Mul") == 4  # two of each GELU: the scale of the queries is in their weights


def test_a_linear_probe_becomes_one_layer(tmp_path: Path) -> None:
    report = onnx_from_model(narrow("probe"), out=tmp_path / "m.onnx", img=32)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(report.path).graph.node}


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=slow)])
def test_half_precision_is_verified(tmp_path: Path, precision: str) -> None:
    asked = PrecisionOptions(precision=precision)  # type: ignore[arg-type]  # a name of the list above
    report = onnx_from_model(narrow(), out=tmp_path / "m.onnx", img=32, precision=asked)
    assert report.parity is not None
    assert 0.45 < report.weight_size / (4 * report.parameters) < 0.7
    assert report.parity.ok


def test_an_engine_in_fp16_computes_attention_as_one_kernel(tmp_path: Path) -> None:
    config = VitConfig(128, 2, 2, 128, patch=8, grid=8, num_classes=5)
    network = VisionTransformer(config).eval()
    randomise(network)
    model = vit.FAMILY.reference(config, network)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=64, precision=PrecisionOptions(precision="fp16"))
    assert report.precision is not None
    assert report.precision.half is not None
    assert {reason: len(nodes) for reason, nodes in report.precision.half.kept.items()} == {"operator": 1}  # the mean
    assert report.precision.half.casts == 4  # of the image, of the logits, and around the mean
    assert attention_kernels(report.path, tmp_path) == 2


def test_int8_with_outliers_is_smoothed_and_an_engine_computes_attention_as_one_kernel(tmp_path: Path) -> None:
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (70, 70, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), noise)
    torch.manual_seed(0)
    config = VitConfig(128, 2, 2, 128, patch=8, grid=8, num_classes=20)
    network = VisionTransformer(config).eval()
    randomise(network)
    model = vit.FAMILY.reference(config, add_outliers(network, Outliers(massive=0.0, logits=2.0)))
    images = Calibration(tmp_path, size=2, method="minmax")
    asked = PrecisionOptions("int8", calibration=images, nodes_to_exclude="none", cache=False)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=64, precision=asked)
    assert report.precision is not None
    quantised = report.precision.quantised
    assert quantised is not None
    assert quantised.folds is not None
    (taken,) = quantised.folds.taken
    assert taken.startswith("smooth")
    assert quantised.folds.errors[taken] < 0.8 * quantised.folds.errors["none"]
    assert dict(quantised.lines())["folded"].startswith(f"{taken} (verified in fp32)")
    assert report.precision.computes == {"int8": 10, "fp16": 4}
    assert dict(quantised.lines())["attention"] == "2 of 2 in fp16"
    assert attention_kernels(report.path, tmp_path) == 2


def test_features_are_predicted_and_compared(tmp_path: Path) -> None:
    report = onnx_from_model(narrow("features"), out=tmp_path / "m.onnx", img=32, dynamic="batch")
    assert report.parity is not None
    assert [m.what for m in report.parity.matchings] == ["values"] * len(report.parity.matchings)
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (50, 70, 3), np.uint8) for _ in range(2))
    with load(report.path, task="features") as predictor:
        first, second = predictor([one, other])
        assert isinstance(first, Features)
        assert isinstance(second, Features)
        with pytest.raises(UsageError, match="top: not for the task features of this model"):
            load(report.path, task="features", top=3)
    assert first.values.shape == (32,)
    assert first.similarity(first) == pytest.approx(1.0)
    assert -1.0 <= first.similarity(second) < 1.0
    assert len(first.to_dict()["features"]) == 32
    assert first.draw(one).shape == (50, 70, 3)


@pytest.mark.parametrize("kind", ["mean", pytest.param("features", marks=slow)])
def test_an_engine_is_built(tmp_path: Path, kind: Head) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    report = onnx_from_model(narrow(kind), out=tmp_path / "m.onnx", img=32)
    assert build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path).record.layers > 0


def test_a_file_that_is_nearly_one_is_refused(tmp_path: Path) -> None:
    state = narrow().module.state_dict()
    for key, value, message in (
        ("pos_embed", torch.zeros(1, 12, 32), "12 positions, expected those of a square"),
        ("pos_embed", torch.zeros(12, 32), "pos_embed is"),
        ("dist_token", torch.zeros(1, 1, 32), "with dist_token"),
        ("blocks.0.ls1.gamma", torch.zeros(32), "with blocks.0.ls1.gamma"),
        ("patch_embed.proj.weight", torch.zeros(32, 3), "patch_embed.proj.weight is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(saved(tmp_path, {**state, key: value}))
    with pytest.raises(WeightsMismatchError, match="holds the tensor extra"):
        load_model(saved(tmp_path, {**state, "extra": torch.zeros(1)}), loading=LoadOptions(heads=1))
    del state["blocks.1.norm2.bias"]
    with pytest.raises(WeightsMismatchError, match="lacks the tensor"):
        load_model(saved(tmp_path, state), loading=LoadOptions(heads=1))


@pytest.mark.slow
def test_the_exported_file_of_any_size_gives_what_the_network_gives(tmp_path: Path) -> None:
    model = narrow()
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=32, dynamic="shape")
    with open_session(report.path) as session, torch.inference_mode():
        for shape in ((1, 3, 32, 32), (3, 3, 16, 48), (2, 3, 64, 40)):
            images = torch.randn(shape)
            found = session.run({"images": images.numpy()})["logits"]
            np.testing.assert_allclose(found, model.module(images).numpy(), rtol=0, atol=2e-5)
