"""Images that show nothing, and values far outside of the training: each finds a fault that no photograph shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from torch import Tensor, nn

from deploykit.errors import ParityError
from deploykit.export import to_onnx
from deploykit.export.parity import inputs
from deploykit.export.parity.compare import compare
from deploykit.export.parity.extremes import BEYOND, divides, extreme_inputs, first_not_finite
from deploykit.export.parity.inputs import make_parity_inputs, plain_image
from deploykit.export.precision import convert_half
from deploykit.export.to_onnx import onnx_from_model
from deploykit.export.verify import verify
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.arrays import Array
from deploykit.spec import DenseOutput, InputSpec, ModelSpec
from tests.dense_networks import canvas_of, write
from tests.narrow_dense import narrow_dense

PLAIN = {"one colour", "black", "white"}


class Probe(nn.Module):
    """A convolution without a bias, and what a test does with its values."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.after = after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.conv(images))


def probe(after: Callable[[Tensor], Tensor], **canvas: Any) -> ReferenceModel:
    size = (32, 32)
    spec = ModelSpec("restore", replace(canvas_of("resize", size), **canvas), DenseOutput(name="image"))
    return ReferenceModel("probe", "test", Probe(after).eval().requires_grad_(False), spec, ())


def length(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().sum((1, 2, 3), keepdim=True).sqrt() + eps)


def by_deviation(x: Tensor, eps: float = 0.0) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean((2, 3), keepdim=True) + eps).sqrt()


def far(x: Tensor) -> Tensor:
    """A norm, and beside it a mean to the fourth power: some thousands in photographs and noise, 2e5 on white."""
    normal = x / (x.square().mean((1, 2, 3), keepdim=True) + 1.0)
    square = x.mean((1, 2, 3), keepdim=True) * x.mean((1, 2, 3), keepdim=True)
    return normal + nn.functional.conv2d(2e5 * square * square, torch.full((3, 1, 1, 1), 1e-6))


def test_a_length_whose_eps_float32_rounds_away_is_found_on_black(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"not finite on black \(the first is the tensor '.*' of m.onnx\), and .* not"
    ):
        onnx_from_model(probe(lambda x: length(x, 1e-60)), out=tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    report = onnx_from_model(probe(lambda x: length(x, 1e-6)), out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert {d.input for d in report.parity.differences} >= {*PLAIN, BEYOND}


def test_a_deviation_without_an_eps_is_found_on_one_colour(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"^the checkpoint itself gives values .* of one colour \(one colour\).*: add"
    ):
        onnx_from_model(probe(by_deviation), out=tmp_path / "m.onnx")
    assert onnx_from_model(probe(lambda x: by_deviation(x, 1e-5)), out=tmp_path / "m.onnx").parity
    unchecked = onnx_from_model(probe(by_deviation), out=tmp_path / "m.onnx", check=False)
    assert unchecked.parity is None


def test_an_eps_that_only_the_file_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = to_onnx.export_to_ir

    def forgetful(*args: Any) -> ir.Model:
        graph = traced(*args)
        for value in graph.graph.initializers.values():
            if (
                value.const_value is not None
                and value.const_value.size == 1
                and 0 < float(value.const_value.numpy()) < 1e-3
            ):
                value.const_value = ir.tensor(np.zeros(value.const_value.shape.numpy(), np.float32))
        return graph

    monkeypatch.setattr(to_onnx, "export_to_ir", forgetful)
    with pytest.raises(ParityError, match=r"m\.onnx was not kept: it gives values that are not finite on black"):
        onnx_from_model(probe(lambda x: length(x, 1e-6)), out=tmp_path / "m.onnx")


def test_a_limit_that_no_photograph_reaches_is_found_far_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = to_onnx.export_to_ir

    def limited(*args: Any) -> ir.Model:
        graph = traced(*args)
        (fed,) = graph.graph.inputs
        (first,) = (user for user, _ in fed.uses())
        most = ir.Value(name="most", const_value=ir.tensor(np.array(1.5, np.float32), name="most"))
        graph.graph.register_initializer(most)
        node = ir.node("Clip", [fed, None, most])
        graph.graph.insert_before(first, node)
        first.replace_input_with(0, node.outputs[0])
        return graph

    monkeypatch.setattr(to_onnx, "export_to_ir", limited)
    with pytest.raises(ParityError, match=f"image of m.onnx differ .* on {BEYOND}"):
        onnx_from_model(probe(lambda x: x + by_deviation(x, 1e-5)), out=tmp_path / "m.onnx")


def test_values_that_overflow_in_the_checkpoint_too_are_said_and_no_error(tmp_path: Path) -> None:
    model = probe(lambda x: by_deviation(x, 1e-2) + (20 * x.abs().amax((1, 2, 3), keepdim=True)).exp().log())
    report = onnx_from_model(model, out=tmp_path / "m.onnx")
    assert report.parity is not None
    (note,) = (note for note in report.parity.notes if BEYOND in note)
    assert "float32 overflows" in note
    assert {d.input for d in report.parity.differences} >= PLAIN


def test_a_range_that_only_white_leaves_is_kept_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = probe(far)
    weight = model.module.conv.weight  # type: ignore[union-attr]
    weight.data.fill_(1 / 3)  # type: ignore[union-attr]
    report = onnx_from_model(model, out=tmp_path / "m.onnx", precision="fp16")
    white = plain_image(report.spec.input, 255.0, (32, 32))
    assert first_not_finite(ir.load(report.path), white) == ""
    monkeypatch.setattr(convert_half, "with_plain", lambda feeds, canvas, graph: dict(feeds.images))
    with pytest.raises(ParityError, match=r"fp16 was not kept: its tensor '.*' .* on an image of one colour \(white\)"):
        onnx_from_model(model, out=tmp_path / "n.onnx", precision="fp16")


def test_white_in_the_noise_tells_the_range_of_a_network_that_looks_at_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place's mean to the eighth power: 1e5 on white, and little in a dark photograph and in noise."""

    def places(x: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(x, 8)
        power = (mean * mean) * (mean * mean)
        return nn.functional.interpolate(
            nn.functional.conv2d(1e5 * power * power, torch.eye(3)[..., None, None]), scale_factor=8
        )

    model = probe(lambda x: 1e-6 * places(x))
    model.module.conv.weight.data.fill_(1 / 3)  # type: ignore[union-attr]
    (tmp_path / "dark.png").write_bytes(cv2.imencode(".png", np.full((32, 32, 3), 50, np.uint8))[1].tobytes())
    white = plain_image(model.spec.input, 255.0, (32, 32))

    def first_on_white(name: str) -> str:
        out = tmp_path / name
        report = onnx_from_model(model, out=out, precision="fp16", samples=[tmp_path / "dark.png"])
        return first_not_finite(ir.load(report.path), white)

    assert first_on_white("m.onnx") == ""
    monkeypatch.setattr(inputs, "WHITE", 0.0)
    assert first_on_white("n.onnx") != ""


def test_the_same_note_where_float32_explains_what_one_colour_magnifies(tmp_path: Path) -> None:
    """The deviation of one colour is rounding, which a small eps magnifies in every float32."""
    report = onnx_from_model(probe(lambda x: by_deviation(x + 1.0, 1e-7)), out=tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.ok
    assert any("which float32 explains: PyTorch is off by" in note for note in report.parity.notes)


@pytest.mark.parametrize(("name", "expected"), [("parsenet", True), ("unet", False)])
def test_what_normalises_or_measures_lengths_divides(name: str, expected: bool, tmp_path: Path) -> None:
    report = onnx_from_model(narrow_dense(name), out=tmp_path / "m.onnx")
    assert divides(ir.load(report.path).graph) == expected
    assert report.parity is not None
    assert ({d.input for d in report.parity.differences} >= PLAIN) == expected


def test_noise_has_plain_strips_and_the_image_upside_down() -> None:
    canvas = InputSpec(size=(40, 64), mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    fed = make_parity_inputs(ModelSpec("features", canvas, DenseOutput(name="values")))
    noise, first = fed.images["noise (seed 0)"], fed.first
    for i, colour in enumerate((0.0, 255.0, 114.0)):
        np.testing.assert_array_equal(noise[..., 30:, 16 * i : 16 * i + 16], plain_image(canvas, colour, (10, 16)))
    np.testing.assert_array_equal(noise[..., 30:, 48:], first[..., ::-1, ::-1][..., 30:, 48:])
    assert noise[..., :30, :].std() > 0.2


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    batch=st.integers(1, 6),
    dynamic=st.sampled_from(["none", "batch", "shape"]),
    parameters=st.sampled_from([1, 10**12]),
)
def test_every_image_is_in_a_batch_of_the_size_that_the_file_takes(
    height: int, width: int, batch: int, dynamic: Any, parameters: int
) -> None:
    stride = 8 if dynamic == "shape" else 1
    height, width = height * stride, width * stride
    canvas = replace(canvas_of("resize", (height, width)), batch=batch, dynamic=dynamic)
    canvas = replace(canvas, fit=replace(canvas.fit, stride=stride))
    image = np.random.default_rng(0).random((1, 3, height, width), np.float32)
    fed = extreme_inputs(canvas, image, parameters)
    assert {label for b in fed.batches for label in b.images} == set(fed.images)
    assert all(len(b.images) == (batch if dynamic == "none" else 1) for b in fed.batches)
    large = parameters * fed.first.shape[2] * fed.first.shape[3] > 3e10 * 256
    assert set(fed.images) == ({"one colour"} if large else {*PLAIN, BEYOND})
    for label, values in fed.images.items():
        assert all(
            side % stride == 0 and side <= most for side, most in zip(values.shape[2:], (height, width), strict=True)
        )
        assert (label in PLAIN) == bool((np.ptp(values, (2, 3)) == 0).all()) or values[0, 0].size == 1


def upside_down_only(x: Array, first: Array) -> float:
    """How much brighter the upper half of an image is than that of ``first``."""
    half = x.shape[2] // 2
    return float(x[..., :half, :].mean() - first[..., :half, :].mean())


def test_a_fault_of_images_with_a_bright_top_is_found_upside_down(tmp_path: Path) -> None:
    """The photograph is darker above; a file that is wrong where an image is brighter there agrees on it."""
    spec = ModelSpec("restore", canvas_of("resize", (32, 48), dynamic="batch"), DenseOutput(name="image"))
    fed = make_parity_inputs(spec)
    bright = upside_down_only(fed.images["apollo11_crew.jpg upside down"], fed.first)
    assert bright > 0.02
    right = write(tmp_path / "right.onnx", spec, [helper.make_node("Identity", ["images"], ["image"])])
    limit = fed.first[..., :16, :].mean() + 0.5 * bright
    nodes = [
        helper.make_node("Slice", ["images", "zero", "half", "rows"], ["upper"]),
        helper.make_node("ReduceMean", ["upper", "sides"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["mean", "limit"], ["more"]),
        helper.make_node("Relu", ["more"], ["wrong"]),
        helper.make_node("Add", ["images", "wrong"], ["image"]),
    ]
    stored = {"zero": np.array([0]), "half": np.array([16]), "rows": np.array([2]), "sides": np.array([1, 2, 3])}
    wrong = write(tmp_path / "wrong.onnx", spec, nodes, {**stored, "limit": np.array(limit, np.float32)})
    parity = compare(right, wrong)
    bad = {d.input for d in parity.differences if not d.ok}
    assert "apollo11_crew.jpg upside down" in bad
    assert "apollo11_crew.jpg" not in bad


def test_verify_feeds_whole_images_of_one_colour_too(tmp_path: Path) -> None:
    """Two files, of which one divides by a length without an eps."""
    spec = ModelSpec("restore", canvas_of("resize", (16, 16)), DenseOutput(name="image"))

    def file(name: str, eps: float) -> Path:
        nodes = [
            helper.make_node("ReduceL2", ["images"], ["length"], keepdims=1),
            helper.make_node("Add", ["length", "eps"], ["safe"]),
            helper.make_node("Div", ["images", "safe"], ["image"]),
        ]
        return write(tmp_path / name, spec, nodes, {"eps": np.array(eps, np.float32)})

    right, wrong = file("right.onnx", 1e-6), file("wrong.onnx", 0.0)
    assert verify(right, right).ok
    report = verify(right, wrong)
    assert not report.ok
    assert all("on black" in check.name for check in report.failures)
