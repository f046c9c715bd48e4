"""``--layout ultralytics``: the outputs and metadata of that package, read back without our spec."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

import deploykit
from deploykit.errors import UsageError
from deploykit.export.options import OnnxOptions
from deploykit.export.parity.inputs import sample_image
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.spec import reference_of
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.backends.ort import open_session
from deploykit.runtime.images.reading import read_image
from deploykit.spec import METADATA_KEY
from tests.narrow import model_of

PACKAGED = OnnxOptions(layout="ultralytics")
TASKS = {
    "yolo26n": "detect",
    "yolov8n": "detect",
    "yolov8n_pose": "pose",
    "yolov8n_seg": "segment",
    "yolov8n_obb": "obb",
}


def narrow(name: str) -> ReferenceModel:
    """A published network of a sixteenth of its width, with two classes, whose scores are high enough to detect."""
    description = replace(variants()[name].description, num_classes=2, width=0.0625, kpt_shape=(3, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = build_graph(description)
        randomise(graph)
    model = reference_of(graph, description, name, "narrow", 64)
    head = graph.model[-1]
    for conv in (branch[-1] for part in ("cv3", "one2one_cv3") for branch in getattr(head, part, ())):
        torch.nn.init.constant_(conv.bias, -0.5)
    return model


def without_spec(file: Path) -> Path:
    """The same file as a stranger's: our spec is taken out."""
    model = onnx.load(file)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    assert len(kept) == len(model.metadata_props) - 1
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    out = file.with_name(f"foreign-{file.name}")
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(
    "name", [n if n in ("yolo26n", "yolov8n_pose") else pytest.param(n, marks=pytest.mark.slow) for n in TASKS]
)
def test_a_stranger_finds_what_we_find(name: str, tmp_path: Path) -> None:
    """By the metadata alone, the runtime drafts a spec that gives the same objects as the spec in the file."""
    report = onnx_from_model(narrow(name), out=tmp_path / "m.onnx", options=PACKAGED)
    assert report.parity is not None
    assert report.parity.ok
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["task"] == TASKS[name]
    assert ast.literal_eval(metadata["names"]) == {0: "class 0", 1: "class 1"}
    assert ast.literal_eval(metadata["imgsz"]) == [64, 64]
    assert ast.literal_eval(metadata["stride"]) == 32
    assert metadata["end2end"] == str(name == "yolo26n")
    assert ast.literal_eval(metadata.get("kpt_shape", "[]")) == ([3, 2] if "pose" in name else [])
    image = cv2.resize(read_image(sample_image()), (96, 60))
    with deploykit.load(tmp_path / "m.onnx") as ours, deploykit.load(without_spec(tmp_path / "m.onnx")) as theirs:
        assert ours.spec.output_names[0] == "output0"
        assert theirs.spec.output == ours.spec.output
        a, b = ours(image), theirs(image)
    assert len(a.scores) > 0
    for field in ("boxes", "scores", "labels", "keypoints", "masks", "rotated"):
        assert np.array_equal(getattr(a, field), getattr(b, field)) or getattr(a, field) is getattr(b, field) is None


@pytest.mark.slow
def test_rows_are_those_of_our_own_layout(tmp_path: Path) -> None:
    """The same numbers, transposed."""
    found = []
    for options in (OnnxOptions(), PACKAGED):
        onnx_from_model(narrow("yolov8n"), out=tmp_path / "m.onnx", options=options)
        with open_session(tmp_path / "m.onnx", provider="cpu") as session:
            noise = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
            found.append(next(iter(session.run({"images": noise}).values())))
    assert found[1].shape == (1, 6, 84)
    assert np.abs(found[0] - found[1].transpose(0, 2, 1)).max() <= 1e-4


def test_a_classifier_gives_probabilities(tmp_path: Path) -> None:
    report = onnx_from_model(narrow("yolov8n_cls"), out=tmp_path / "m.onnx", options=PACKAGED)
    assert report.spec.output.describe(report.spec) == "probabilities of 2 classes of the image"
    assert {e.key: e.value for e in onnx.load(tmp_path / "m.onnx").metadata_props}["task"] == "classify"


def test_other_outputs_and_nms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without an objectness"):
        onnx_from_model(model_of("few"), out=tmp_path / "m.onnx", options=PACKAGED)
    with pytest.raises(UsageError, match="goes with --nms none"):
        onnx_from_model(narrow("yolov8n"), out=tmp_path / "m.onnx", options=replace(PACKAGED, nms="graph"))
