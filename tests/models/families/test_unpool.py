"""Ways up, each against torch or its definition; and the committed table of who runs what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from deploykit.models.families.fcn.unpool import (
    BilinearDeconvolution,
    MaskedMaxPool,
    MaskedUnpool,
    Unpool,
    UnpoolMode,
    bilinear_kernel,
)
from tests.unpooling_table import OPERATIONS, row_of

SIZES = {"rows": st.integers(1, 5), "columns": st.integers(1, 5), "side": st.integers(1, 4), "seed": st.integers(0, 99)}


@given(**SIZES)
@settings(max_examples=80)
def test_masks_are_torchs_indices_ties_included(rows: int, columns: int, side: int, seed: int) -> None:
    few = np.random.default_rng(seed).integers(0, 3, (2, 3, rows * side, columns * side))  # so that most windows tie
    x = torch.from_numpy(few.astype(np.float32))
    values, places = functional.max_pool2d(x, side, return_indices=True)
    found, mask = MaskedMaxPool(side)(x)
    assert torch.equal(found, values)
    assert torch.equal(functional.max_pool2d(mask, side), torch.ones_like(values))
    assert mask.sum() == values.numel()
    other = torch.randn_like(values)
    expected = functional.max_unpool2d(other, places, side) if side > 1 else other
    assert torch.equal(MaskedUnpool(side)(other, mask), expected)


@given(**SIZES)
@settings(max_examples=40)
def test_modes_of_unpooling(rows: int, columns: int, side: int, seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).random((2, 3, rows, columns), np.float32))
    middle = (side - 1) // 2
    modes: dict[UnpoolMode, torch.Tensor] = {mode: Unpool(side, mode)(x) for mode in ("fixed", "div", "rep")}
    assert torch.equal(modes["fixed"][:, :, middle::side, middle::side], x)
    assert modes["fixed"].sum().item() == pytest.approx(x.sum().item(), rel=1e-5)
    assert torch.equal(modes["rep"], x.repeat_interleave(side, 2).repeat_interleave(side, 3))
    assert torch.allclose(functional.avg_pool2d(modes["div"], side) * side**2, x, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_the_fixed_deconvolution_interpolates(factor: int) -> None:
    """Inside, where no border is near, it is torch's bilinear upsampling."""
    layer = BilinearDeconvolution(3, 2 * factor, factor)
    layer.random_weights(1.0)
    x = torch.randn(1, 3, 5, 6)
    with torch.inference_mode():
        found = layer(x)[:, :, factor // 2 : -(factor // 2), factor // 2 : -(factor // 2)]
    expected = functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inner = slice(factor, -factor)
    assert (found[:, :, inner, inner] - expected[:, :, inner, inner]).abs().max() < 1e-5
    assert bilinear_kernel(4)[1].tolist() == pytest.approx([0.1875, 0.5625, 0.5625, 0.1875])
    assert bilinear_kernel(3)[1].tolist() == pytest.approx([0.5, 1.0, 0.5])


def committed() -> dict[str, list[str]]:
    page = Path(__file__).resolve().parents[3] / "docs" / "unpooling.md"
    lines = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines[1:]}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_table_tells_what_happens(name: str) -> None:
    found = row_of(name)
    told = committed()[name]
    assert [cell.split(":")[0] for cell in told[:3]] == [cell.split(":")[0] for cell in found[:3]]
    if "torch, 2 x 2" not in name:
        assert float(found[3]) <= 1e-5
        assert found[4].startswith(("built", "not run"))
        assert told[4].startswith("built")
