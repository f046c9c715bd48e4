"""Attention within areas: which sizes of images its maps can be cut for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import CheckpointError, ImageSizeError
from deploykit.export.options import OnnxOptions
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import open_session
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.families.ultralytics.spec import reference_of
from deploykit.models.families.ultralytics.variants import description_of
from deploykit.models.registry import ReferenceModel


def network(level: int, area: int) -> ReferenceModel:
    """A network of strides 8, 16 and 32 with attention at one of them."""
    layers = [[-1, 1, "Conv", [64, 3, 2]] for _ in range(3 + level)]
    attention = [-1, 1, "A2C2f", [64, True, area]]
    rest = [[-1, 1, "Conv", [64, 3, 2]] for _ in range(2 - level)]
    levels = [2, 3 + (level < 1), 5]
    rows = (*layers, attention, *rest, [levels, 1, "Detect", ["nc"]])
    description = Description(rows, 2, strides=(8, 16, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = build_graph(description)
        randomise(graph)
    return reference_of(graph.eval().requires_grad_(False), description, "areas", "few", 96)


@pytest.mark.parametrize(
    ("level", "area", "stride"), [(0, 4, 32), (1, 1, 32), (1, 4, 32), (1, 16, 64), (2, 4, 64), (2, 16, 128)]
)
def test_sides_are_multiples_for_which_the_areas_are_whole(level: int, area: int, stride: int) -> None:
    model = network(level, area)
    assert model.stride == stride
    assert all(side % stride == 0 for side in model.spec.input.size)
    with torch.inference_mode():
        model.module(torch.zeros(1, 3, stride, 3 * stride))


def test_areas_that_no_size_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match="cannot be cut into the areas"):
        network(2, 3)


def test_the_published_ones_take_every_multiple_of_their_stride() -> None:
    description = description_of("yolo12n")
    model = reference_of(build_graph(description), description, "yolo12n", "YOLO12", 640)
    assert model.stride == 32


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "legacy"])
def test_other_sizes_are_refused_and_a_free_shape_serves_all_that_fit(exporter: Any, tmp_path: Path) -> None:
    model = network(2, 4)
    with pytest.raises(ImageSizeError, match=r"96x96 .* multiples of its stride 64; the next valid size is --img 128"):
        onnx_from_model(model, out=tmp_path / "m.onnx", img=96)
    options = OnnxOptions(exporter=exporter, dynamic="shape")
    report = onnx_from_model(model, out=tmp_path / "m.onnx", img=128, options=options)
    images = torch.rand(1, 3, 64, 192)
    with open_session(report.path) as session, torch.inference_mode():
        found = torch.from_numpy(session.run({"images": images.numpy()})["output"])
        torch.testing.assert_close(found, model.module(images), rtol=1e-4, atol=1e-3)
