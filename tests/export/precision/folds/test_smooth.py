"""Smoothing: what is scaled, that the network stays the same to the last bit, and that int8 loses less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.errors import FoldError
from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.precision.folds import Candidate, Changes, Scaled, apply_changes
from deploykit.export.precision.folds.channels import follow_channels
from deploykit.export.precision.folds.choose import check_same, choose_folds
from deploykit.export.precision.folds.smooth import Smooth, changes_for
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import vit
from deploykit.models.families.vit import VisionTransformer, VitConfig
from deploykit.runtime.arrays import Array
from tests.outliers import Outliers, add_outliers

X = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
WIDTH, HEADS, TOKENS = 8, 2, 16


def transformer(*, seed: int = 0, padded: bool = False, added: bool = False, shown: bool = False) -> ir.Model:
    """Pixels as tokens: a norm with outliers, attention of one layer for q, k and v, and a projection.

    ``padded``: zeros are added to the normalised tokens, and tokens taken away after the projection; ``added``: the
    normalised tokens are also added to what comes out; ``shown``: the attention's output is one of the graph's.
    """
    chance = np.random.default_rng(seed)
    gain = chance.uniform(0.5, 2, WIDTH)
    gain[chance.integers(WIDTH)] *= 30
    weights = {
        "embed": chance.normal(size=(WIDTH, 3, 1, 1)),
        "gain": gain,
        "shift": chance.normal(size=WIDTH),
        "qkv": chance.normal(size=(WIDTH, 3 * WIDTH)) * 0.2,
        "qkv_bias": chance.normal(size=3 * WIDTH) * chance.choice([1.0, 20.0], 3 * WIDTH),
        "last": chance.normal(size=(WIDTH, 5)),
    }
    whole = {
        "tokens": [1, WIDTH, TOKENS], "heads": [1, -1, 3, HEADS, WIDTH // HEADS], "joined": [1, -1, WIDTH],
        "first": [0], "second": [1], "third": [2], "pads": [0, 0, 0, 0, 3, 0], "start": [0], "stop": [TOKENS],
        "axis": [1],
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "embed"], ["a"], name="embed"),
        helper.make_node("Reshape", ["a", "tokens"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["c", "gain", "shift"], ["n"], name="norm", axis=-1),
        *([helper.make_node("Pad", ["n", "pads"], ["p"])] if padded else []),
        helper.make_node("MatMul", ["p" if padded else "n", "qkv"], ["d"], name="qkv"),
        helper.make_node("Add", ["d", "qkv_bias"], ["e"], name="qkv_bias"),
        helper.make_node("Reshape", ["e", "heads"], ["f"]),
        helper.make_node("Transpose", ["f"], ["g"], perm=[2, 0, 3, 1, 4]),
        *[helper.make_node("Gather", ["g", f"{at}"], [f"{name}0"], axis=0)
          for at, name in (("first", "q"), ("second", "k"), ("third", "v"))],
        *[helper.make_node("Squeeze", [f"{name}0", "first"], [name]) for name in "qkv"],
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["logits"], name="logits"),
        helper.make_node("Softmax", ["logits"], ["s"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["s", "v"], ["o"], name="values"),
        helper.make_node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "joined"], ["j"]),
        *([helper.make_node("Slice", ["j", "start", "stop", "axis"], ["j2"])] if padded else []),
        *([helper.make_node("Add", ["j2" if padded else "j", "n"], ["j3"])] if added else []),
        helper.make_node("MatMul", ["j3" if added else "j2" if padded else "j", "last"], ["y"], name="last"),
    ]  # fmt: skip
    outputs = {"y": (1, TOKENS, 5)} | ({"j": (1, TOKENS + 3 * padded, WIDTH)} if shown else {})
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.astype(np.float32).ravel()) for n, v in weights.items()]
        + [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in whole.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def outputs(model: ir.Model) -> dict[str, Array]:
    return OnnxInTorchSession(model).run({"x": X})


def folded(model: ir.Model, alpha: float = 0.5) -> tuple[ir.Model, Changes]:
    changes = changes_for(follow_channels(model, [X]), alpha)
    new = model.clone()
    apply_changes(new, changes)
    return new, changes


@settings(max_examples=25, deadline=None)
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
    assert (made.factors[: 2 * WIDTH] == 1).all()
    assert (made.factors[2 * WIDTH :] != 1).any()


class Halved:
    """A fold that breaks the network."""

    name = "halved"

    def applies(self, graph: ir.Model) -> bool:
        return True

    def candidates(self, graph: ir.Model, images: Sequence[Array]) -> list[Candidate]:
        return [Candidate("all", 1, {("last", 1): (Scaled(0, np.full(WIDTH, 0.5, np.float32)),)})]


def test_a_fold_that_changes_the_network_is_refused() -> None:
    model = transformer()
    exact = {name: torch.from_numpy(value) for name, value in outputs(model).items()}

    def error_with(changes: Changes) -> float:
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
    changes, report = choose_folds(transformer(), [X], lambda changes: next(errors), folds=[Smooth()])
    assert report is not None
    assert report.taken == ("smooth 0.5",)
    assert report.errors == {"none": 1.0, "smooth 0.25": 0.9, "smooth 0.5": 0.7}
    assert changes


def test_int8_of_a_vision_transformer_with_outliers_loses_less(tmp_path: Path) -> None:
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), noise)
    torch.manual_seed(0)
    config = VitConfig(64, 2, 2, 128, patch=8, grid=4, num_classes=20)
    network = VisionTransformer(config).eval()
    randomise(network)
    model = vit.FAMILY.reference(config, add_outliers(network, Outliers(massive=100.0)))
    asked = PrecisionOptions("int8", calibration=Calibration(tmp_path, size=2), nodes_to_exclude="none", cache=False)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=32, precision=asked)
    assert report.precision is not None
    quantised = report.precision.quantised
    assert quantised is not None
    assert quantised.folds is not None
    (taken,) = quantised.folds.taken
    assert taken.startswith("smooth")
    assert quantised.folds.errors[taken] < 0.8 * quantised.folds.errors["none"]
    assert dict(quantised.lines())["folded"].startswith(f"{taken} (verified in fp32)")
