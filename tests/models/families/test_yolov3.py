"""YOLOv3 against the published numbers, and its files, told apart from those of YOLOv5 and YOLOv7."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deploykit.models.create.original_format import original_checkpoint
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.models.families.yolov3 import VARIANTS, config_of, layer_rows
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import create_model, load_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.spec import RawDetections
from tests.meta_model import meta_model
from tests.narrow import graph_of, narrow

# (parameters, folded) as ultralytics/yolov3 and ultralytics/yolov5 report them for 80 classes.
PUBLISHED = {
    "yolov3": (61_949_149, 61_922_845),
    "yolov3_spp": (62_998_749, 62_971_933),
    "yolov3_tiny": (8_852_366, 8_849_182),
}
ROWS = {"yolov3": 25_200, "yolov3_spp": 25_200, "yolov3_tiny": 6_000}
NAMES = ("cat", "dog", "fox")


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_the_published_ones(name: str) -> None:
    model = meta_model(name)
    parameters, folded = PUBLISHED[name]
    norms = sum(m.num_features for m in model.module.modules() if isinstance(m, nn.BatchNorm2d))
    assert (model.parameters, model.parameters - norms) == (parameters, folded), "a folded norm leaves a bias"
    assert (model.spec.input.size, model.stride, len(model.spec.classes)) == ((640, 640), 32, 80)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_are_as_many_as_the_levels_have_cells(name: str) -> None:
    graph = graph_of(config_of(name, 2, width=0.02, depth=0.1))
    with torch.no_grad():
        rows = graph(torch.zeros(1, 3, 640, 640))
        torch.testing.assert_close(fuse_model(graph)(torch.zeros(1, 3, 640, 640)), rows, rtol=1e-5, atol=1e-3)
    assert rows.shape == (1, ROWS[name], 7)


def pickled(tmp_path: Path, config: GraphConfig) -> Path:
    (tmp_path / "best.pt").write_bytes(original_checkpoint(graph_of(config), NAMES))
    return tmp_path / "best.pt"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_file_of_its_own_description_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    model = load_model(pickled(tmp_path, narrow(name)))
    assert (model.name, model.family) == (f"{name.replace('_', '-')}-depth-0.1-width-0.125", "YOLOv3")
    assert (model.spec.classes, model.notes, model.spec.assumptions) == (NAMES, (), ())
    expected = graph_of(narrow(name)).half().float()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.module(images), expected(images))


@pytest.mark.parametrize("name", ["yolov3_tiny", "yolov5n", "yolov7_tiny"])
def test_one_class_scores_as_the_project_that_a_file_is_of(tmp_path: Path, name: str) -> None:
    """YOLOv7's files have an attribute that those of the others lack; without it the class counts."""
    model = load_model(create_checkpoint(name, tmp_path / "one.pt", num_classes=1))
    assert isinstance(model.spec.output, RawDetections)
    assert model.spec.output.cls_counts is (name != "yolov7_tiny")
    assert model.spec.output == create_model(name, num_classes=1).spec.output


def test_a_kernel_may_be_described_by_two_numbers(tmp_path: Path) -> None:
    """As YOLOv7's baseline and the older YOLOv5 have it; the stride is left out there."""
    rows = layer_rows("yolov3")
    rows[12] = [-1, 1, "Conv", [512, [1, 1]]]
    assert load_model(pickled(tmp_path, replace(narrow("yolov3"), rows=tuple(rows)))).family == "YOLOv3"


def test_other_layers_are_not_called_yolov3(tmp_path: Path) -> None:
    rows = layer_rows("yolov3_tiny")
    rows[11:13] = [[-1, 1, "nn.Identity", []], [-1, 1, "SP", [3]]]
    model = load_model(pickled(tmp_path, replace(narrow("yolov3_tiny"), rows=tuple(rows))))
    assert (model.name, model.family) == ("yolov7-custom", "YOLOv7")


def test_a_state_dict_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    torch.save(graph_of(config_of("yolov3_tiny", 3)).state_dict(), tmp_path / "plain.pt")
    model = load_model(tmp_path / "plain.pt")
    assert (model.name, model.family) == ("yolov3-tiny", "YOLOv3")
    assert model.spec.assumptions == (
        "SiLU activations and a batch-norm eps of 0.001, as yolov3-tiny has them: no tensor tells",
    )
