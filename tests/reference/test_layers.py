"""Each layer in torch against its definition in numpy, unfolded and folded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Add, Conv, DownC, DWConv, ReOrg, Shortcut, space_to_depth
from deploykit.models.layers.csp import C3, Bottleneck, BottleneckCSP
from deploykit.models.layers.focus import ConvFocus, Focus
from deploykit.models.layers.ghost import C3Ghost, GhostBottleneck, GhostConv
from deploykit.models.layers.lite import ConvBnReluMaxpool, DWConvblock, ShuffleBlock, StemBlock
from deploykit.models.layers.pool import MP, SP, SPF, SPP, SPPCSPC, SPPF, SPPFCSPC
from deploykit.models.layers.rep import ImplicitA, ImplicitM, RepConv
from tests.reference import layers as reference
from tests.reference.layers import Array, Weights

LIMIT = 1e-4
Definition = Callable[[Array, Weights], Array]


def contracted(module: Focus) -> Focus:
    """With the blocks in the order of edgeai-yolov5."""
    module.rows_first = False
    return module


CASES: dict[str, tuple[Callable[[], nn.Module], int, Definition]] = {
    "Conv 1x1": (lambda: Conv(6, 10), 6, lambda x, w: reference.conv(x, w, "m")),
    "Conv 3x3 stride 2": (lambda: Conv(6, 10, 3, 2), 6, lambda x, w: reference.conv(x, w, "m", 3, 2)),
    "Conv 5x5 without padding": (lambda: Conv(6, 10, 5, 1, 0), 6, lambda x, w: reference.conv(x, w, "m", 5, 1, 0)),
    "Conv depthwise": (lambda: Conv(6, 6, 3, g=6), 6, lambda x, w: reference.conv(x, w, "m", 3, g=6)),
    "Conv in 2 groups": (lambda: Conv(6, 8, 3, 2, g=2), 6, lambda x, w: reference.conv(x, w, "m", 3, 2, g=2)),
    "Conv LeakyReLU": (
        lambda: Conv(6, 10, 3, act=nn.LeakyReLU(0.1)),
        6,
        lambda x, w: reference.conv(x, w, "m", 3, act=reference.leaky_relu),
    ),
    "RepConv": (lambda: RepConv(6, 10), 6, lambda x, w: reference.rep_conv(x, w, "m")),
    "RepConv with identity": (lambda: RepConv(8, 8), 8, lambda x, w: reference.rep_conv(x, w, "m")),
    "RepConv stride 2": (lambda: RepConv(8, 8, 3, 2), 8, lambda x, w: reference.rep_conv(x, w, "m", 3, 2)),
    "RepConv in groups with identity": (
        lambda: RepConv(8, 8, g=4),
        8,
        lambda x, w: reference.rep_conv(x, w, "m", g=4),
    ),
    "DownC": (lambda: DownC(6, 10), 6, lambda x, w: reference.down_c(x, w, "m")),
    "SPPCSPC": (lambda: SPPCSPC(6, 10), 6, lambda x, w: reference.sppcspc(x, w, "m")),
    "SPPFCSPC": (lambda: SPPFCSPC(6, 10), 6, lambda x, w: reference.sppfcspc(x, w, "m")),
    "SPPFCSPC of 3": (lambda: SPPFCSPC(6, 10, k=3), 6, lambda x, w: reference.sppfcspc(x, w, "m", 3)),
    "SPPF": (lambda: SPPF(6, 10), 6, lambda x, w: reference.sppf(x, w, "m")),
    "SPP": (lambda: SPP(6, 10), 6, lambda x, w: reference.spp(x, w, "m")),
    "SPP of 3, 5, 7": (lambda: SPP(6, 10, [3, 5, 7]), 6, lambda x, w: reference.spp(x, w, "m", (3, 5, 7))),
    "Focus": (lambda: Focus(3, 8, 3), 3, lambda x, w: reference.focus(x, w, "m", 3)),
    "Focus 1x1 stride 3": (lambda: Focus(3, 8, 1, 3), 3, lambda x, w: reference.focus(x, w, "m", 1, 3)),
    "Focus contracted": (
        lambda: contracted(Focus(3, 8, 3)),
        3,
        lambda x, w: reference.focus(x, w, "m", 3, columns_first=True),
    ),
    "ConvFocus": (lambda: ConvFocus(3, 8, 3), 3, lambda x, w: reference.conv_focus(x, w, "m", 3)),
    "DWConv": (lambda: DWConv(6, 6, 3), 6, lambda x, w: reference.dw_conv(x, w, "m", 3)),
    "DWConv with two groups": (lambda: DWConv(6, 4, 3, 2), 6, lambda x, w: reference.dw_conv(x, w, "m", 3, 2)),
    "Bottleneck": (lambda: Bottleneck(6, 6), 6, lambda x, w: reference.bottleneck(x, w, "m")),
    "Bottleneck that widens": (lambda: Bottleneck(6, 8), 6, lambda x, w: reference.bottleneck(x, w, "m")),
    "Bottleneck without shortcut": (
        lambda: Bottleneck(6, 6, False),
        6,
        lambda x, w: reference.bottleneck(x, w, "m", shortcut=False),
    ),
    "C3 of 2": (lambda: C3(6, 8, 2), 6, lambda x, w: reference.c3(x, w, "m")),
    "C3 without shortcut": (lambda: C3(6, 8, 1, False), 6, lambda x, w: reference.c3(x, w, "m", False)),
    "BottleneckCSP of 2": (lambda: BottleneckCSP(6, 8, 2), 6, lambda x, w: reference.bottleneck_csp(x, w, "m")),
    "BottleneckCSP without shortcut": (
        lambda: BottleneckCSP(6, 8, 1, False),
        6,
        lambda x, w: reference.bottleneck_csp(x, w, "m", False),
    ),
    "GhostConv": (lambda: GhostConv(6, 8), 6, lambda x, w: reference.ghost_conv(x, w, "m")),
    "GhostConv 3x3 stride 2": (lambda: GhostConv(6, 8, 3, 2), 6, lambda x, w: reference.ghost_conv(x, w, "m", 3, 2)),
    "GhostBottleneck": (lambda: GhostBottleneck(8, 8), 8, lambda x, w: reference.ghost_bottleneck(x, w, "m")),
    "GhostBottleneck stride 2": (
        lambda: GhostBottleneck(6, 8, 3, 2),
        6,
        lambda x, w: reference.ghost_bottleneck(x, w, "m", 3, 2),
    ),
    "C3Ghost of 2": (lambda: C3Ghost(6, 8, 2), 6, lambda x, w: reference.c3_ghost(x, w, "m")),
    "C3Ghost of none": (lambda: C3Ghost(6, 8, 0), 6, lambda x, w: reference.c3_ghost(x, w, "m")),
    "StemBlock": (lambda: StemBlock(3, 8), 3, lambda x, w: reference.stem_block(x, w, "m")),
    "conv_bn_relu_maxpool": (
        lambda: ConvBnReluMaxpool(3, 8),
        3,
        lambda x, w: reference.conv_bn_relu_maxpool(x, w, "m"),
    ),
    "Shuffle_Block stride 1": (lambda: ShuffleBlock(8, 8, 1), 8, lambda x, w: reference.shuffle_block(x, w, "m", 1)),
    "Shuffle_Block stride 2": (lambda: ShuffleBlock(6, 10, 2), 6, lambda x, w: reference.shuffle_block(x, w, "m", 2)),
    "DWConvblock": (lambda: DWConvblock(6, 10, 3, 1), 6, lambda x, w: reference.dw_conv_block(x, w, "m", 3, 1)),
    "DWConvblock 5x5 stride 2": (
        lambda: DWConvblock(6, 10, 5, 2),
        6,
        lambda x, w: reference.dw_conv_block(x, w, "m", 5, 2),
    ),
    "MP": (MP, 6, lambda x, w: reference.max_pool(x, 2, 2)),
    "SP 5": (lambda: SP(5), 6, lambda x, w: reference.max_pool(x, 5, 1, 2)),
    "SPF 5": (lambda: SPF(5), 6, lambda x, w: reference.spf(x, 5)),
    "SPF 13": (lambda: SPF(13), 6, lambda x, w: reference.spf(x, 13)),
    "SPF of an even size": (lambda: SPF(4), 6, lambda x, w: reference.spf(x, 4)),
    "SP 13": (lambda: SP(13), 6, lambda x, w: reference.max_pool(x, 13, 1, 6)),
    "ReOrg": (ReOrg, 3, lambda x, w: reference.reorg(x)),
    "nn.Upsample": (lambda: nn.Upsample(None, 2, "nearest"), 6, lambda x, w: reference.upsample(x)),
    "ImplicitA": (lambda: ImplicitA(6), 6, lambda x, w: x + w["m.implicit"]),
    "ImplicitM": (lambda: ImplicitM(6), 6, lambda x, w: x * w["m.implicit"]),
}


def weights_of(module: nn.Module) -> Weights:
    return {f"m.{key}": t.double().numpy() for key, t in module.state_dict().items()}


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
@pytest.mark.parametrize(("make", "channels", "definition"), CASES.values(), ids=CASES)
def test_a_layer_computes_its_definition(
    make: Callable[[], nn.Module], channels: int, definition: Definition, fused: bool
) -> None:
    torch.manual_seed(1)
    module = make().eval()
    randomise(module)
    x = torch.randn(2, channels, 12, 18)
    expected = definition(x.double().numpy(), weights_of(module))
    with torch.no_grad():
        found = (fuse_model(module) if fused else module)(x).numpy()
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() <= LIMIT


@pytest.mark.parametrize("sides", [(11, 7), (12, 6), (5, 5)])
def test_a_stem_block_rounds_odd_sides_up_in_both_branches(sides: tuple[int, int]) -> None:
    torch.manual_seed(2)
    module = StemBlock(3, 4).eval()
    randomise(module)
    x = torch.randn(1, 3, *sides)
    expected = reference.stem_block(x.double().numpy(), weights_of(module), "m")
    with torch.no_grad():
        found = module(x).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LIMIT


@pytest.mark.parametrize(("module", "alpha"), [(Shortcut(), 1.0), (Add(1), 1.0), (Add(0.5), 0.5), (Add(0.25), 0.25)])
def test_a_sum_weighs_its_second_input(module: nn.Module, alpha: float) -> None:
    torch.manual_seed(3)
    x, y = torch.randn(2, 1, 4, 3, 5)
    np.testing.assert_allclose(module(x, y), x + alpha * y, rtol=1e-6)


def test_a_reorganised_pixel_is_found_in_the_block_of_its_row_and_column_parity() -> None:
    """By hand: row 1, column 0 of the image is the first pixel of the second block of channels."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = ReOrg()(x)
    assert found[0, :, 0, 0].tolist() == [0.0, 4.0, 1.0, 5.0]
    assert found[0, :, 1, 1].tolist() == [10.0, 14.0, 11.0, 15.0]
    assert space_to_depth(x, rows_first=False)[0, :, 0, 0].tolist() == [0.0, 1.0, 4.0, 5.0]
