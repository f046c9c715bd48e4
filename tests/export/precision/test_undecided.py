"""A search for layers of a detector in two stages: ranked by what layers give, judged by detections and masks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import Tensor, nn

from deploykit.export.precision.half import to_half
from deploykit.export.precision.search.half_parts import half_parts, order_of
from deploykit.export.precision.search.undecided import Undecided, undecided
from deploykit.export.precision.sensitivity import outputs_of
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.models.families.vitdet.mask_rcnn import MaskRcnn
from deploykit.runtime.arrays import Array
from tests.export.precision.test_two_stages import SMALL, exported_as, looking_up
from tests.export.test_instances import model_of


def image_of(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(1, 3, 8, 8)).astype(np.float32)


def with_offset() -> ir.Model:
    """Further layers on what is looked up: one adds 500, the next takes it away, and there is a last one."""
    model = looking_up()
    last = model.graph.node[-1]
    down = np.random.default_rng(2).normal(size=(6, 6)).astype(np.float32) / 2
    further = [
        helper.make_node("Add", ["head", "offset"], ["high"], "high"),
        helper.make_node("MatMul", ["high", "down.w"], ["low"], "down"),
        helper.make_node("Add", ["low", "back"], ["scores"], "back"),
        helper.make_node("MatMul", ["scores", "last.w"], ["logits"], "last"),
    ]
    del model.graph.node[-1]
    last.input[0] = "logits"
    model.graph.node.extend([*further, last])
    values = {"offset": np.full(6, 500, np.float32), "down.w": down, "back": -500 * down.sum(0), "last.w": down}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.checker.check_model(model, full_check=True)
    return ir.serde.deserialize_model(model)


def split_up(graph: ir.Model, image: Array) -> tuple[Undecided, list[str]]:
    """The graph without decisions, and the nodes that compute in half."""
    report = to_half(graph.clone(), "fp16", largest={})
    stay = {name for names in report.kept.values() for name in names}
    half = [str(node.name) for node in graph.graph if str(node.name) not in stay]
    return undecided(graph, half, partial(outputs_of, images=[image])), half


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_layers_give_what_they_give_between_decisions(seed: int) -> None:
    graph, image = with_offset(), image_of(seed)
    found, half = split_up(graph, image)
    assert set(found.exact[0]) == {"maps", "flat", "logits"}
    assert set(found.further[0]) == {"values"}
    assert {"maps", "deltas", "head", "down", "last"} <= set(half)
    assert {"RoiAlign", "Add"} & {node.op_type for node in found.graph.graph} == {"Add"}
    given = {name: value.numpy() for name, value in found.further[0].items()}
    with OnnxInTorchSession(found.graph) as session:
        outputs = session.run({"x": image, **given})
    for name, value in found.exact[0].items():
        np.testing.assert_allclose(outputs[name], value.numpy(), rtol=0, atol=1e-3)  # 500 has steps of 3e-5
    assert [value.name for value in graph.graph.outputs] == ["out", "rois"]


def test_the_layers_around_an_offset_behind_a_lookup_come_first() -> None:
    graph = with_offset()
    found, half = split_up(graph, image_of(0))

    def error(number: int, outputs: dict[str, Tensor]) -> Tensor:
        parts = [(outputs[k] - x).square().mean() / x.square().mean() for k, x in found.exact[number].items()]
        return torch.stack([part.sqrt() for part in parts]).sum()

    whole, parts, stopped = half_parts(found.graph, half, "fp16", [image_of(0)], error, found.further)  # type: ignore[arg-type]  # Mapping
    assert not stopped
    assert set(order_of(parts)[:3]) == {"high", "down", "back"}
    assert sum(part.size for part in parts) == pytest.approx(whole, rel=0.1)


def add_offset(network: MaskRcnn, place: str) -> set[str]:
    """Add what another layer takes away, and return the layers in which fp16 then loses what matters."""
    heads, blocks = network.roi_heads, network.get_submodule("backbone.net.blocks")
    assert isinstance(blocks, nn.Sequential)
    if place == "blocks":  # the same for every channel, which no normalization sees
        for block, sign in ((blocks[0], 1), (blocks[1], -1)):
            block.get_parameter("mlp.fc2.bias").data += 2000.0 * sign
        return {"backbone.net.blocks.0.mlp.fc2.bias", "backbone.net.blocks.1.mlp.fc2.bias"}
    if place == "boxes":
        first, behind = "box_head.fc1", ["box_predictor.cls_score", "box_predictor.bbox_pred"]
    else:
        first, behind = "mask_head.deconv", ["mask_head.predictor"]
    heads.get_parameter(f"{first}.bias").data += 1000.0
    for name in behind:
        heads.get_parameter(f"{name}.bias").data -= 1000.0 * heads.get_parameter(f"{name}.weight").flatten(1).sum(1)
    return {f"roi_heads.{name}" for name in (first, *behind)}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "seen"), [("blocks", "detections"), ("boxes", "scores"), ("masks", "masks")])
def test_a_search_finds_the_layers_around_an_offset(place: str, seen: str, tmp_path: Path) -> None:
    model = model_of(replace(SMALL, depth=3))
    assert isinstance(model.module, MaskRcnn)
    planted = add_offset(model.module, place)
    report = exported_as("fp16", tmp_path, model, cache=False)
    assert report.precision is not None
    search, kept = report.precision.search, report.precision.kept
    assert search is not None
    assert search.failed.startswith(f"{seen} of fp16 in torch")
    assert search.ranked_by == "derivatives"
    assert planted <= {layer.layer for layer in kept}
    assert len(kept) <= len(planted) + 3  # what adds to the stream between the two blocks, or a ReLU between two layers
    assert sum(layer.share or 0.0 for layer in kept) > 0.6
    parity = report.parity
    assert parity is not None
    assert parity.ok
    assert {d.values for d in parity.differences if d.candidate == "fp16 in torch"} == {"boxes", "scores", "masks"}
    assert all(m.matched >= m.expected - 1 > 3 for m in parity.matchings)
