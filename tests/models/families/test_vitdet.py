"""ViTDet's backbone: the original's numbers, windows and positions by their definition, both projects' files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deploykit.errors import CheckpointError, FoldError, WeightsMismatchError
from deploykit.models.checkpoint.reader import Checkpoint, read_checkpoint
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.vitdet import model as vitdet
from deploykit.models.families.vitdet import relative_attention
from deploykit.models.families.vitdet.mask_rcnn import CASCADE, HeadsConfig, MaskRcnn
from deploykit.models.families.vitdet.model import VitDetBackbone, VitDetConfig
from deploykit.models.families.vitdet.pyramid import Norm, norm_of
from deploykit.models.families.vitdet.relative_attention import (
    GridBlock,
    RelativeAttention,
    merge_windows,
    partition_windows,
)
from deploykit.models.families.vitdet.two_stage import Proposals
from deploykit.models.fuse import fuse_model
from deploykit.models.loading.weights import load_weights
from deploykit.spec import Thresholds
from tests.meta_model import meta_model
from tests.models.files import saved
from tests.reference import vitdet as reference

PUBLISHED = {
    "b": (85_889_024, 91_449_024, 110_895_792),
    "l": (303_432_704, 311_237_888, 330_684_656),
    "h": (631_116_800, 641_756_992, 661_203_760),
}
"""Parameters of the transformer, of the whole backbone and of the detector, by the original's own code."""

NARROW = VitDetConfig(
    16, 4, 2, 32, global_blocks=(1, 3), conv_blocks=(3,), patch=4, map_size=8, pretrained=4, window=3, out=8
)


def narrow(config: VitDetConfig = NARROW) -> VitDetBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VitDetBackbone(config).eval().requires_grad_(False)
        randomise(network)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.bias, std=0.1)
    return network


def in_easycv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under EasyCV's names."""
    found = {}
    for key, value in state.items():
        if key.startswith("net."):
            name = f"backbone.{key[4:]}"
        else:
            stage, place, *rest = key.split(".")
            conv = ".".join(rest)
            if conv.startswith("norm."):
                conv = conv.replace("norm.", "gn.")
            elif f"{stage}.{place}.norm.weight" in state:
                conv = f"conv.{conv}"
            name = f"neck.sfp_{int(stage[-1]) - 2}.{place}.{conv}"
        found[name] = value
    return found


def backbone_from_checkpoint(checkpoint: Checkpoint) -> VitDetBackbone | None:
    """The backbone of a file, which need not have heads."""
    shapes = vitdet.FAMILY.shapes_of(checkpoint)
    if shapes is None:
        return None
    network = VitDetBackbone(vitdet.FAMILY.backbone_of(shapes)).eval()
    tensors = checkpoint.float32()
    names = {name[9:]: key for name, key in shapes.key_map.items() if name.startswith("backbone.")}
    load_weights(network, checkpoint, {key: tensors[key] for key in names.values()}, "backbone", key_map=names)
    return network


@pytest.mark.parametrize("size", PUBLISHED)
def test_it_has_as_many_parameters_as_the_originals(size: str) -> None:
    network = meta_model(f"vitdet_{size}").module
    parts = (network.get_submodule("backbone.net"), network.get_submodule("backbone"), network)
    assert tuple(sum(p.numel() for p in module.parameters()) for module in parts) == PUBLISHED[size]


@pytest.mark.data
@pytest.mark.parametrize("folded", [False, True])
def test_it_gives_what_the_originals_code_gave(shared: Path, folded: bool) -> None:
    backbone = backbone_from_checkpoint(read_checkpoint(shared / "golden" / "vitdet-backbone-narrow.pkl"))
    assert backbone is not None
    assert backbone.net.config == VitDetConfig(32, 4, 2, 128, global_blocks=(1, 3), map_size=16, out=16)
    network = fuse_model(backbone) if folded else backbone
    with np.load(shared / "golden" / "vitdet-backbone-narrow.npz") as golden, torch.inference_mode():
        for i, level in enumerate(network(torch.from_numpy(golden["images"])), start=2):
            np.testing.assert_allclose(level.numpy(), golden[f"p{i}"], rtol=0, atol=2e-5)  # of values up to 3.6


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("window", "cells", "size"),
    [(3, 4, (4, 7)), (3, 4, (6, 3)), (0, 4, (4, 4)), (0, 4, (3, 5)), (0, 3, (6, 4))],
    ids=str,
)
def test_a_block_is_its_definition(window: int, cells: int, size: tuple[int, int], folded: bool) -> None:
    torch.manual_seed(0)
    block = GridBlock(8, 2, 12, window, cells, residual=False).eval().requires_grad_(False)
    for module in (block, block.attn):
        module.random_weights(1.0)
    x = torch.randn(*size, 8)
    expected = reference.block(x, block.state_dict(), 2, window)
    found = (fuse_model(block) if folded else block)(x[None])[0]
    assert (found - expected).abs().max() < 1e-5


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_windows_come_back_as_they_went(height: int, width: int, window: int, batch: int) -> None:
    x = torch.arange(batch * height * width * 2.0).reshape(batch, height, width, 2) + 1
    windows = partition_windows(x, window)
    assert windows.shape[1:3] == (window, window)
    assert torch.equal(merge_windows(windows, batch, height, width), x)
    assert int((windows == 0).sum()) == windows.numel() - x.numel()  # what was added is zero


def test_queries_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = RelativeAttention(16, 2, 6).eval().requires_grad_(False)
    attention.random_weights(1.0)
    folded = attention.fuse("")
    x = torch.randn(2, 6, 6, 16)
    whole = folded(x)
    calls = []
    attend = relative_attention.attend
    monkeypatch.setattr(relative_attention, "LOGITS", 500)
    monkeypatch.setattr(relative_attention, "attend", lambda *a: calls.append(a[0].shape[2]) or attend(*a))
    assert (folded(x) - whole).abs().max() < 1e-6
    assert calls == [6] * 6  # 2 * 36 * 36 logits, at most 500 at once
    assert (folded(x) - attention(x)).abs().max() < 1e-5
    assert calls == [6] * 18  # of three runs
    assert torch.equal(fuse_model(folded)(x), folded(x))  # folding again changes nothing


def test_a_folded_attention_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = RelativeAttention(16, 2, 6).eval().requires_grad_(False)
    attention.random_weights(1.0)
    places = relative_attention.FoldedRelativeAttention.places
    flipped = staticmethod(lambda k, height, width, more: places(k, height, width, more).flip(0))
    monkeypatch.setattr(relative_attention.FoldedRelativeAttention, "places", flipped)
    with pytest.raises(FoldError, match="relative positions of here"):
        attention.fuse("here")


def test_both_ways_to_windows() -> None:
    """Padded by default; interpolated where that is asked for, which changes nothing of maps that fit."""
    images = torch.randn(1, 3, 32, 24)
    padded = narrow()(images)
    network = narrow()
    network.net.config = replace(NARROW, window_mode="interpolate")
    resized = network(images)
    assert [x.shape for x in resized] == [x.shape for x in padded]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(padded, resized, strict=True))
    fitting = torch.randn(1, 3, 24, 36)
    assert all(torch.equal(a, b) for a, b in zip(network(fitting), narrow()(fitting), strict=True))


def test_one_group_is_no_layer_norm() -> None:
    layer, group = norm_of("LN", 8), norm_of("GN", 8)
    group.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 5, 5)
    assert (layer(x) - group(x)).abs().max() > 0.1
    one = x[..., :1, :1]
    assert (layer(one) - group(one)).abs().max() < 1e-6
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    assert (layer(x) - (x - mean) / (variance + 1e-6).sqrt()).abs().max() < 1e-5


def test_each_projects_files_get_its_own_norm(tmp_path: Path) -> None:
    images = torch.randn(1, 3, 32, 32)
    projects: tuple[tuple[Norm, bool], ...] = (("LN", True), ("GN", False))
    for norm, prefix in projects:
        network = narrow(replace(NARROW, norm=norm))
        state = network.state_dict()
        state = {f"backbone.{key}": value for key, value in state.items()} if prefix else in_easycv(state)
        found = backbone_from_checkpoint(read_checkpoint(saved(tmp_path, state)))
        assert found is not None
        assert found.net.config == replace(NARROW, norm=norm)
        assert all(torch.equal(a, b) for a, b in zip(found(images), network(images), strict=True))
        assert {type(m) for m in found.simfp_2 if not isinstance(m, nn.Conv2d)} >= {type(norm_of(norm, 8))}


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("net.pos_embed", torch.zeros(1, 12, 16), CheckpointError, "12 positions"),
        ("net.blocks.0.attn.rel_pos_h", torch.zeros(5, 3), CheckpointError, "not 5 heads of 3"),
        ("net.blocks.2.attn.rel_pos_h", torch.zeros(5), CheckpointError, "expected 2 axes"),
        ("net.blocks.1.attn.rel_pos_w", torch.zeros(5, 8), WeightsMismatchError, "rel_pos_w"),
        ("simfp_4.0.weight", torch.zeros(8), CheckpointError, "expected 4 axes"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, key: str, value: Tensor, error: type[Exception], message: str
) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in narrow().state_dict().items()}
    state[f"backbone.{key}"] = value
    with pytest.raises(error, match=message):
        backbone_from_checkpoint(read_checkpoint(saved(tmp_path, state)))


def test_other_files_are_none(tmp_path: Path) -> None:
    assert backbone_from_checkpoint(read_checkpoint(saved(tmp_path, {"backbone.pos_embed": torch.zeros(1)}))) is None


def detector(config: VitDetConfig = NARROW, **heads: Any) -> MaskRcnn:
    """With random weights, which find something."""
    chosen = Proposals(before=60, after=40)
    settings = {"num_classes": 3, "channels": config.out, "features": 16, "norm": config.norm, "proposals": chosen}
    settings |= {"agnostic": heads.get("weights") == CASCADE, **heads}
    thresholds = Thresholds(conf=0.1, iou=0.5, max_det=20, pre_nms_topk=100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MaskRcnn(VitDetBackbone(config), HeadsConfig(**settings), thresholds).eval().requires_grad_(False)
        randomise(network)
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.bias, std=0.1)
    return network
