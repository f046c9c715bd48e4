"""Corrected convolutions: means and spreads of channels come back, sums of shifts go, and chance is not taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.export.precision.folds import Added, Changes, Scaled, apply_changes
from deploykit.export.precision.folds.correct import MOST, WORTHWHILE, choose_corrections
from deploykit.export.precision.qdq import QuantizationResult, quantisable
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

SHAPE = (1, 3, 10, 10)
IMAGES = [np.random.default_rng(i).normal(0.5, size=SHAPE).astype(np.float32) for i in range(6)]
FITTED, OTHERS = IMAGES[:4], IMAGES[4:]
LAYERS = ("first", "second", "third")


def three_layers(seed: int = 0, *, factors: float = 1.0, shift: float = 0.0, biased: bool = True) -> ir.Model:
    """Three convolutions; those of the first two are wrong by a factor and a shift per channel of up to so much."""
    chance, wrong = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    arrays: dict[str, Array] = {}
    for name, shape in zip("uvw", ((6, 3, 3, 3), (6, 1, 3, 3), (4, 6, 1, 1)), strict=True):
        error = factors ** wrong.uniform(-1, 1, shape[0])
        of_bias = shift * wrong.normal(size=shape[0])
        last = name == "w"
        arrays[name] = chance.normal(size=shape) * (1 if last else error.reshape(-1, 1, 1, 1))
        arrays[f"{name}b"] = chance.normal(size=shape[0]) * biased + (0 if last else of_bias)
    nodes = [
        helper.make_node("Conv", ["x", "u", "ub"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v", "vb"] if biased else ["b", "v"], ["c"], name="second", group=6),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w", "wb"], ["y"], name="third"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.astype(np.float32).ravel()) for n, v in arrays.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def results(graph: ir.Model, images: list[Array] = OTHERS) -> list[Array]:
    with OnnxInTorchSession(graph) as session:
        return [session.run({"x": image})["y"] for image in images]


def error_between(exact: ir.Model, found: ir.Model) -> float:
    pairs = zip(results(exact), results(found), strict=True)
    return float(np.mean([np.abs(a - b).mean() / np.abs(a).mean() for a, b in pairs]))


def corrected(graph: ir.Model, changes: Changes) -> ir.Model:
    new = graph.clone()
    apply_changes(new, changes)
    return new


def becomes(wrong: ir.Model, layers: Sequence[str] = LAYERS) -> Callable[[ir.Model], QuantizationResult]:
    """A quantization that gives a graph the weights of another."""

    def quantize(graph: ir.Model) -> QuantizationResult:
        for name, value in wrong.graph.initializers.items():
            graph.graph.initializers[name].const_value = value.const_value
        return QuantizationResult(tuple(layers), (), (), 0)

    return quantize


def corrections(exact: ir.Model, wrong: ir.Model, images: list[Array] = FITTED) -> tuple[Changes, float]:
    changes, report = choose_corrections(
        exact,
        becomes(wrong),
        images,
        lambda changes: error_between(exact, corrected(wrong, changes)),
        error_between(exact, wrong),
    )
    assert report is not None
    assert report.layers == 2
    assert report.taken == bool(changes)
    return changes, report.after


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), biased=st.booleans())
def test_a_factor_and_a_shift_of_each_channel_are_taken_back(seed: int, biased: bool) -> None:
    exact = three_layers(seed, biased=biased)
    wrong = three_layers(seed, factors=0.9 * MOST, shift=1.0, biased=biased)
    changes, error = corrections(exact, wrong)
    assert set(changes) == {("first", 1), ("first", 2), ("second", 1), ("second", 2)}
    after = corrected(wrong, changes)
    assert error_between(exact, wrong) > 1e-2
    assert error_between(exact, after) < 1e-4
    assert error == pytest.approx(error_between(exact, after), abs=1e-6)


def test_the_last_layer_stays_and_so_do_layers_that_are_not_quantized() -> None:
    exact, wrong = three_layers(), three_layers(factors=1.2)
    names = [str(node.name) for node in quantisable(exact.graph)]
    assert tuple(names) == LAYERS
    for layers, expected in ((LAYERS, {"first", "second"}), (("second", "third"), {"second"})):
        changes, _ = choose_corrections(exact, becomes(wrong, layers), FITTED, lambda changes: 0.0, 1.0)
        assert {layer for layer, _ in changes} == expected
    assert choose_corrections(exact, becomes(wrong, ("third",)), FITTED, lambda changes: 0.0, 1.0) == ({}, None)


def test_a_gain_that_may_be_chance_is_not_taken() -> None:
    exact, wrong = three_layers(), three_layers(factors=1.1)
    for error, taken in ((WORTHWHILE + 0.01, False), (WORTHWHILE - 0.01, True), (np.inf, False), (np.nan, False)):
        changes, report = choose_corrections(exact, becomes(wrong), FITTED, lambda changes, e=error: e, 1.0)
        assert report is not None
        assert (bool(changes), report.taken) == (taken, taken)
        assert report.line().startswith("means and spreads of the channels of 2 layers" if taken else "nothing: ")


def test_one_image_is_too_few() -> None:
    exact, wrong = three_layers(), three_layers(factors=1.2)
    assert choose_corrections(exact, becomes(wrong), FITTED[:1], lambda changes: 0.0, 1.0) == ({}, None)


def test_factors_are_bounded_and_a_dead_channel_has_none() -> None:
    exact, wrong = three_layers(), three_layers(factors=3.0)
    weight = wrong.graph.initializers["u"]
    assert weight.const_value is not None
    numbers = weight.const_value.numpy().copy()
    numbers[2] = 0
    weight.const_value = ir.tensor(numbers, name="u")
    changes, _ = choose_corrections(exact, becomes(wrong), FITTED, lambda changes: 0.0, 1.0)
    (scaled,) = changes["first", 1]
    assert isinstance(scaled, Scaled)
    assert scaled.factors.max() <= MOST * 1.0001
    assert scaled.factors.min() >= 0.9999 / MOST
    assert scaled.factors[2] == 1.0
    _, added = changes["first", 2]
    assert isinstance(added, Added)
    assert np.isfinite(added.values).all()
