"""Equalised channels: the same outputs to the last bit, ranges of one size, and nothing scaled that must stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.export.precision.folds import Candidate, Scaled, apply_changes
from deploykit.export.precision.folds.channel_groups import channel_groups
from deploykit.export.precision.folds.equalise import LEAST, Equalise
from deploykit.export.precision.qdq import activations_of, quantisable, quantize
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array

SHAPE = (1, 3, 12, 12)
IMAGES = [np.random.default_rng(i).normal(size=SHAPE).astype(np.float32) for i in range(2)]
Node = tuple[str, Sequence[str], str, Mapping[str, Any]]


def network(
    *nodes: Node, weights: Mapping[str, tuple[int, ...]], seed: int = 0, outputs: Sequence[str] = "y"
) -> ir.Model:
    """A graph with random weights, of which those of one output channel may be 256 times those of another."""
    chance = np.random.default_rng(seed)
    arrays = []
    for name, shape in weights.items():
        spread = np.exp2(chance.uniform(-4, 4, shape[0])).reshape(-1, *[1] * (len(shape) - 1))
        numbers = chance.normal(size=shape) * spread
        arrays.append(helper.make_tensor(name, TensorProto.FLOAT, shape, numbers.astype(np.float32).ravel()))
    made = helper.make_graph(
        [
            helper.make_node(kind, given, [gives], name=f"make {gives}", **attributes)
            for kind, given, gives, attributes in nodes
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        arrays,
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def separable(activation: str = "Relu", seed: int = 0, multiplier: int = 1, **attributes: Any) -> ir.Model:
    """An inverted bottleneck: wide, depthwise, narrow."""
    return network(
        ("Conv", ["x", "w", "wb"], "a", {}),
        (activation, ["a"], "b", attributes),
        ("Conv", ["b", "d"], "c", {"group": 8, "pads": [1] * 4}),
        (activation, ["c"], "e", attributes),
        ("Conv", ["e", "p"], "y", {}),
        weights={"w": (8, 3, 1, 1), "wb": (8,), "d": (8 * multiplier, 1, 3, 3), "p": (4, 8 * multiplier, 1, 1)},
        seed=seed,
    )  # fmt: skip


def results(graph: ir.Model) -> list[Array]:
    with OnnxInTorchSession(graph) as session:
        return [session.run({"x": image})["y"] for image in IMAGES]


def values_on(graph: ir.Model, image: Array) -> dict[str, Array]:
    found: dict[str, Array] = {}
    with OnnxInTorchSession(graph, observe=lambda name, value: found.update({name: value.numpy()})) as session:
        session.run({"x": image})
    return found


def candidates(graph: ir.Model) -> list[Candidate]:
    several = [values_on(graph, image) for image in IMAGES]
    names = Equalise().channels(graph)
    peaks = {n: np.max([np.abs(values[n]).max(axis=(0, 2, 3)) for values in several], axis=0) for n in names}
    return list(Equalise().candidates(graph, IMAGES, peaks))


def folded(graph: ir.Model) -> tuple[ir.Model, int]:
    candidate = candidates(graph)[-1]
    new = graph.clone()
    apply_changes(new, candidate.changes)
    return new, candidate.sites


def tensors_of(graph: ir.Model) -> dict[str, Array]:
    """What the layers are given, on the first image."""
    found: dict[str, Array] = {}
    given = {str(node.name): activations_of(node, outputs=False)[0] for node in quantisable(graph.graph)}
    with OnnxInTorchSession(graph, observe=lambda name, value: found.update({name: value.numpy()})) as session:
        session.run({"x": IMAGES[0]})
    return {layer: IMAGES[0] if name == "x" else found[name] for layer, name in given.items()}


def unevenness(value: Array) -> float:
    """How much larger the largest range of a channel is than the smallest one that is not nothing."""
    tops = np.abs(value).max(axis=(0, 2, 3))
    return float(tops.max() / tops[tops > LEAST * tops.max()].min())


def int8_error(graph: ir.Model, exact: Sequence[Array]) -> float:
    ranges = {"x": 4.0}
    with OnnxInTorchSession(
        graph, observe=lambda n, v: ranges.update({n: max(ranges.get(n, 0.0), float(v.abs().max()))})
    ) as session:
        for image in IMAGES:
            session.run({"x": image})
    quantized = graph.clone()
    quantize(quantized, ranges)
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(exact, results(quantized), strict=True)]))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    activation=st.sampled_from(["Relu", "LeakyRelu", "Identity", "Sigmoid", "HardSwish", "Clip"]),
    multiplier=st.sampled_from([1, 2]),
)
def test_outputs_stay_the_same_to_the_last_bit(seed: int, activation: str, multiplier: int) -> None:
    graph = separable(activation, seed, multiplier)
    exact = results(graph)
    new, _ = folded(graph)
    assert all(np.array_equal(a, b) for a, b in zip(exact, results(new), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(exact, results(graph), strict=True)), "the graph itself stays"


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), activation=st.sampled_from(["Relu", "HardSwish", "csp"]))
def test_a_candidate_says_of_every_tensor_what_it_will_be(seed: int, activation: str) -> None:
    """So ranges with it are known, to the last bit, before a network with it has been run."""
    csp = activation == "csp"
    graph = network(*CSP, weights=CSP_WEIGHTS, seed=seed) if csp else separable(activation, seed)
    for candidate in candidates(graph):
        new = graph.clone()
        apply_changes(new, candidate.changes)
        before, after = values_on(graph, IMAGES[0]), values_on(new, IMAGES[0])
        assert candidate.scaled is not None
        for name, value in after.items():
            source, by = candidate.scaled.get(name, (name, np.ones(1, np.float32)))
            np.testing.assert_array_equal(value, before[source] * by.reshape(1, -1, 1, 1))
        assert any(not np.array_equal(after[name], before[name]) for name in before) or candidate.nodes


@pytest.mark.parametrize(("activation", "added"), [("Relu", 0), ("LeakyRelu", 0), ("HardSwish", 1), ("Clip", 1)])
def test_a_depthwise_layer_is_given_channels_of_one_range(activation: str, added: int) -> None:
    graph = separable(activation)
    assert unevenness(tensors_of(graph)["make c"]) > 8
    new, sites = folded(graph)
    assert unevenness(tensors_of(new)["make c"]) < 2.1  # factors are powers of two
    assert (len(new.graph) - len(graph.graph), sites) == (added, 1 if added else 2)
    assert [node.op_type for node in new.graph].count("Mul") == added


@pytest.mark.parametrize("activation", ["Relu", "HardSwish"])
def test_int8_loses_less_where_small_channels_matter(activation: str) -> None:
    graph = separable(activation)
    tops = np.abs(tensors_of(graph)["make c"]).max(axis=(0, 2, 3))
    apply_changes(graph, {("make c", 1): (Scaled(0, (1 / np.maximum(tops, 1e-3)).astype(np.float32)),)})
    exact = results(graph)
    assert int8_error(folded(graph)[0], exact) < 0.7 * int8_error(graph, exact)


CSP: tuple[Node, ...] = (
    ("Conv", ["x", "w", "wb"], "a", {}),
    ("Relu", ["a"], "b", {}),
    ("Conv", ["b", "v", "vb"], "c", {"pads": [1] * 4}),
    ("LeakyRelu", ["c"], "d", {"alpha": 0.1}),
    ("MaxPool", ["b"], "e", {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ("Concat", ["d", "e", "b"], "f", {"axis": 1}),
    ("Conv", ["f", "u"], "g", {}),
    ("Conv", ["b", "s"], "h", {}),
    ("Add", ["g", "h"], "i", {}),
    ("ConvTranspose", ["i", "t"], "j", {"strides": [2, 2]}),
    ("Conv", ["j", "r"], "k", {"group": 2}),
    ("Conv", ["i", "q"], "y", {}),
)
CSP_WEIGHTS = {
    "w": (6, 3, 1, 1), "wb": (6,), "v": (5, 6, 3, 3), "vb": (5,), "u": (4, 17, 1, 1), "s": (4, 6, 1, 1),
    "t": (4, 4, 2, 2), "r": (4, 2, 1, 1), "q": (3, 4, 1, 1),
}  # fmt: skip


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_groups_of_channels_pass_concatenations_pools_and_sums(seed: int) -> None:
    graph = network(*CSP, weights=CSP_WEIGHTS, seed=seed)
    groups = channel_groups(graph)
    # The channels of k are nobody's, those of j go to a layer in groups, and those of g and h are one group.
    made = [tuple(part.layer for part in group.makers) for group in groups]
    assert made == [("make a",), ("make c",), ("make g", "make h")]
    assert [(one.layer, one.start, one.channels) for one in groups[0].taken] == [
        ("make c", 0, 6), ("make g", 5, 17), ("make g", 11, 17), ("make h", 0, 6),
    ]  # fmt: skip
    exact = results(graph)
    new, sites = folded(graph)
    assert sites == 3
    assert len(new.graph) == len(graph.graph)
    assert all(np.array_equal(a, b) for a, b in zip(exact, results(new), strict=True))


@pytest.mark.parametrize(
    "between",
    [
        ("Sigmoid", ["a"], "b", {}),
        ("Clip", ["a"], "b", {}),
        ("Mul", ["a", "a"], "b", {}),
        ("Add", ["a", "wb"], "b", {}),
        ("Softmax", ["a"], "b", {"axis": 1}),
    ],
    ids=lambda node: node[0],
)
def test_channels_stay_where_their_values_are_needed(between: Node) -> None:
    weights = {"w": (6, 3, 1, 1), "wb": (6, 1, 1), "v": (4, 6, 1, 1)}
    graph = network(("Conv", ["x", "w"], "a", {}), between, ("Conv", ["b", "v"], "y", {}), weights=weights)
    assert not channel_groups(graph)
    assert not Equalise().applies(graph)
    assert candidates(graph) == []


def test_channels_of_an_output_stay() -> None:
    nodes: tuple[Node, ...] = (
        ("Conv", ["x", "w"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("Conv", ["b", "v"], "y", {}),
    )
    weights = {"w": (6, 3, 1, 1), "v": (4, 6, 1, 1)}
    assert len(channel_groups(network(*nodes, weights=weights))) == 1
    assert not channel_groups(network(*nodes, weights=weights, outputs=("y", "b")))
    assert not channel_groups(network(*nodes, weights=weights, outputs=("y", "a")))


def test_a_channel_of_zeros_and_one_of_tiny_values_stay_finite() -> None:
    graph = separable()
    weight, bias = (graph.graph.initializers[name] for name in ("w", "wb"))
    for value in (weight, bias):
        assert value.const_value is not None
        numbers = value.const_value.numpy().copy()
        numbers[0], numbers[1] = 0, numbers[1] * 1e-12
        value.const_value = ir.tensor(numbers, name=value.name)
    exact = results(graph)
    new, _ = folded(graph)
    assert all(np.array_equal(a, b) for a, b in zip(exact, results(new), strict=True))
    assert all(np.isfinite(v.const_value.numpy()).all() for v in new.graph.initializers.values() if v.const_value)
