"""YOLOv6 in torch against its definition in numpy: blocks, decode and whole networks, unfolded and folded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.yolov6.bep import CSPSPPF, BepC3, BiFusion, BottleRep, Chain, SimSPPF, Transpose
from deploykit.models.families.yolov6.head import DistanceHead
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolov6.rep_vgg import QARepVGG, RepVGG
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv
from tests.narrow import yolov6_config
from tests.reference import yolov6 as reference
from tests.reference.layers import Array, Weights, silu

LIMIT = 1e-4
Definition = Callable[[Array, Weights], Array]


def silu_block(a: int, b: int) -> nn.Module:
    return Conv(a, b, 3)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], Definition]] = {
    "RepVGG": (lambda: RepVGG(6, 10), lambda x, w: reference.rep_vgg(x, w, "m")),
    "RepVGG with identity": (lambda: RepVGG(6, 6), lambda x, w: reference.rep_vgg(x, w, "m")),
    "RepVGG stride 2": (lambda: RepVGG(6, 6, 2), lambda x, w: reference.rep_vgg(x, w, "m", 2)),
    "QARepVGG": (lambda: QARepVGG(6, 10), lambda x, w: reference.qa_rep_vgg(x, w, "m")),
    "QARepVGG with identity": (lambda: QARepVGG(6, 6), lambda x, w: reference.qa_rep_vgg(x, w, "m", mean=False)),
    "QARepVGG with mean": (lambda: QARepVGG(6, 6, mean=True), lambda x, w: reference.qa_rep_vgg(x, w, "m")),
    "QARepVGG stride 2": (lambda: QARepVGG(6, 6, 2, mean=True), lambda x, w: reference.qa_rep_vgg(x, w, "m", 2)),
    "BottleRep": (lambda: BottleRep(6, 6, RepVGG), lambda x, w: reference.bottle_rep(x, w, "m")),
    "BottleRep that widens": (lambda: BottleRep(6, 8, RepVGG), lambda x, w: reference.bottle_rep(x, w, "m")),
    "chain of 3": (lambda: Chain(6, 8, 3, RepVGG), lambda x, w: reference.chain(x, w, "m")),
    "chain of 1": (lambda: Chain(6, 8, 1, RepVGG), lambda x, w: reference.chain(x, w, "m")),
    "BepC3 of 2": (lambda: BepC3(6, 8, 2, RepVGG, 4), lambda x, w: reference.stage(x, w, "m")),
    "BepC3 SiLU": (
        lambda: BepC3(6, 8, 1, silu_block, 4, nn.SiLU),
        lambda x, w: reference.stage(x, w, "m", silu),
    ),
    "SimSPPF": (lambda: SimSPPF(6, 10), lambda x, w: reference.sim_sppf(x, w, "m")),
    "CSPSPPF": (lambda: CSPSPPF(6, 10), lambda x, w: reference.csp_sppf(x, w, "m")),
    "Transpose": (lambda: Transpose(6), lambda x, w: reference.transpose(x, w, "m")),
}

# Each kind of network once: the others differ from these in how many blocks and channels there are.
NETWORKS = (
    "yolov6n", "yolov6m", "yolov6l", "yolov6n6", "yolov6l6", "yolov6n_qa", "yolov6m_qa", "yolov6n_v2", "yolov6m_v2",
    "yolov6l_v2", "yolov6t_v1",
)  # fmt: skip


def weights_of(module: nn.Module, at: str = "") -> Weights:
    return {f"{at}{key}": t.double().numpy() for key, t in module.state_dict().items()}


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
@pytest.mark.parametrize(("make", "definition"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_computes_its_definition(make: Callable[[], nn.Module], definition: Definition, fused: bool) -> None:
    torch.manual_seed(1)
    module = make().eval()
    randomise(module)
    x = torch.randn(2, 6, 10, 14)
    expected = definition(x.double().numpy(), weights_of(module, "m."))
    with torch.no_grad():
        found = (fuse_model(module) if fused else module)(x).numpy()
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() <= LIMIT


@pytest.mark.parametrize("fused", [False, True], ids=["trained form", "folded"])
def test_bifusion_computes_its_definition(fused: bool) -> None:
    torch.manual_seed(2)
    module = BiFusion(6, 4, 8).eval()
    randomise(module)
    small, same, large = torch.randn(2, 8, 3, 4), torch.randn(2, 6, 6, 8), torch.randn(2, 4, 12, 16)
    inputs = (x.double().numpy() for x in (small, same, large))
    expected = reference.bifusion(*inputs, weights_of(module, "m."), "m")
    with torch.no_grad():
        found = (fuse_model(module) if fused else module)(small, same, large).numpy()
    assert np.abs(found - expected).max() <= LIMIT


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_its_definition(name: str) -> None:
    torch.manual_seed(3)
    network = YOLOv6(yolov6_config(name, 3, width=0.0625))
    randomise(network)
    images = torch.rand(1, 3, 64, 128)
    act = silu if network.config.activation == "silu" else reference.relu
    expected = reference.run(images.double().numpy(), weights_of(network), act)
    with torch.no_grad():
        for module in (network, fuse_model(network)):
            error = np.abs(module(images).numpy() - expected)
            assert error[..., :4].max() <= 1e-3
            assert error[..., 4:].max() <= 1e-5


def test_rows_run_over_levels_then_grid_rows_then_grid_columns() -> None:
    """By hand: with raw distances 1, 2, 3 and 4 every row can be named."""
    head = DistanceHead(1, (4, 4)).eval()
    randomise(head)
    for conv in head.reg_preds:
        nn.init.zeros_(conv.weight)
        conv.bias.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        rows = head(torch.randn(1, 4, 2, 3), torch.randn(1, 4, 1, 1))[0]
    expected = [
        [(x + 0.5 + 1) * stride, (y + 0.5 + 1) * stride, 4 * stride, 6 * stride, 1]
        for (height, width), stride in (((2, 3), 8), ((1, 1), 16))
        for y in range(height)
        for x in range(width)
    ]
    np.testing.assert_allclose(rows[:, :5], expected, rtol=1e-6)


def test_a_distribution_gives_its_mean() -> None:
    """All of the weight on bin 5, then half on 2 and half on 4."""
    head = DistanceHead(1, (4,), reg_max=16)
    raw = torch.full((1, 68, 1, 2), -100.0)
    raw[:, 5::17, :, 0] = 0
    raw[:, 2::17, :, 1] = 0
    raw[:, 4::17, :, 1] = 0
    np.testing.assert_allclose(head._distances(raw)[0, :, 0].detach(), [[5, 3]] * 4, rtol=1e-6)
