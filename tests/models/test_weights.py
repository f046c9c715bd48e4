"""Weights that do not fit are named with how many are like them, and fused batch norms are told from other changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import WeightsMismatchError
from deploykit.models.registry import load_model
from tests.narrow_dense import narrow_dense

Save = Callable[[Any], Path]


def refused(path: Path) -> str:
    with pytest.raises(WeightsMismatchError) as caught:
        load_model(path)
    assert "damaged" not in str(caught.value)
    return str(caught.value)


def test_an_extra_buffer_and_lost_tensors_are_counted(save: Save) -> None:
    state = narrow_dense("resnet20-cifar10").module.state_dict()
    said = refused(save({**state, "mean": torch.ones(3), "std": torch.ones(3)}))
    assert "holds the tensor mean, which resnet-basic-2-2-2 does not have (and 1 more): it is of a changed" in said
    lost = {key: value for key, value in state.items() if key not in ("bn1.running_var", "layer2.0.conv2.weight")}
    assert "lacks the tensor bn1.running_var [16] (and 1 more): it is of a changed" in refused(save(lost))
    assert "(and 1 more) and holds mean instead" in refused(save({**lost, "mean": torch.ones(3)}))


def test_fused_batch_norms_are_named(save: Save) -> None:
    model = narrow_dense("resnet20-cifar10")
    state = model.module.state_dict()
    fused = {k: v for k, v in state.items() if not (k.startswith("layer") and ".bn2" in k)}
    fused |= {k.replace(".weight", ".bias"): v[:, 0, 0, 0] for k, v in state.items() if "layer" in k and ".conv2" in k}
    said = refused(save(fused))
    assert said.endswith("its batch norms are fused into its convolutions: take a file of before they were fused")
