"""Class names in every form that projects write; what is off by one or does not fit is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.registry import load_model
from tests.narrow_dense import narrow_dense

Save = Callable[[Any], Path]
THREE = ("cat", "dog", "fox")


@pytest.mark.parametrize(
    "beside",
    [
        {"names": ["cat", "dog", "fox"]},
        {"names": {1: "dog", 0: "cat", 2: "fox"}},
        {"names": {"2": "fox", "1": "dog", "0": "cat"}},
        {"classes": ("cat", "dog", "fox"), "names": None},
        {"classes": 3, "class_to_idx": {"cat": 0, "fox": 2, "dog": 1}},
        {"idx_to_class": {0: "cat", 1: "dog", 2: "fox"}},
        {"hyper_parameters": {"class_names": ["cat", "dog", "fox"]}},
        {"meta": {"CLASSES": ("cat", "dog", "fox")}},  # mmcv
        {"meta": {"dataset_meta": {"classes": ["cat", "dog", "fox"]}}},  # MMEngine
        {"config": {"id2label": {"0": "cat", "1": "dog", "2": "fox"}}},  # Hugging Face
    ],
)
def test_every_form_gives_the_names_in_order(save: Save, beside: dict[str, Any]) -> None:
    found = read_checkpoint(save({"model": {"w": torch.ones(3)}, **beside}))
    assert found.names == THREE
    assert not found.notes


@pytest.mark.parametrize("names", [{1: "cat", 2: "dog", 3: "fox"}, {"1": "cat", "2": "dog", "3": "fox"}])
def test_names_that_begin_at_one_are_said(save: Save, names: dict[Any, str]) -> None:
    found = read_checkpoint(save({"model": {"w": torch.ones(3)}, "names": names}))
    assert found.names == THREE
    assert "its class names (names) begin at number 1: that name is taken for the first class" in found.notes


def test_names_with_gaps_are_not_used(save: Save) -> None:
    for names in ({1: "cat", 3: "dog"}, {5: "cat", 6: "dog"}, {"cat": 0, "dog": 90}):
        found = read_checkpoint(save({"model": {"w": torch.ones(3)}, "names": names}))
        assert found.names is None
        assert any("with gaps: not used" in note for note in found.notes)


@pytest.mark.parametrize(
    "names",
    [[], {}, "cat", 3, [["cat"]], {"a": "b"}, {0: "cat", "0": "dog"}, {-1: "cat"}, {"cat": 0, "dog": 0}, [None]],
)
def test_what_is_no_list_of_names_is_none(save: Save, names: Any) -> None:
    assert read_checkpoint(save({"model": {"w": torch.ones(3)}, "names": names})).names is None


def test_a_pickled_models_own_names_come_first(save: Save) -> None:
    net = nn.Linear(2, 2)
    net.names = {"0": "sky", "1": "sea"}  # type: ignore[assignment]
    assert read_checkpoint(save({"model": net, "names": ["a", "b"]})).names == ("sky", "sea")


def test_names_that_do_not_fit_the_head_are_said(save: Save) -> None:
    state = narrow_dense("resnet20-cifar10").module.state_dict()
    ten = {f"kind {i}": i for i in range(10)}
    assert load_model(save({"model": state, "class_to_idx": ten})).spec.classes == tuple(ten)
    found = load_model(save({"model": state, "class_to_idx": {"cat": 0, "dog": 1}}))
    assert len(found.spec.classes) == 10
    assert "it names 2 classes and has 10: its names are not used" in found.notes
