"""A network inside of another module is found below its prefix; what is beside it is named, and never guessed away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, WeightsMismatchError
from deploykit.models import timm_models
from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from tests.narrow import few_layers, write_checkpoint
from tests.narrow_dense import narrow_dense

Save = Callable[[Any], Path]


@pytest.fixture(scope="module")
def model() -> ReferenceModel:
    return narrow_dense("resnet20-cifar10")


def under(prefix: str, model: ReferenceModel) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in model.module.state_dict().items()}


def same(found: ReferenceModel, model: ReferenceModel) -> bool:
    mine, own = found.module.state_dict(), model.module.state_dict()
    return mine.keys() == own.keys() and all(torch.equal(mine[key], own[key]) for key in own)


PREFIXES = ["model.", "net.", "backbone.", "encoder.", "timm_model.", "student.", "model.net.backbone.", "classifier."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_removed_with_a_note(save: Save, model: ReferenceModel, prefix: str) -> None:
    found = load_model(save({"state_dict": under(prefix, model), "hyper_parameters": {"lr": 0.1}}))
    assert same(found, model)
    assert f"the prefix {prefix!r} of its names is removed" in found.notes


def test_wrappers_in_any_order(save: Save, model: ReferenceModel) -> None:
    found = load_model(save({"state_dict": under("module.model._orig_mod.", model)}))
    assert same(found, model)
    assert "DataParallel prefix 'module.' removed" in found.notes


def test_wrappers_of_parts_are_removed(save: Save, model: ReferenceModel) -> None:
    state = {name.replace("layer1.", "layer1._orig_mod."): t for name, t in model.module.state_dict().items()}
    found = load_model(save({name.replace("layer2.", "_fsdp_wrapped_module.layer2."): t for name, t in state.items()}))
    assert same(found, model)
    assert any(note.startswith("_orig_mod removed from ") for note in found.notes)


def test_what_training_has_beside_it_is_left_out_and_named(save: Save, model: ReferenceModel) -> None:
    extra = {"criterion.weight": torch.ones(10), "val_acc.correct": torch.tensor(3), "train_loss.total": torch.ones(1)}
    found = load_model(save({"state_dict": under("model.", model) | extra}))
    assert same(found, model)
    assert "3 tensors of its training are left out (criterion.weight, val_acc.correct, train_loss.total)" in found.notes


@pytest.mark.parametrize("extra", ["head.weight", "norm.mean", "temperature"])
def test_other_tensors_beside_it_are_refused_with_the_way_to_take_it(
    save: Save, model: ReferenceModel, extra: str
) -> None:
    path = save({"state_dict": under("model.backbone.", model) | {f"model.{extra}": torch.ones(3)}})
    told = rf"names begin with model\.backbone\. are those of a network .* 1 others are beside them \(model\.{extra}\)"
    with pytest.raises(CheckpointError, match=rf"{told}.* --entry state_dict\.model\.backbone takes the former alone"):
        load_model(path)
    assert same(load_model(path, loading=LoadOptions(entry="state_dict.model.backbone")), model)


def test_a_part_that_is_nearly_a_known_network_is_not_taken_for_damage(save: Save, model: ReferenceModel) -> None:
    state = {name: t for name, t in under("encoder.", model).items() if not name.startswith("encoder.linear.")}
    with pytest.raises(CheckpointError, match="or nearly, and 1 others are beside them") as caught:
        load_model(save(state | {"decoder.conv.weight": torch.ones(3)}))
    assert "damaged" not in str(caught.value)


def test_a_network_and_its_average_under_two_prefixes(save: Save, model: ReferenceModel) -> None:
    raw = {name: torch.zeros_like(tensor) for name, tensor in under("model.", model).items()}
    for prefix in ("model_ema.", "ema_model.module."):
        path = save({"state_dict": raw | under(prefix, model) | {"steps": torch.tensor(3)}})
        found = load_model(path)
        assert same(found, model)
        assert any(note.endswith("--entry state_dict.model takes the raw ones") for note in found.notes)
        assert (
            not load_model(path, loading=LoadOptions(entry="state_dict.model"))
            .module.state_dict()["linear.weight"]
            .any()
        )


def test_a_network_that_does_not_fit_says_so_below_its_prefix(save: Save, model: ReferenceModel) -> None:
    state = under("model.", model)
    del state["model.layer1.0.bn2.bias"]
    with pytest.raises(WeightsMismatchError, match=r"lacks the tensor layer1\.0\.bn2\.bias"):
        load_model(save(state))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.detector = inner


def test_a_pickled_wrapper_has_the_facts_of_what_is_inside(save: Save, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "plain.pt", few_layers())
    graph = torch.load(path, weights_only=False)["model"]
    found, plain = load_model(save(Wrapped(graph))), load_model(path)
    assert same(found, plain)
    assert (found.name, found.spec.classes, found.stride) == (plain.name, ("cat", "dog"), 16)


def test_a_network_of_timm_is_found_below_its_prefix(save: Save, model: ReferenceModel) -> None:
    """``_inside`` is what a file of weights goes through before timm's network is given them; it needs no timm."""
    own = model.module.state_dict()
    for prefix in ("", "model.", "module.net.backbone."):
        found = timm_models._inside(read_checkpoint(save({"state_dict": under(prefix, model)})), model.module)
        assert found.state_dict.keys() == own.keys()
    beside = read_checkpoint(save({"state_dict": under("backbone.", model) | {"head.weight": torch.ones(3)}}))
    with pytest.raises(CheckpointError, match="1 others are beside them"):
        timm_models._inside(beside, model.module)
