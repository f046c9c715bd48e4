"""U-Nets as files: every size that they take, as the exporters write it down, and as engines."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import deploykit
from deploykit.errors import ImageSizeError, SpecError
from deploykit.export.options import OnnxOptions, PrecisionOptions
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.unet.model import reference_of
from deploykit.models.families.unet.network import Level, UNetConfig, build_unet
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.session import open_session
from deploykit.spec import InputSpec, ModelSpec

CONFIGS = {
    "unet": UNetConfig.published(width=4, depth=2),
    "unet-bilinear": UNetConfig.published(width=4, depth=1, bilinear=True, num_classes=1),
    "unet-2015": replace(UNetConfig.published(width=4, depth=1, channels=1), kind="valid"),
    "unet-pooled": UNetConfig(
        4, 1, (Level(4, 5, 0, 7), Level(6, 8)), (Level(7, 6, 5), Level(4, 3, 1)), "pooled", False
    ),
}


def model_of(name: str) -> ReferenceModel:
    torch.manual_seed(0)
    network = build_unet(CONFIGS[name])
    randomise(network)
    return reference_of(CONFIGS[name], network)


def exported(model: ReferenceModel, out: Path, **options: Any) -> ExportReport:
    report = onnx_from_model(model, out=out, options=OnnxOptions(**options))
    assert report.parity is not None
    assert report.parity.ok
    return report


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def run(path: Path, images: Array) -> Array:
    with open_session(path, provider="cpu") as session:
        return session.run({"images": images})["logits"]


@pytest.mark.parametrize(
    ("name", "exporter"), [("unet", "legacy"), ("unet-bilinear", "dynamo"), ("unet-2015", "legacy")]
)
def test_a_free_shape_is_any_shape(name: str, exporter: Any, tmp_path: Path) -> None:
    """Traced with odd sides, right for even ones, for those that are odd after a halving, and for the smallest."""
    model = model_of(name)
    report = exported(model, tmp_path / "m.onnx", img=(29, 38), dynamic="shape", exporter=exporter)
    channels = CONFIGS[name].channels
    assert str(report.inputs[0]) == f"images float32 (batch, {channels}, height, width)"
    least = 25 if name == "unet-2015" else 4  # a mirror shows no more than there is
    for size in ((32, 48), (30, 35), (least, 61), (53, least)):
        images = np.random.default_rng(1).random((2, channels, *size), np.float32)
        with torch.no_grad():
            expected = model.module(torch.from_numpy(images)).numpy()
        found = run(report.path, images)
        assert found.shape == (2, CONFIGS[name].num_classes, *size)
        assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(("name", "size", "good"), [("unet", (3, 40), "4 40"), ("unet-2015", (9, 9), "10 10")])
def test_a_size_of_which_the_halvings_leave_nothing_is_refused(
    name: str, size: tuple[int, int], good: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageSizeError, match=rf"^{size[0]}x{size[1]} .* at least .* next valid size is --img {good}$"):
        onnx_from_model(model_of(name), out=tmp_path / "m.onnx", img=size, dynamic="shape")
    spec = model_of(name).spec
    with pytest.raises(SpecError, match="the network takes sides of at least"):
        replace(spec, input=replace(spec.input, size=size))


def test_an_image_that_becomes_too_small_is_refused_by_the_spec(tmp_path: Path) -> None:
    report = exported(model_of("unet"), tmp_path / "m.onnx", img=(29, 38), dynamic="shape", exporter="legacy")
    assert ModelSpec.from_json(report.spec.to_json()).input.fit.least == 4
    with deploykit.load(report.path) as predictor:
        assert predictor(np.zeros((29, 38, 3), np.uint8))
        with pytest.raises(ImageSizeError, match=r"2x200 .* an input of 1x38, .* sides of at least 4 pixels"):
            predictor(np.zeros((2, 200, 3), np.uint8))
    with pytest.raises(ImageSizeError, match=r"9x40 .* an input of 9x40, .* at least 10 pixels"):
        place_on_canvas(np.zeros((9, 40, 1), np.uint8), free("unet-2015"))


def free(name: str) -> InputSpec:
    """The input of a U-Net in an export of free shape."""
    return replace(model_of(name).spec.input, dynamic="shape")


def test_a_bilinear_one_resizes_between_the_corners(tmp_path: Path) -> None:
    report = exported(model_of("unet-bilinear"), tmp_path / "m.onnx", img=(29, 38), exporter="legacy")
    nodes = [node for node in onnx.load(str(report.path)).graph.node if node.op_type == "Resize"]
    modes = {a.s for node in nodes for a in node.attribute if a.name == "coordinate_transformation_mode"}
    assert (len(nodes), modes) == (1, {b"align_corners"})


@pytest.mark.parametrize(("size", "pads"), [((28, 40), 0), ((29, 38), 2), ((28, 38), 1)])
def test_a_fixed_shape_pads_only_where_it_must(size: tuple[int, int], pads: int, tmp_path: Path) -> None:
    report = exported(model_of("unet"), tmp_path / "m.onnx", img=size, exporter="legacy")
    assert operators(report.path)["Pad"] == pads


def test_a_pooled_one_takes_batches(tmp_path: Path) -> None:
    report = exported(model_of("unet-pooled"), tmp_path / "m.onnx", img=(32, 40), dynamic="batch", exporter="legacy")
    assert str(report.outputs[0]) == "logits float32 (batch, 1, 32, 40)"


@pytest.mark.parametrize("name", ["unet", "unet-bilinear"])
def test_half_precision_keeps_the_classes(name: str, tmp_path: Path) -> None:
    precision = PrecisionOptions("fp16")
    report = exported(model_of(name), tmp_path / "m.onnx", img=(28, 40), precision=precision, exporter="legacy")
    assert report.parity is not None
    assert all(m.matched >= 0.99 * m.expected > 0 for m in report.parity.matchings)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [("unet", "none"), ("unet-bilinear", "shape"), ("unet-2015", "shape"), ("unet-pooled", "batch")],
)
def test_tensorrt_for_rtx_builds_an_engine(name: str, dynamic: Any, tmp_path: Path) -> None:
    """Of padding, mirroring and enlarging, of a fixed and of a free size; what they compute only a GPU shows."""
    options: dict[str, Any] = {"img": (40, 60), "exporter": "legacy", "dynamic": dynamic}
    if name != "unet-pooled":
        options["img"] = (37, 61)
    report = onnx_from_model(model_of(name), out=tmp_path / "m.onnx", check=False, options=OnnxOptions(**options))
    engine = deploykit.build_engine(report.path, flavour="tensorrt-rtx", check=False)
    assert engine.record.size == engine.path.stat().st_size > 10_000
    assert engine.record.spec == report.spec


@pytest.mark.data
@pytest.mark.parametrize(("dynamic", "exporter"), [("none", "dynamo"), ("shape", "legacy")])
def test_the_export_gives_the_originals_output(dynamic: Any, exporter: Any, shared: Path, tmp_path: Path) -> None:
    model = load_model(shared / "golden" / "unet-narrow.pt")
    with np.load(shared / "golden" / "unet-narrow.npz") as golden:
        images, expected = golden["images"], golden["output"]
    size = images.shape[2:] if dynamic == "none" else (64, 64)
    report = exported(model, tmp_path / "m.onnx", img=size, dynamic=dynamic, exporter=exporter)
    assert np.abs(run(report.path, images) - expected).max() <= 1e-5 * np.ptp(expected)
