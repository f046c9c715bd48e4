"""Created checkpoints of the ultralytics package's networks are as the package writes them, and are read back."""

from __future__ import annotations

import hashlib
import pickletools
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from deploykit.models.checkpoint.reader import Checkpoint, read_checkpoint
from deploykit.models.create.package_format import PACKAGE_CLASSES, package_checkpoint
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.models.families.ultralytics.build import REPEATED, STACKS
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from tests.meta_model import meta_model
from tests.narrow_free import CLASSES, narrow_description, narrow_graph

NARROW = (
    "yolov8n", "yolov8n-p6", "yolov8n-obb", "yolov8n-cls", "yolo11m", "yolo11n-pose", "yolo12l-seg", "yolo26n-seg",
    "yolo26n-pose", "yolo26n-obb", "yolov10s", "yolov9t", "yolov9e", "yolov5nu", "yolov3-sppu", "yolov3-tinyu",
)  # fmt: skip
GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
FILES = (
    "yolov8n-detect", "yolov8n-pose", "yolov8n-seg", "yolov8n-obb", "yolov8n-cls", "yolo11m-detect", "yolo11n-pose",
    "yolo26n-detect", "yolo26n-pose", "yolo26n-seg", "yolov10n", "yolo12n", "yolov9t", "yolov5nu",
)  # fmt: skip


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_network_is_read_back(name: str, tmp_path: Path) -> None:
    description = narrow_description(name, kpt_shape=(5, 2))
    graph = narrow_graph(description)
    for tensor in graph.state_dict().values():  # what half precision holds exactly
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    file = tmp_path / "m.pt"
    file.write_bytes(package_checkpoint(graph, description, name, CLASSES, 64, random_seed=3))
    model = load_model(file)
    assert (model.spec.classes, model.spec.task) == (CLASSES, HEADS[description.head])
    assert model.spec.keypoints is None or len(model.spec.keypoints.names) == 5
    expected = graph.state_dict()
    found = model.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
    images = torch.rand(1, 3, *model.spec.input.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model.module(images), graph(images), rtol=0, atol=0)
    said = [note for note in model.notes if "branch" not in note and "--preprocessing" not in note]
    assert said == ["random weights (seed 3): predictions are meaningless"]


@pytest.mark.parametrize("name", ["yolo11n-pose", "yolo26n-obb", "yolov5nu", "yolov8n-cls"])
def test_a_created_file_is_the_published_network(name: str, tmp_path: Path) -> None:
    """One of each task that has keypoints, an angle, rows or logits."""
    files = [create_checkpoint(name, tmp_path / f"{i}.pt", seed=seed) for i, seed in enumerate((1, 1, 2))]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert digests[0] == digests[1] != digests[2]
    model = load_model(files[0])
    assert model.name == name
    told = replace(model.spec, assumptions=())
    assert told == replace(meta_model(name).spec, source=model.spec.source)


def test_it_names_the_packages_classes_and_none_of_ours(tmp_path: Path) -> None:
    description = narrow_description("yolo26n-pose")
    file = tmp_path / "m.pt"
    file.write_bytes(package_checkpoint(narrow_graph(description), description, "yolo26n-pose", CLASSES, 64))
    with zipfile.ZipFile(file) as archive:
        content = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    named = {argument.split()[0] for op, argument, _ in pickletools.genops(content) if op.name == "GLOBAL"}
    assert "ultralytics.nn.tasks" in named
    assert {module.split(".")[0] for module in named} == {"ultralytics", "torch", "collections", "__builtin__"}
    assert b"deploykit" not in content


def test_every_layer_of_a_description_has_a_class_of_the_package() -> None:
    ours = {*REPEATED.values(), *STACKS.values()}
    for name in variants():
        ours |= (
            {type(m) for m in meta_model(name).module.modules()} if name in ("yolo26n_pose", "yolo26n_seg") else set()
        )
    ours = {kind for kind in ours if kind.__module__.startswith("deploykit.") and kind is not LayerGraph}
    inside = {kind for kind in ours if kind.__name__.startswith("_")}  # written as what it stands for
    assert not {kind.__name__ for kind in ours - inside if kind not in PACKAGE_CLASSES}, "add a line to PACKAGE_CLASSES"


TRAINING = ("flow_model", "cv4_sigma", "semseg")
NOT_OURS = {"anchors", "strides", "shape", "transforms", "args", "yaml", "training", "kpt_names", "kpt_oks_sigmas"}
"""What a file keeps of its training, of the last image that it saw, or in other words."""


@pytest.mark.parametrize("name", FILES)
def test_the_module_tree_is_that_of_the_packages_own_file(name: str, tmp_path: Path) -> None:
    file = GOLDEN / f"{name}-narrow.pt"
    if not file.is_file():
        pytest.skip("the golden files are not here")
    theirs = read_checkpoint(file)
    model = load_model(file)
    description = replace(Description.from_yaml(cast(dict[str, Any], theirs.yaml)), strides=())
    names = theirs.names or ()
    again = tmp_path / "m.pt"
    again.write_bytes(package_checkpoint(cast(LayerGraph, model.module), description, name, names, 640))
    ours = read_checkpoint(again)
    assert kinds_of(ours) == kinds_of(theirs)
    assert ours.names == theirs.names
    for path, facts in attributes_of(theirs).items():
        assert attributes_of(ours)[path].items() >= facts.items(), path


def kinds_of(checkpoint: Checkpoint) -> dict[str, str]:
    return {m.path: m.kind for m in checkpoint.modules if not any(part in m.path for part in TRAINING)}


def attributes_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The attributes of the package's own modules, but for the count of parameters where training has more."""
    found = {}
    for module in checkpoint.modules:
        if module.kind.startswith("ultralytics.") and not any(part in module.path for part in TRAINING):
            facts = {key: value for key, value in module.attributes.items() if key not in NOT_OURS}
            if module.kind.endswith("26"):
                facts.pop("np", None)
            found[module.path] = facts
    return found
