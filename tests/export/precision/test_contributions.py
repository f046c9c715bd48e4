"""What each layer adds to the error: against networks in which this layer alone is not quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from deploykit.export.precision.cpu_int8 import quantize_for_cpu, rounded_tensors
from deploykit.export.precision.qdq import quantisable, quantize, weight_of
from deploykit.export.precision.search import way_back as module
from deploykit.export.precision.search.contributions import contributions_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.runtime.arrays import Array
from deploykit.spec import InputSpec

SHAPE = (1, 3, 24, 24)
IMAGES = [np.random.default_rng(seed).random(SHAPE, np.float32) for seed in range(3)]
LAYERS = ("first", "left", "right", "last")


def forked() -> ir.Model:
    """Layers of which two take one tensor, and one of those has much coarser weights than the others."""
    chance = np.random.default_rng(1)
    weights = {name: chance.normal(size=(8, 3 if name == "first" else 8, 3, 3)) / 6 for name in LAYERS}
    weights["left"][:, 0] *= 30  # one large weight a channel makes the steps of all others coarse
    arrays = [
        helper.make_tensor(f"{n}.weight", TensorProto.FLOAT, w.shape, w.ravel().astype(np.float32))
        for n, w in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "left.weight"], ["c"], name="left", pads=[1] * 4),
        helper.make_node("Conv", ["b", "right.weight"], ["d"], name="right", pads=[1] * 4),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Conv", ["e", "last.weight"], ["y"], name="last", pads=[1] * 4),
    ]
    return model_of(nodes, arrays, ["y"])


def model_of(nodes: Sequence[onnx.NodeProto], arrays: Sequence[onnx.TensorProto], results: Sequence[str]) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
        arrays,
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def quantized(target: str, kept: tuple[str, ...] = (), model: ir.Model | None = None) -> ir.Model:
    ranges: dict[str, float] = {"x": 1.0}

    def see(name: str, value: Tensor) -> None:
        ranges[name] = max(ranges.get(name, 0.0), float(value.abs().max()))

    model = forked() if model is None else model
    with OnnxInTorchSession(model, observe=see) as session:
        for image in IMAGES:
            session.run({"x": image})
    if target == "cpu":
        assert set(rounded_tensors(model.graph)) <= set(ranges)
        quantize_for_cpu(model, ranges, InputSpec(name="x", size=SHAPE[2:]), nodes_to_exclude=kept)
    else:
        quantize(model, ranges, nodes_to_exclude=kept)
    return model


def outputs(model: ir.Model) -> list[Tensor]:
    with OnnxInTorchSession(model) as session:
        return [torch.from_numpy(session.run({"x": image})["y"]) for image in IMAGES]


def error(expected: Tensor, found: Tensor) -> Tensor:
    return (found - expected).double().square().mean()


def parts_of(target: str) -> dict[str, float]:
    exact = outputs(forked())
    weights: dict[str, Array] = {str(node.name): weight_of(node) for node in quantisable(forked().graph)}

    def of(number: int, found: Mapping[str, Tensor]) -> Tensor:
        return error(exact[number], found["y"])

    return contributions_of(quantized(target), weights, IMAGES, of)[1]


@pytest.mark.parametrize(("target", "off"), [("any", 0.06), ("cpu", 0.2)])
def test_the_parts_tell_how_much_of_the_error_goes_with_each_layer(target: str, off: float) -> None:
    """The derivative of a square tells twice of it. Roundings between layers go with the layer before or after."""
    parts, exact = parts_of(target), outputs(forked())
    assert list(parts) == list(LAYERS)

    def whole(*kept: str) -> float:
        pairs = zip(exact, outputs(quantized(target, kept)), strict=True)
        return float(np.mean([float(error(a, b)) for a, b in pairs]))

    assert sum(parts.values()) == pytest.approx(2 * whole(), rel=0.05)
    for layer in LAYERS:
        assert parts[layer] / 2 == pytest.approx(whole() - whole(layer), abs=off * whole())
    assert parts["right"] < 0.1 * min(parts[layer] for layer in LAYERS if layer != "right")


KINDS = ("Conv", "Conv", "Conv", "Relu", "SiLU", "Add", "Concat", "Split", "MaxPool")


def branched(steps: Sequence[tuple[str, int, int]], seed: int) -> ir.Model:
    """A network of 4 channels everywhere; each step takes one or two of the values before it, by their numbers."""
    chance = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    arrays = [helper.make_tensor("two", TensorProto.INT64, (2,), [2, 2])]
    values: list[str] = []

    def add(kind: str, given: list[str], count: int = 1, **attributes: object) -> list[str]:
        made = [f"t{len(nodes)}_{i}" for i in range(count)]
        nodes.append(helper.make_node(kind, given, made, name=f"n{len(nodes)}", **attributes))
        return made

    def conv(source: str, channels: int) -> list[str]:
        name, shape = f"w{len(nodes)}", (4, channels, 3, 3)
        weight = chance.normal(size=shape).astype(np.float32) / 4
        arrays.append(helper.make_tensor(name, TensorProto.FLOAT, shape, weight.ravel()))
        return add("Conv", [source, name], pads=[1] * 4)

    values += conv("x", 3)
    for kind, a, b in steps:
        first, second = values[a % len(values)], values[b % len(values)]
        if kind == "Conv":
            values += conv(first, 4)
        elif kind == "SiLU":
            values += add("Mul", [first, *add("Sigmoid", [first])])
        elif kind == "Concat":
            values += conv(add("Concat", [first, second], axis=1)[0], 8)
        elif kind == "Split":
            left, right = add("Split", [first, "two"], count=2, axis=1)
            values += add("Concat", [right, left], axis=1)
        elif kind == "Add":
            values += add("Add", [first, second])
        else:
            more = {"kernel_shape": [3, 3], "pads": [1] * 4} if kind == "MaxPool" else {}
            values += add(kind, [first], **more)
    values += conv(values[-1], 4)
    return model_of(nodes, arrays, [values[-1], values[-2]])


@settings(max_examples=25)
@given(
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10),
    seed=st.integers(0, 999),
    target=st.sampled_from(["any", "cpu"]),
    kept=st.sampled_from([0, 1, 30_000, 100_000]),
)
def test_segments_that_are_run_again_give_the_parts_of_one_run(
    steps: list[tuple[str, int, int]], seed: int, target: str, kept: int
) -> None:
    def parts(limit: int) -> tuple[float, dict[str, float]]:
        model = branched(steps, seed)
        weights = {str(node.name): weight_of(node) for node in quantisable(model.graph)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "KEPT", limit)
            patch.setattr(module, "LARGE", 1000)
            return contributions_of(
                quantized(target, model=model),
                weights,
                IMAGES[:2],
                lambda _, found: sum((x.double() - 0.1).square().mean() for x in found.values()),  # type: ignore[arg-type, return-value]
            )

    whole, cut = parts(2**60), parts(kept)
    assert cut[0] == whole[0] > 0
    assert cut[1] == pytest.approx(whole[1], rel=1e-5, abs=1e-7 * max(map(abs, whole[1].values())))


def test_fewer_bits_on_the_way_back_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parts_of("any")
    monkeypatch.setattr(module, "LARGE", 1)
    fewer = parts_of("any")
    assert fewer != whole
    assert fewer == pytest.approx(whole, rel=0.02, abs=0.01 * max(whole.values()))


def test_an_error_that_is_not_finite_has_no_parts() -> None:
    weights = {str(node.name): weight_of(node) for node in quantisable(forked().graph)}
    nothing = contributions_of(quantized("any"), weights, IMAGES, lambda _, found: found["y"].sum() ** 2 * torch.inf)
    assert nothing == (torch.inf, dict.fromkeys(LAYERS, 0.0))
