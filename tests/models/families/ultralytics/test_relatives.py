"""Networks of the ultralytics package that are not built are refused by what they are, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.errors import CheckpointError, UnknownLayerError
from deploykit.models.create.original_format import StandIn, module_record
from deploykit.models.registry import load_model
from tests.models.families.ultralytics.package_files import narrow, network, of_package, write, yaml_of

V8 = narrow("yolov8n")
TO_DO = r"export it to ONNX with the package itself.*docs/guides/foreign-onnx\.md"


def described(kind: str = "DetectionModel", **yaml: Any) -> StandIn:
    """A pickled network of another class or description, with YOLOv8's weights."""
    record = of_package(network(V8), V8, yaml=yaml_of(V8, **yaml))
    own = {key: value for key, value in vars(record).items() if not key.startswith("_")}
    return module_record(f"ultralytics.nn.tasks.{kind}", modules=vars(record)["_modules"], attributes=own)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("WorldModel", "YOLO-World, whose classes are texts"),
        ("YOLOEModel", "YOLOE"),
        ("YOLOESegModel", "YOLOE"),
        ("RTDETRDetectionModel", "RT-DETR"),
        ("SemanticModel", "gives every pixel a class"),
        ("DepthModel", "estimates depth"),
    ],
)
def test_a_relative_is_named_by_its_class(tmp_path: Path, kind: str, what: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{what}.*tasks\.{kind}.*{TO_DO}"):
        load_model(write(tmp_path / "m.pt", {"model": described(kind)}))


@pytest.mark.parametrize("pickled", [True, False], ids=["modules", "tensors"])
@pytest.mark.parametrize(
    ("layer", "what"),
    [
        ("GhostConv", "a network of ghost convolutions"),
        ("C3Ghost", "a network of ghost convolutions"),
        ("RTDETRDecoder", "RT-DETR"),
        ("WorldDetect", "YOLO-World"),
        ("YOLOESegment", "YOLOE"),
        ("SemanticSegment", "gives every pixel a class"),
        ("Depth", "estimates depth"),
    ],
)
def test_a_relative_is_named_by_its_layers(tmp_path: Path, layer: str, what: str, pickled: bool) -> None:
    rows = [list(row) for row in V8.rows]
    rows[2 if "Ghost" in layer else -1][2] = layer
    yaml = yaml_of(V8, backbone=rows[:10], head=rows[10:])
    tensors = {"model": network(V8).state_dict(), "yaml": yaml}
    content = {"model": described(**yaml)} if pickled else tensors
    with pytest.raises(CheckpointError, match=rf"{what}.*the layer {layer}.*{TO_DO}"):
        load_model(write(tmp_path / "m.pt", content))


def test_a_layer_of_nobody_is_named_with_what_there_is(tmp_path: Path) -> None:
    rows = [list(row) for row in V8.rows]
    rows[2][2] = "Mystery"
    with pytest.raises(UnknownLayerError, match=rf"layer 2 .*'Mystery'.*{TO_DO}\); it has A2C2f.*Conv"):
        load_model(write(tmp_path / "m.pt", {"model": described(backbone=rows[:10], head=rows[10:])}))


def test_training_for_int8_is_named_by_its_entry_and_by_its_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training for int8.*'modelopt'.*save the model without it"):
        load_model(write(tmp_path / "a.pt", {"model": described(), "modelopt": {"mode": "quantize"}}))
    state = {**network(V8).state_dict(), "model.0.conv._input_quantizer._amax": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"quantizers of quantization-aware training.*give the file of before"):
        load_model(write(tmp_path / "b.pt", {"model": state}))
    load_model(write(tmp_path / "c.pt", {"model": described(), "modelopt": None}))


def test_a_pickled_network_without_a_description_is_refused(tmp_path: Path) -> None:
    record = described()
    del record.__dict__["yaml"]
    with pytest.raises(CheckpointError, match=r"of the ultralytics package .*DetectionModel.* has no description"):
        load_model(write(tmp_path / "m.pt", {"model": record}))
