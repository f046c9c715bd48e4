"""Smoothing: what is scaled, that the network stays the same to the last bit, and that int8 loses less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import FoldError
from deploykit.export.precision.folds import Candidate, Changes, Scaled, apply_changes
from deploykit.export.precision.folds.channels import follow_channels
from deploykit.export.precision.folds.choose import check_same, choose_folds
from deploykit.export.precision.folds.smooth import Smooth, changes_for
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array
from tests.attention_graph import WIDTH, X, transformer


def outputs(model: ir.Model) -> dict[str, Array]:
    return OnnxInTorchSession(model).run({"x": X})


def folded(model: ir.Model, alpha: float = 0.5) -> tuple[ir.Model, Changes]:
    changes = changes_for(follow_channels(model, [X]), alpha)
    new = model.clone()
    apply_changes(new, changes)
    return new, changes


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.25, 0.5, 1.0]))
def test_the_network_stays_the_same_to_the_last_bit(
    seed: int, padded: bool, added: bool, shown: bool, alpha: float
) -> None:
    model = transformer(seed=seed, padded=padded, added=added, shown=shown)
    new, changes = folded(model, alpha)
    expected, found = outputs(model), outputs(new)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    norm, values = ("norm", 1) in changes, ("last", 1) in changes
    assert norm != added  # what is also added to something else must keep its size
    assert not (values and (added or shown))


def test_outliers_move_into_the_weights_behind_them() -> None:
    model = transformer()
    new, changes = folded(model, 1.0)
    assert set(changes) == {("norm", 1), ("norm", 2), ("qkv", 1), ("qkv_bias", 1), ("last", 1)}
    tensors: dict[str, Array] = {}

    def see(name: str, value: torch.Tensor) -> None:
        tensors[f"{now} {name}"] = value.abs().reshape(-1, value.shape[-1]).amax(0).numpy()

    for now, one in (("before", model), ("after", new)):  # noqa: B007  (see() reads it)
        OnnxInTorchSession(one, observe=see).run({"x": X})
    for tensor, least in (("n", 10), ("j", 3)):
        before, after = tensors[f"before {tensor}"], tensors[f"after {tensor}"]
        assert before.max() / before.min() > least
        assert after.max() / after.min() < 2.01  # factors are powers of two
    assert [axis for axis, _ in changes["qkv", 1]] == [1, 0]  # of the values it makes, and of the tokens it takes


def test_only_the_values_of_an_attention_are_scaled_and_not_queries_and_keys() -> None:
    _, changes = folded(transformer())
    (made, _) = changes["qkv", 1]
    assert (made[1][: 2 * WIDTH] == 1).all()
    assert (made[1][2 * WIDTH :] != 1).any()


class Halved:
    """A fold that breaks the network."""

    name = "halved"

    def applies(self, graph: ir.Model) -> bool:
        return True

    def channels(self, graph: ir.Model) -> tuple[str, ...]:
        return ()

    def candidates(self, graph: ir.Model, images: Sequence[Array], peaks: Mapping[str, Array]) -> list[Candidate]:
        return [Candidate("all", 1, {("last", 1): (Scaled(0, np.full(WIDTH, 0.5, np.float32)),)})]


def test_a_fold_that_changes_the_network_is_refused() -> None:
    model = transformer()
    exact = {name: torch.from_numpy(value) for name, value in outputs(model).items()}

    def error_with(changes: Changes, scaled: object) -> float:
        new = model.clone()
        apply_changes(new, changes)
        check_same("a fold", [exact], [{name: torch.from_numpy(value) for name, value in outputs(new).items()}])
        return 1.0

    changes, report = choose_folds(model, [X], error_with, folds=[Smooth()])
    assert not changes  # verified, and no better
    assert report is not None
    assert report.taken == ()
    with pytest.raises(FoldError, match=r"moved the output 'y' by up to .*, 0.5 of its largest value"):
        choose_folds(model, [X], error_with, folds=[Halved()])


def test_a_candidate_is_taken_where_the_error_falls() -> None:
    errors = iter([1.0, 0.9, 0.7])
    changes, report = choose_folds(transformer(), [X], lambda changes, scaled: next(errors), folds=[Smooth()])
    assert report is not None
    assert report.taken == ("smooth 0.5",)
    assert report.errors == {"none": 1.0, "smooth 0.25": 0.9, "smooth 0.5": 0.7}
    assert changes
