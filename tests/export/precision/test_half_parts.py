"""The parts of the error of half precision: against graphs in which nodes really stay in fp32."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from deploykit.export.precision.search.half_parts import Part, error_in_half, half_parts, order_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession

SHAPE = (1, 3, 16, 16)
IMAGES = [np.random.default_rng(seed).random(SHAPE, np.float32) for seed in range(2)]


def graph_of() -> ir.Model:
    """A large value that one layer makes and another takes away, with operators between that only move or limit it."""
    chance = np.random.default_rng(1)
    shapes = {"first": (4, 3, 3, 3), "up": (4, 4, 1, 1), "down": (4, 4, 1, 1), "last": (2, 4, 3, 3)}
    weights = {name: (chance.normal(size=shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    constants = {
        **weights,
        "high": np.full(4, 200, np.float32),
        "low": -weights["down"][:, :, 0, 0] @ np.full(4, 200, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "least": np.array(0, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Tanh", ["a"], ["b"], name="tanh"),
        helper.make_node("Conv", ["b", "up", "high"], ["c"], name="up"),
        helper.make_node("Clip", ["c", "least"], ["d"], name="clip"),
        helper.make_node(
            "Resize",
            ["d", "", "scales"],
            ["e"],
            name="resize",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Conv", ["e", "down", "low"], ["f"], name="down"),
        helper.make_node("Pad", ["f", "pads", "least"], ["g"], name="pad"),
        helper.make_node("Conv", ["g", "last"], ["y"], name="last"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape, v.ravel())
            for n, v in constants.items()
        ],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


NODES = ("first", "tanh", "up", "clip", "resize", "down", "pad", "last")


def exact() -> list[Tensor]:
    with OnnxInTorchSession(graph_of()) as session:
        return [torch.from_numpy(session.run({"x": image})["y"]) for image in IMAGES]


EXACT = exact()


def error(number: int, found: Mapping[str, Tensor]) -> Tensor:
    return (found["y"] - EXACT[number]).double().square().mean()


def left(*kept: str) -> float:
    return error_in_half(graph_of(), [name for name in NODES if name not in kept], "fp16", IMAGES, error)


def test_the_parts_add_up_and_belong_to_the_nodes_that_take_them_away() -> None:
    """The derivative of a square tells twice of it."""
    whole, parts, stopped = half_parts(graph_of(), NODES, "fp16", IMAGES, error)
    assert not stopped
    assert whole == pytest.approx(left(), rel=1e-6)
    assert sum(part.size for part in parts) == pytest.approx(2 * whole, rel=0.05)
    largest = max(parts, key=lambda part: part.size)
    assert largest.nodes == {"up", "clip", "resize", "down"}  # a Cast between them would round again
    assert largest.size > whole
    for kept in (largest.nodes, {"first", "tanh"}, {"last"}, {"up"}, {"down", "pad", "last"}):
        gone = sum(part.size for part in parts if part.nodes <= kept)
        assert left(*kept) == pytest.approx(whole - gone / 2, abs=0.1 * whole)
    for one in largest.nodes:
        assert left(*(largest.nodes - {one})) > 0.5 * whole
    assert set(order_of(parts)[:4]) == largest.nodes


def test_nothing_is_lost_where_nothing_is_half() -> None:
    assert left(*NODES) == 0.0
    whole, parts, _ = half_parts(graph_of(), (), "bf16", IMAGES, error)
    assert (whole, parts) == (0.0, [])


names = st.sets(st.sampled_from("abcdefgh"), min_size=1)


@given(st.lists(st.tuples(st.floats(-1, 1), names), max_size=12))
def test_the_order_has_every_node_that_takes_something_away_once(found: list[tuple[float, Collection[str]]]) -> None:
    parts = [Part(size, frozenset(nodes)) for size, nodes in found]
    order = order_of(parts)
    assert len(order) == len(set(order))
    assert set(order) == {node for part in parts if part.size > 0 for node in part.nodes}
    if order:
        best = max(part.size / len(part.nodes) for part in parts)
        first = [part for part in parts if part.nodes == set(order[: len(part.nodes)])]
        assert any(part.size / len(part.nodes) == best for part in first)
