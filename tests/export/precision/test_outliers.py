"""Transformers with the outliers of trained ones in reduced precision: tests/outliers.py says what is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.precision.half_rules import LARGEST, LARGEST_LOGIT, LARGEST_SQUARED
from deploykit.export.report import ExportReport
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import vit
from deploykit.models.families.vit import VisionTransformer, VitConfig
from deploykit.models.families.vitdet.model import PlainBackbone, VitDetConfig
from deploykit.models.registry import ReferenceModel, create_model
from tests.outliers import Outliers, add_outliers

SMALL = VitConfig(128, 3, 2, 128, patch=8, grid=4, num_classes=10)
slow = pytest.mark.slow


def transformer(config: VitConfig, outliers: Outliers | None = None) -> ReferenceModel:
    torch.manual_seed(0)
    network = VisionTransformer(config).eval()
    randomise(network)
    return vit.FAMILY.reference(config, add_outliers(network, outliers))


def half(model: ReferenceModel, folder: Path, img: int | None = None) -> ExportReport:
    report = onnx_from_model(model, out=folder / "m.onnx", img=img, precision=PrecisionOptions("fp16"))
    assert report.parity is not None
    assert report.parity.ok
    assert all(one.limit_ratio < 0.25 for one in report.parity.differences), (
        report.parity.differences
    )  # of the tolerance
    return report


def test_the_outliers_are_those_of_trained_transformers() -> None:
    network = transformer(replace(SMALL, dim=512, heads=8, depth=4)).module
    assert isinstance(network, VisionTransformer)
    streams, norms = [], []
    for block in network.blocks:
        block.register_forward_hook(lambda *given: streams.append(given[-1][0].abs()))
        block.norm2.register_forward_hook(lambda *given: norms.append(given[-1][0].abs()))  # type: ignore[union-attr]
    with torch.inference_mode():
        network(torch.randn(1, 3, 32, 32))
    massive = [float(stream.max()) for stream in streams]
    assert massive[0] < 40  # they appear in the second block and stay
    assert 100 < massive[1] < 1.1 * massive[2]
    assert massive[1] > 200 * float(streams[1].median())
    assert int(streams[1].amax(1).argmax()) == 0  # at one token
    by_channel = norms[0].amax(0)
    assert float(by_channel.max()) > 8 * float(by_channel.median())


def test_a_vitdet_has_them_in_the_first_cell_of_its_map() -> None:
    torch.manual_seed(0)
    network = PlainBackbone(VitDetConfig(512, 4, 8, 512, (1, 3), patch=8, map_size=8, pretrained=8, window=3)).eval()
    randomise(network)
    add_outliers(network)
    streams = []
    for block in network.blocks:
        block.register_forward_hook(lambda *given: streams.append(given[-1][0].abs()))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 64))
    assert float(streams[0].max()) < 40
    for stream in streams[1:3]:
        cells = stream.amax(2)
        assert int(cells.argmax()) == 0
        assert float(cells[0, 0]) > max(100.0, 3 * float(cells[1:].max()))


@pytest.mark.parametrize("massive", [pytest.param(1000.0, marks=slow), 300_000.0])
def test_fp16_holds_the_tolerance_with_outliers(tmp_path: Path, massive: float) -> None:
    report = half(transformer(SMALL, Outliers(massive=massive, logits=400.0)), tmp_path, 32)
    assert report.precision is not None
    done = report.precision.half
    assert done is not None
    kept = done.kept["range"]
    assert sum("softmax" in name for name in kept) >= 2  # logits over LARGEST_LOGIT
    assert sum("layer_norm" in name for name in kept) >= 2  # what they are given is over LARGEST_SQUARED
    assert LARGEST_LOGIT < LARGEST_SQUARED < done.largest[0] <= LARGEST
    assert any("MatMul" in name or "add" in name for name in kept) == (massive > LARGEST)


def whole(name: str) -> ReferenceModel:
    """A published network."""
    torch.manual_seed(0)
    model = create_model(name)
    randomise(model.module)
    add_outliers(model.module)
    return model


@slow
@pytest.mark.parametrize("name", ["cmt-ti", "crossformer-t", "mae-vit-l16", "mae-vit-h14"])
def test_fp16_of_whole_networks_holds_the_tolerance_with_outliers(tmp_path: Path, name: str) -> None:
    report = half(whole(name), tmp_path)
    assert report.precision is not None
    assert report.precision.half is not None
    assert report.precision.half.kept["range"]


@slow
@pytest.mark.parametrize("name", ["cmt-ti", "crossformer-t"])
def test_int8_of_whole_networks_loses_less_when_it_is_smoothed(tmp_path: Path, name: str) -> None:
    for i in range(4):
        noise = cv2.GaussianBlur(np.random.default_rng(i).integers(0, 256, (300, 300, 3), np.uint8), (0, 0), 3 * i + 1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX))
    model = whole(name)
    asked = PrecisionOptions("int8", calibration=Calibration(tmp_path), nodes_to_exclude="none", cache=False)
    report = onnx_from_model(model, out=tmp_path / "m.onnx", precision=asked)
    assert report.precision is not None
    assert report.precision.quantised is not None
    folds = report.precision.quantised.folds
    assert folds is not None
    assert folds.errors[folds.taken[-1]] < 0.75 * folds.errors["none"]
