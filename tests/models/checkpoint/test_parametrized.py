"""Weights stored as parts are put together as torch does it; what cannot be is named for what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from deploykit.errors import CheckpointError, UnsafeCheckpointError
from deploykit.models.checkpoint.reader import read_checkpoint

Save = Callable[[Any], Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 1, 2), nn.Linear(4, 6))


def weight_of(module: nn.Module) -> Tensor:
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
    return module.weight.detach()  # type: ignore[union-attr,operator,return-value]


@pytest.mark.parametrize("whole", [True, False], ids=["model", "state dict"])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_folded(save: Save, dim: int | None, whole: bool) -> None:
    model = net()
    for module in model:
        nn.init.uniform_(weight_norm(module, dim=dim).weight_g, 0.5, 2.0)
    found = read_checkpoint(save(model if whole else model.state_dict()))
    assert sorted(found.state_dict) == sorted(net().state_dict())
    for i, module in enumerate(model):
        torch.testing.assert_close(found.state_dict[f"{i}.weight"], weight_of(module), rtol=1e-6, atol=1e-7)
    assert "weight norm is fused into 3 weights" in found.notes


def test_the_parametrization_of_weight_norm_is_folded_into_its_place(save: Save) -> None:
    model = net()
    for module in model:
        parametrizations.weight_norm(module)
        nn.init.uniform_(module.parametrizations.weight.original0, 0.5, 2.0)
    found = read_checkpoint(save({"model": {k: v.half() for k, v in model.state_dict().items()}}))
    assert sorted(found.state_dict) == sorted(net().state_dict())
    for i, module in enumerate(model.half().float()):
        torch.testing.assert_close(found.state_dict[f"{i}.weight"], weight_of(module), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("whole", [True, False], ids=["model", "state dict"])
def test_masks_of_pruning_are_multiplied(save: Save, whole: bool) -> None:
    model = net()
    for module in model:
        prune.l1_unstructured(module, "weight", 0.5)
    prune.random_structured(model[0], "weight", 0.4, dim=0)
    prune.random_unstructured(model[2], "bias", 0.5)
    expected = {f"{i}.{name}": getattr(m, name).detach() for i, m in enumerate(model) for name in ("weight", "bias")}
    found = read_checkpoint(save(model if whole else model.state_dict()))
    assert found.state_dict.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found.state_dict[key], tensor), key
    assert not found.state_dict["0.weight"].all()
    assert "the masks of pruning are multiplied into 4 weights" in found.notes


def test_a_name_that_only_looks_like_a_part_stays(save: Save) -> None:
    state = {"a.weight_g": torch.ones(2), "b.q_g": torch.ones(2), "b.q_v": torch.ones(2), "c.x_orig": torch.ones(1)}
    state |= {"d.weight": torch.ones(3), "d.weight_mask": torch.ones(3), "d.weight_orig": torch.ones(3)}
    assert read_checkpoint(save(state)).state_dict.keys() == state.keys()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def spectral(module: nn.Module) -> nn.Module:
    spectral_norm(module)
    return module


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (spectral, r"weight_orig is divided by its largest singular value \(spectral norm\).*remove_spectral_norm"),
        (parametrizations.spectral_norm, r"original is divided by its largest singular value \(spectral norm\)"),
        (lambda m: parametrize.register_parametrization(m, "weight", Doubled()), "is a part of a parametrized weight"),
    ],
)
def test_other_parametrizations_are_refused_by_name(
    save: Save, change: Callable[[nn.Module], nn.Module], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(save({"state_dict": change(nn.Linear(4, 4)).state_dict()}))


def test_parts_that_do_not_fit_are_refused(save: Save) -> None:
    for parts, told in (
        ({"weight_g": torch.ones(3, 1), "weight_v": torch.ones(2, 2)}, "which do not fit"),
        ({"weight_g": torch.ones(2, 1), "weight_v": torch.ones(2, 2).int()}, "which do not fit"),
        ({"weight_orig": torch.ones(3), "weight_mask": torch.ones(2)}, "expected one shape"),
    ):
        with pytest.raises(CheckpointError, match=told):
            read_checkpoint(save({f"a.{name}": tensor for name, tensor in parts.items()}))


def test_a_part_that_repeats_one_value_is_not_blown_up(save: Save) -> None:
    wide = torch.ones(1).expand(4000, 4000)
    for parts in ({"weight_g": torch.ones(4000, 1), "weight_v": wide}, {"weight_orig": wide, "weight_mask": wide}):
        with pytest.raises(UnsafeCheckpointError, match=r"a part of the weight a\.weight repeats its values"):
            read_checkpoint(save({f"a.{name}": tensor for name, tensor in parts.items()}))


def test_counters_of_a_profiler_are_ignored(save: Save) -> None:
    counters = {f"0.{name}": torch.zeros(1, dtype=torch.float64) for name in ("total_ops", "total_params")}
    found = read_checkpoint(save({"model": {**net().state_dict(), **counters}}))
    assert found.state_dict.keys() == net().state_dict().keys()
    assert "2 counters of a profiler (total_ops, total_params) are ignored" in found.notes
