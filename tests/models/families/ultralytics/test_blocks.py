"""Blocks of the ultralytics-format families: names, folds, random weights, tracing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import FoldError
from deploykit.models.families.ultralytics.blocks.attention import C2PSA, PSA, A2C2f, C2fPSA
from deploykit.models.families.ultralytics.blocks.cib import RepVGGDW
from deploykit.models.families.ultralytics.blocks.elan import CBFuse, CBLinear, RepConv
from deploykit.models.fuse import fuse_model
from deploykit.models.layers import rep
from deploykit.models.layers.conv import Conv
from tests.models.families.ultralytics.block_table import BLOCKS, Case, image, prepared

ALL = pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS.keys())
ATTENTIVE = [name for name in BLOCKS if "Attn" in name or "A2" in name or "PSA" in name or "ttention" in name]


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = module(x)
    return list(found) if isinstance(found, tuple) else [found]


@ALL
def test_tensors_have_the_names_of_the_originals(case: Case) -> None:
    assert set(case.make().state_dict()) == case.keys


@ALL
def test_a_fold_keeps_the_numbers_and_leaves_no_batch_norm(case: Case) -> None:
    module, x = prepared(case.make), image(case.channels)
    before = copy.deepcopy(module.state_dict())
    fused = fuse_model(module)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    for expected, found in zip(results(module, x), results(fused, x), strict=True):
        assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert all(torch.equal(before[key], t) for key, t in module.state_dict().items())


@pytest.mark.parametrize("block", [RepVGGDW(8), RepConv(8, 6), RepConv(8, 6, s=2, g=2)])
def test_several_branches_fold_into_one_convolution_under_the_projects_names(block: nn.Module) -> None:
    module = prepared(lambda: block)
    fused = fuse_model(module)
    assert isinstance(fused, Conv)
    assert set(fused.state_dict()) == {"conv.weight", "conv.bias"}
    [expected], [found] = results(module, image(8)), results(fused, image(8))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sum_of_branches_that_is_wrong_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rep.F, "pad", lambda x, sides: nn.functional.conv_transpose2d(x, torch.ones(1, 1, 5, 5).to(x)))
    with pytest.raises(FoldError, match="folding the branches of head"):
        fuse_model(prepared(lambda: RepVGGDW(1)), "head")


@ALL
def test_random_weights_neither_die_nor_explode(case: Case) -> None:
    """Two images give two results that differ, about as large as what came in, and no channel is constant."""
    x = image(case.channels, 16, 16)
    for found in results(prepared(case.make), x):
        assert found.isfinite().all()
        assert 0.1 < float(found.std()) < 4
        assert float((found[0] - found[1]).std()) > 0.1
        assert float(found.std((0, 2, 3)).min()) > 0


@pytest.mark.parametrize("block", [lambda: A2C2f(64, 64, 4, True, 4, True, 1.2), lambda: C2PSA(128, 128, 6)])
def test_attention_with_random_weights_stays_calm_in_many_blocks_in_a_row(block: Callable[[], nn.Module]) -> None:
    module = prepared(lambda: nn.Sequential(*(block() for _ in range(3))))
    x = image(64 if isinstance(module[0], A2C2f) else 128, 16, 16)
    [found], [wide] = results(module, x), results(copy.deepcopy(module).double(), x.double())
    assert 0.1 < float(found.std()) < 4
    assert float((found - wide).abs().max()) < 1e-5 * float(wide.abs().max())


@pytest.mark.parametrize("name", [name for name, case in BLOCKS.items() if name != "CBLinear"])
def test_the_same_shape_comes_out_for_any_number_of_images(name: str) -> None:
    case = BLOCKS[name]
    module, x = prepared(case.make), image(case.channels, batch=3)
    [together] = results(module, x)
    alone = torch.cat([results(module, x[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


@ALL
def test_blocks_are_traced_for_any_number_of_images(case: Case) -> None:
    module, free = prepared(case.make), {0: torch.export.Dim("batch", min=1, max=64)}
    traced = torch.export.export(module, (image(case.channels),), dynamic_shapes=(free,)).module()
    x = image(case.channels, batch=5)
    for expected, found in zip(results(module, x), results(traced, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ATTENTIVE, "SPPF", "ADown", "RepNCSPELAN4", "C2fCIB"])
def test_blocks_are_traced_for_any_size(name: str) -> None:
    """The sides are multiples of 4, as behind a stride of 8 in an image that 32 divides."""
    case = BLOCKS[name]
    module = prepared(case.make)
    height, width = torch.export.Dim("height", min=1, max=64), torch.export.Dim("width", min=1, max=64)
    free = {0: torch.export.Dim("batch", min=1, max=64), 2: 4 * height, 3: 4 * width}
    traced = torch.export.export(module, (image(case.channels),), dynamic_shapes=(free,)).module()
    for x in (image(case.channels, 12, 8, 3), image(case.channels, 16, 16, 1)):
        for expected, found in zip(results(module, x), results(traced, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_parts_and_their_sum_are_traced_in_one_graph() -> None:
    class Linked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.fuse_parts = CBLinear(8, (4, 8)), CBFuse((1,))

        def forward(self, small: Tensor, large: Tensor) -> Tensor:
            out: Tensor = self.fuse_parts(self.linear(small), large)
            return out

    module = prepared(Linked)
    batch = torch.export.Dim("batch", min=1, max=64)
    example = image(8), image(8, 16, 24)
    traced = torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch})).module()
    given = image(8, batch=3, seed=5), image(8, 16, 24, batch=3, seed=6)
    torch.testing.assert_close(traced(*given), module(*given))


@pytest.mark.parametrize("kind", [PSA, C2PSA, C2fPSA])
def test_stages_with_attention_keep_their_width(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} gives as many channels as it gets, got 8 and 12"):
        kind(8, 12)


def test_a2c2f_refuses_what_has_no_heads() -> None:
    with pytest.raises(ValueError, match="multiple of 32, got 8"):
        A2C2f(8, 16)
    with pytest.raises(ValueError, match="A2C2f with a residual gives as many channels as it gets"):
        A2C2f(8, 64, residual=True)
