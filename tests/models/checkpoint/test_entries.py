"""Which entry of a checkpoint is taken: an average before the raw weights, and no guess where nothing tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from deploykit.errors import CheckpointError, UnsafeCheckpointError, UsageError
from deploykit.models.checkpoint.reader import read_checkpoint

Save = Callable[[Any], Path]


def weights(value: float, **others: Any) -> dict[str, Any]:
    """A state dict whose weights are all ``value``."""
    return {"conv.weight": torch.full((2, 2), value), "conv.bias": torch.full((2,), value), **others}


RAW, MEAN = weights(1.0), weights(2.0)


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("state_dict", "state_dict_ema"),  # timm
        ("model", "model_ema"),  # DeiT, ConvNeXt
        ("model", "ema"),
        ("state_dict", "ema_state_dict"),
        ("params", "params_ema"),  # BasicSR
        ("student", "teacher"),  # DINO
        ("net", "swa_model"),
    ],
)
def test_the_average_is_taken_and_said(save: Save, raw: str, average: str) -> None:
    path = save({"epoch": 3, raw: RAW, average: MEAN, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}})
    found = read_checkpoint(path)
    assert found.entry == average
    assert found.state_dict["conv.bias"].tolist() == [2.0, 2.0]
    assert f"the average of the weights ({average}) is taken; --entry {raw} takes the raw ones" in found.notes
    assert {str(entry) for entry in found.entries} == {f"{raw} (2 tensors)", f"{average} (2 tensors, taken)"}
    found = read_checkpoint(path, entry=raw)
    assert found.entry == raw
    assert found.state_dict["conv.bias"].tolist() == [1.0, 1.0]
    assert f"the weights of {raw} are taken (--entry)" in found.notes


def test_an_average_below_its_entry_and_with_a_wrapper(save: Save) -> None:
    inner = {f"module.{name}": tensor for name, tensor in MEAN.items()}
    found = read_checkpoint(save({"model": RAW, "ema": {"module": inner, "updates": 3}}))
    assert (found.entry, sorted(found.state_dict)) == ("ema.module", ["conv.bias", "conv.weight"])
    assert found.state_dict["conv.bias"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("whole", [True, False], ids=["model", "state dict"])
def test_torchs_averaged_model(save: Save, whole: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    average = AveragedModel(net)
    for value in (1.0, 3.0):
        nn.init.constant_(net[0].weight, value)
        average.update_parameters(net)
    content = average if whole else average.state_dict()
    for saved in (content, {"model_state_dict": net.state_dict(), "swa": content}):
        found = read_checkpoint(save(saved))
        assert list(found.state_dict) == ["0.weight", "0.bias"]
        assert found.state_dict["0.weight"].unique().tolist() == [2.0]


def test_an_average_of_no_model_is_not_one(save: Save) -> None:
    net = nn.Linear(2, 2)
    path = save({"model": net.state_dict(), "swa_model": AveragedModel(net).state_dict()})
    found = read_checkpoint(path)
    assert found.entry == "model"
    assert any("has averaged no model yet (n_averaged is 0): model is taken" in note for note in found.notes)
    assert read_checkpoint(path, entry="swa_model").entry == "swa_model"


def test_an_average_of_some_tensors_alone_is_not_taken(save: Save) -> None:
    path = save({"model": weights(1.0, **{"bn.running_mean": torch.ones(2)}), "model_ema": MEAN})
    found = read_checkpoint(path)
    assert found.entry == "model"
    (note,) = (note for note in found.notes if "average" in note)
    assert note.startswith("the average of the weights (model_ema) lacks 1 of the 3 tensors of model (bn.running_mean)")


def test_mmengine_saves_the_average_as_the_state_dict(save: Save) -> None:
    """Its hook swaps the two when it saves (EMAHook.before_save_checkpoint), so the names say the contrary."""
    raw = {"steps": torch.tensor(10), **{f"module.{name}": tensor for name, tensor in RAW.items()}}
    path = save({"meta": {"mmengine_version": "0.10.4"}, "state_dict": MEAN, "ema_state_dict": raw})
    found = read_checkpoint(path)
    assert (found.entry, found.state_dict["conv.bias"].tolist()) == ("state_dict", [2.0, 2.0])
    assert any("where MMEngine saves it" in n and "--entry ema_state_dict takes the raw" in n for n in found.notes)
    found = read_checkpoint(path, entry="ema_state_dict")
    assert (sorted(found.state_dict), found.state_dict["conv.bias"].tolist()) == (
        ["conv.bias", "conv.weight"],
        [1.0, 1.0],
    )


NAMES = ["generator", "model_state", "model_state_dict", "module", "net", "network", "weights", "my_cnn"]


@pytest.mark.parametrize("name", NAMES)
def test_other_names_of_the_entry_are_read_and_said(save: Save, name: str) -> None:
    found = read_checkpoint(save({"epoch": 3, "loss": torch.tensor(0.5), name: RAW}))
    assert (found.entry, found.state_dict["conv.bias"].tolist()) == (name, [1.0, 1.0])
    assert f"the weights are those of the entry {name}" in found.notes


def test_a_network_beside_the_one_that_is_meant_is_named(save: Save) -> None:
    found = read_checkpoint(save({"generator": RAW, "discriminator": MEAN, "checkpoint": {"optimizer": {}}}))
    assert found.entry == "generator"
    assert "weights are also in discriminator (2 tensors): --entry NAME takes others" in found.notes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"encoder": RAW, "decoder": MEAN}, r"2 entries, encoder \(2 tensors\), decoder \(2 tensors\), and nothing"),
        ({"model": RAW, "net": MEAN}, "nothing tells which are meant: name one with --entry"),
        ({"ema": RAW, "model_ema": MEAN, "model": RAW}, "3 entries"),
        ({"student": RAW, "teacher": {"other.weight": torch.ones(3)}}, "they are of two networks"),
        ({"model": RAW, "ema": {"conv.weight": torch.ones(5), "conv.bias": torch.ones(5)}}, "they are of two networks"),
    ],
)
def test_what_is_ambiguous_is_refused_and_not_guessed(save: Save, content: dict[str, Any], told: str) -> None:
    path = save(content)
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(path)
    name = next(iter(content))
    assert read_checkpoint(path, entry=name).entry == name


def test_the_same_weights_under_two_names_are_no_choice(save: Save) -> None:
    net = nn.Linear(2, 2)
    found = read_checkpoint(save({"state_dict": net.state_dict(), "model": net}))
    assert (found.entry, len(found.modules)) == ("model", 1)


def test_an_entry_that_is_not_there_is_refused_with_the_list(save: Save) -> None:
    path = save({"a": {"model": RAW}, "ema": MEAN})
    with pytest.raises(UsageError, match=r"no weights are in the entry 'emma' \(--entry\); they are in a\.model \(2 "):
        read_checkpoint(path, entry="emma")
    assert read_checkpoint(path, entry="a.model").entry == "a.model"
    assert read_checkpoint(path, entry="a").entry == "a.model"


def test_an_entry_may_be_a_part_of_the_names(save: Save) -> None:
    parts = {f"{part}.{k}": v for part, state in (("model", RAW), ("ema_model", MEAN)) for k, v in state.items()}
    found = read_checkpoint(save({"state_dict": parts}), entry="state_dict.ema_model")
    assert found.state_dict["conv.bias"].tolist() == [2.0, 2.0]


def test_dictionaries_that_share_others_are_searched_under_a_limit(save: Save) -> None:
    level: dict[str, Any] = {str(i): i for i in range(700)}
    for _ in range(3):
        level = {str(i): level for i in range(700)}
    with pytest.raises(UnsafeCheckpointError, match="the limit of where weights are sought"):
        read_checkpoint(save({"w": level, "model": RAW}))
    path = save({f"fold{i}": RAW for i in range(40)})
    with pytest.raises(CheckpointError, match=r"weights are in 33 entries, .*: name one with --entry"):
        read_checkpoint(path)
    assert read_checkpoint(path, entry="fold39").entry == "fold39"
