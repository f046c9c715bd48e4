"""Mask R-CNN on four maps of a plain transformer: each part by its definition, and its files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.vitdet import shared_bias, vit_mask_rcnn
from deploykit.models.families.vitdet.mask_rcnn import HeadsConfig, MaskRcnn
from deploykit.models.families.vitdet.model import DetectorConfig, VitDetConfig
from deploykit.models.families.vitdet.pyramid import NormedConv, TapPyramid
from deploykit.models.families.vitdet.shared_bias import SharedBiasBlock, bias_of
from deploykit.models.families.vitdet.two_stage import Proposals
from deploykit.models.families.vitdet.vit_mask_rcnn import TapBackbone
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.spec import Thresholds
from tests.meta_model import meta_model
from tests.models.files import saved

CONFIG = VitDetConfig(
    16, 8, 2, 32, global_blocks=(1, 3, 5, 7), patch=8, map_size=8, pretrained=4, window=3, out=8, norm="BN"
)  # fmt: skip


def narrow() -> ReferenceModel:
    """With random weights, which find something."""
    heads = HeadsConfig(3, 8, features=16, norm="BN", proposals=Proposals(before=60, after=40))
    thresholds = Thresholds(conf=0.1, iou=0.5, max_det=20, pre_nms_topk=100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MaskRcnn(TapBackbone(CONFIG), heads, thresholds).eval().requires_grad_(False)
        randomise(network)
    return vit_mask_rcnn.FAMILY.reference(DetectorConfig(CONFIG, heads), network)


@pytest.mark.parametrize("size", ["b", "l"])
def test_the_blocks_are_vitdets_and_a_quarter_of_them_looks_at_everything(size: str) -> None:
    network = meta_model(f"vit-mask-rcnn-{size}").module
    blocks = network.get_submodule("backbone.net.blocks")
    assert isinstance(blocks, nn.ModuleList)
    whole = [i for i, block in enumerate(blocks, start=1) if not block.window]
    assert whole == [len(blocks) // 4 * i for i in range(1, 5)]
    attention = sum(p.numel() for name, p in blocks.named_parameters())
    dim = {"b": 768, "l": 1024}[size]
    assert attention == len(blocks) * (12 * dim**2 + 13 * dim)  # of every plain transformer


def test_a_bias_is_that_of_the_distance() -> None:
    table = torch.randn(2, 7, 7)
    bias = bias_of(table, 0, 4, 4, 4)
    assert bias.shape == (2, 16, 16)
    for query in range(16):
        for key in range(16):
            rows, columns = query // 4 - key // 4, query % 4 - key % 4
            assert torch.equal(bias[:, query, key], table[:, rows + 3, columns + 3])
    assert torch.equal(bias_of(table, 1, 3, 4, 4), bias[:, 4:12])
    flat = torch.full((2, 7, 7), 0.5)
    assert torch.allclose(bias_of(flat, 0, 3, 3, 5), torch.tensor(0.5))  # stretched


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("window", [0, 2])
def test_a_block_is_its_definition(window: int, folded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = SharedBiasBlock(8, 2, 12, window).double().eval().requires_grad_(False)
    height, width, side = 4, 4, window or 4
    table = torch.randn(2, 2 * side - 1, 2 * side - 1, dtype=torch.float64)
    x = torch.randn(1, height, width, 8, dtype=torch.float64)
    monkeypatch.setattr(shared_bias, "LOGITS", 2 * side**4 // 2)  # in two parts
    found = (fuse_model(block) if folded else block)(x, table)
    qkv = block.attn.qkv(block.norm1(x))[0]
    mixed = torch.zeros_like(x[0])
    for r in range(height):
        for c in range(width):
            cells = [
                (i, j) for i in range(height) for j in range(width) if (i // side, j // side) == (r // side, c // side)
            ]
            for h in range(2):
                q, k, v = (slice(8 * part + 4 * h, 8 * part + 4 * h + 4) for part in range(3))
                logits = [
                    qkv[r, c, q] @ qkv[i, j, k] / math.sqrt(4) + table[h, r - i + side - 1, c - j + side - 1]
                    for i, j in cells
                ]
                shares = torch.stack(logits).softmax(0)
                mixed[r, c, 4 * h : 4 * h + 4] = sum(s * qkv[i, j, v] for s, (i, j) in zip(shares, cells, strict=True))
    after = x[0] + block.attn.proj(mixed)
    expected = after + block.mlp(block.norm2(after))
    assert (found[0] - expected).abs().max() < 1e-9


def test_levels_are_joined_from_the_top() -> None:
    torch.manual_seed(0)
    pyramid = TapPyramid(8, 4, 2).eval().requires_grad_(False)
    randomise(pyramid)
    maps = [torch.randn(1, 8, 4, 4) for _ in range(4)]
    levels = pyramid(maps)
    assert [tuple(x.shape[2:]) for x in levels] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    laterals = {i: pyramid.get_submodule(f"fpn_lateral{i}") for i in range(2, 6)}
    outputs = {i: pyramid.get_submodule(f"fpn_output{i}") for i in range(2, 6)}
    five = laterals[5](functional.max_pool2d(maps[3], 2))
    four = laterals[4](maps[2]) + five.repeat_interleave(2, 2).repeat_interleave(2, 3)
    three = laterals[3](pyramid.scale_3(maps[1])) + four.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for level, merged in ((5, five), (4, four), (3, three)):
        assert torch.equal(levels[level - 2], outputs[level](merged))
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norms_fold(relu: bool) -> None:
    torch.manual_seed(0)
    conv = NormedConv(4, 6, 3, "BN", relu=relu).eval().requires_grad_(False)
    randomise(conv)
    folded = fuse_model(conv)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(2, 4, 5, 5)
    assert (folded(x) - conv(x)).abs().max() < 1e-5
    assert (conv(x) >= 0).all() == relu
    layer = NormedConv(4, 6, 3, "LN")
    assert layer.fuse("") is layer


def test_its_files_are_read(tmp_path: Path) -> None:
    own = narrow()
    found = load_model(saved(tmp_path, own.module.state_dict()))
    assert found.name == own.name == "vit-mask-rcnn-d16-8"
    assert isinstance(found.module, MaskRcnn)
    assert found.module.backbone.net.config == replace(CONFIG)  # type: ignore[union-attr]
    images = torch.randn(1, 3, 64, 64)
    for a, b in zip(found.module.backbone(images), own.module.backbone(images), strict=True):
        assert torch.equal(a, b)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    state: dict[str, Tensor] = narrow().module.state_dict()
    state["backbone.net.rel_window"] = torch.zeros(3, 5, 5)
    with pytest.raises(CheckpointError, match="16 channels, 3 heads, 8 blocks"):
        load_model(saved(tmp_path, state))
