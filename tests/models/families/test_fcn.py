"""FCN and ParseNet: numbers by their definition, any size, exports, and what a file must have."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from deploykit.errors import CheckpointError, UsageError, WeightsMismatchError
from deploykit.export.engine.build import build_engine
from deploykit.export.graph.trace import example_input, export_to_ir
from deploykit.export.options import OnnxOptions, PrecisionOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.class_names import VOC_CLASSES
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.fcn import model as fcn
from deploykit.models.families.fcn.context import GlobalContext, L2Norm, LateContext
from deploykit.models.families.fcn.model import FcnConfig
from deploykit.models.families.fcn.unpool import BilinearDeconvolution
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel, load_model, with_rewrite
from deploykit.runtime.session import open_session
from deploykit.spec import DenseOutput, InputSpec, ModelSpec
from tests.meta_model import meta_model
from tests.reference import fcn as reference

PUBLISHED = {"fcn32s": (136_152_917,), "fcn16s": (134_815_994,), "fcn8s": (134_489_759,)}
"""Parameters of the PyTorch form, with 21 classes and the fixed deconvolutions."""

KINDS = ("32s", "16s", "8s", "parsenet", "parsenet-late")


def narrow(kind: str, classes: int = 3) -> ReferenceModel:
    config = FcnConfig(kind, classes, ((4, 4), (6,), (8, 8), (10,), (12, 12)), (24, 16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = fcn.FAMILY.network(config).eval()
        randomise(network)
    return fcn.FAMILY.reference(config, network)


def pixels(height: int, width: int, batch: int = 1) -> Tensor:
    values = np.random.default_rng(0).integers(0, 256, (batch, 3, height, width)).astype(np.float32)
    return torch.from_numpy(values - np.array(fcn.MEAN, np.float32)[:, None, None])


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_published(name: str) -> None:
    model = meta_model(name)
    assert model.parameters == PUBLISHED[name][0]
    assert model.spec.classes == VOC_CLASSES


@pytest.mark.parametrize("size", [(1, 1), (31, 64), (50, 97), (160, 129)])
@pytest.mark.parametrize("kind", ["32s", "16s", "8s", "at-once"])
def test_logits_are_those_of_the_definition(kind: str, size: tuple[int, int]) -> None:
    model = narrow("8s" if kind == "at-once" else kind)
    scales = {}
    if kind == "at-once":
        model, scales = with_rewrite(model, "at-once"), {"pool4": 0.01, "pool3": 0.0001}
    images = pixels(*size)
    expected = reference.logits(model.module.state_dict(), images, "8s" if scales else kind, scales)
    for network in (model.module, fuse_model(model.module)):
        with torch.inference_mode():
            found = network(images)[0].numpy()
        assert found.shape == (3, *size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_streams_differ() -> None:
    images = pixels(64, 64)
    with torch.inference_mode():
        model = narrow("8s")
        assert (model.module(images) - with_rewrite(model, "at-once").module(images)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["parsenet", "parsenet-late"])
def test_context_is_the_mean_of_the_whole_image(kind: str) -> None:
    model = narrow(kind)
    context = model.module.context
    x = torch.randn(2, 16, 5, 7).relu()
    x[0, :, 2, 2] = 0  # a pixel without any length

    def unit(v: Tensor, norm: L2Norm) -> Tensor:
        wide = v.double()
        return wide / ((wide * wide).sum(1, keepdim=True) + 1e-10).sqrt() * norm.scale.double().view(1, -1, 1, 1)

    local, whole = unit(x, context.norm_local), unit(x.mean((2, 3), keepdim=True), context.norm_global)
    weight, bias = (p.double() for p in (context.score.weight, context.score.bias))
    if kind == "parsenet":
        both = torch.cat((local, whole.repeat(1, 1, 5, 7)), 1)
        expected = torch.nn.functional.conv2d(both, weight, bias)
    else:
        a, b = context.weights.double()
        last = context.score_global
        scored = torch.nn.functional.conv2d(whole, last.weight.double(), last.bias.double())
        expected = a * torch.nn.functional.conv2d(local, weight, bias) + b * scored
    with torch.inference_mode():
        assert (context(x) - expected).abs().max() < 1e-5
        one, other = pixels(90, 90), pixels(90, 90)
        other[..., :8, :8] += 60
        changed = (model.module(one) - model.module(other)).abs()
    assert changed[..., 80:, 80:].max() > 1e-6  # far outside of what its convolutions see there


@pytest.mark.parametrize("kind", [GlobalContext, LateContext])
def test_the_context_of_a_large_dark_image_is_that_of_float64_in_onnx_runtime(kind: Any, tmp_path: Path) -> None:
    """Value by value, float32 loses 1e-4 of the mean of such a map."""
    torch.manual_seed(0)
    context = kind(3, 3).eval()
    spec = ModelSpec("segment", InputSpec(size=(256, 256)), DenseOutput(name="labels"), VOC_CLASSES[:3])
    graph = export_to_ir(context, example_input(spec.input), spec, "dynamo", True, ["labels"])
    ir.save(graph, tmp_path / "m.onnx")
    x = np.random.default_rng(0).random((1, 3, 256, 256), np.float32)
    x[:, ::2, 64:] = 0.1  # in some channels: an error that all share is none of the vector of length 1
    with torch.inference_mode():
        expected = copy.deepcopy(context).double()(torch.from_numpy(x).double()).numpy()
    with open_session(tmp_path / "m.onnx") as session:
        (found,) = session.run({spec.input.name: x}).values()
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported_and_built(kind: str, tmp_path: Path) -> None:
    exporter = "dynamo" if kind == "8s" else "legacy"
    report = onnx_from_model(
        narrow(kind), out=tmp_path / "f.onnx", img=(70, 101), options=OnnxOptions(exporter=exporter)
    )  # type: ignore[arg-type]  # a str
    assert report.parity is not None
    assert report.parity.ok
    assert report.outputs[0].shape == (1, 3, 70, 101)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert build_engine(report.path, flavour="tensorrt-rtx", out=tmp_path / "f.trt").record.layers


@pytest.mark.parametrize("kind", ["8s", "parsenet"])
def test_a_file_of_free_shape_takes_any_size(kind: str, tmp_path: Path) -> None:
    model = narrow(kind)
    report = onnx_from_model(
        model, out=tmp_path / "f.onnx", img=(64, 96), dynamic="shape", options=OnnxOptions(exporter="legacy")
    )
    with open_session(report.path) as session, torch.inference_mode():
        for size in ((37, 53), (96, 33)):
            images = pixels(*size, batch=2)
            expected = model.module(images).numpy()
            found = session.run({"images": images.numpy()})["logits"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_lengths_stay_fp32_in_half_precision(tmp_path: Path) -> None:
    report = onnx_from_model(
        narrow("parsenet"), out=tmp_path / "f.onnx", img=(48, 64), precision=PrecisionOptions(precision="fp16")
    )
    assert report.parity is not None
    assert report.parity.ok
    assert report.precision is not None
    assert report.precision.half is not None
    kept = set(report.precision.half.kept["operator"])
    assert len([name for name in kept if "norm" in name]) >= 2
    roots = [node.name for node in onnx.load(report.path).graph.node if node.op_type in ("Sqrt", "Pow")]
    assert roots
    assert kept.issuperset(roots)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["parsenet", "parsenet-late"])
def test_pixels_without_any_length_stay_finite_in_a_file(kind: str, precision: str, tmp_path: Path) -> None:
    """With the default exporter, which drops small numbers that are added."""
    model = narrow(kind)
    with torch.no_grad():
        for layer in model.module.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
                layer.bias.zero_()
    asked = PrecisionOptions(precision=precision)  # type: ignore[arg-type]  # a str
    report = onnx_from_model(model, out=tmp_path / "f.onnx", img=(40, 48), precision=asked)
    nothing = torch.zeros(1, 3, 40, 48)  # the mean colour
    with open_session(report.path) as session, torch.inference_mode():
        found = session.run({"images": nothing.numpy()})["logits"]
        np.testing.assert_allclose(found, model.module(nothing).numpy(), atol=1e-5)


def test_fixed_deconvolutions_become_one_group_a_channel() -> None:
    layer = BilinearDeconvolution(5, 16, 8)
    layer.random_weights(1.0)
    folded = layer.fuse("it")
    assert folded.groups == 5
    x = torch.randn(1, 5, 3, 4)
    with torch.inference_mode():
        assert (folded(x) - layer(x)).abs().max() < 1e-6
        layer.weight[0, 1, 2, 2] = 0.1  # learned after all
    assert layer.fuse("it") is layer


def saved(model: ReferenceModel, path: Path, **changes: Tensor | None) -> Path:
    state = {**model.module.state_dict(), **changes}
    torch.save({k: v for k, v in state.items() if v is not None}, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_is_read_from_its_tensors(kind: str, tmp_path: Path) -> None:
    model = narrow(kind, classes=2)
    without = {key: None for key in model.module.state_dict() if key.startswith("up")}  # which are not learned
    for changes in ({}, without):
        again = load_model(saved(model, tmp_path / "f.pth", **changes))
        assert again.spec.classes == ("class 0", "class 1")
        with torch.inference_mode():
            assert torch.equal(again.module(pixels(33, 40)), model.module(pixels(33, 40)))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fc6.weight": torch.zeros(3)}, CheckpointError, r"fc6\.weight is \[3\]: expected 4 axes"),
        ({"score_fr.weight": torch.zeros(0, 16, 1, 1)}, CheckpointError, r"score_fr\.weight is \[0, 16, 1, 1\]"),
        ({"score_fr.weight": None}, CheckpointError, r"score_fr\.weight is missing"),
        ({"fc7.bias": None}, WeightsMismatchError, r"lacks the tensor fc7\.bias"),
        ({"more": torch.zeros(1)}, WeightsMismatchError, "holds the tensor more"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Tensor | None], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        load_model(saved(narrow("8s"), tmp_path / "f.pth", **changes))


def test_at_once_is_of_several_streams() -> None:
    with pytest.raises(UsageError, match="fcn32s-narrow has no rewrite 'at-once'; it has none"):
        with_rewrite(narrow("32s"), "at-once")
    with pytest.raises(UsageError, match="takes no argument"):
        with_rewrite(narrow("8s"), "at-once:2")


@pytest.mark.parametrize("kind", KINDS)
def test_random_weights_see_the_image(kind: str) -> None:
    model = narrow(kind)
    images = pixels(96, 96)
    other = images.clone()
    other[..., 40:56, 40:56] += 50
    with torch.inference_mode():
        found, exact = model.module(images), model.module.double()(images.double())
        model.module.float()
        changed = (model.module(other) - found).abs().max()
    assert 0.01 < found.abs().max() < 1000
    assert (found - exact).abs().max() < 1e-4 * found.abs().max()
    assert changed > 1e-3 * found.abs().max()
