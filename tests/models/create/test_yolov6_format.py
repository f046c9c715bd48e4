"""Created YOLOv6 checkpoints are those of the original project: its names and its module tree."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

import pytest
import torch

from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.models.create.yolov6_format import is_current, yolov6_checkpoint
from deploykit.models.families.yolov6.model import VARIANTS
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.registry import load_model
from tests.narrow import free_network_of, shallow, yolov6_config

NAMES = ("cat", "dog", "fox")


def written(name: str, path: Path) -> YOLOv6:
    """A shallow, narrow network with weights that half precision holds exactly, and its file."""
    network = free_network_of(shallow(name))
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    path.write_bytes(yolov6_checkpoint(network, NAMES, random_seed=3))
    return network


@pytest.mark.parametrize("name", ["yolov6n", "yolov6m", "yolov6l", "yolov6n6", "yolov6m6", "yolov6n_qa"])
def test_it_is_read_like_a_released_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "best_ckpt.pt"
    network = written(name, file)
    found = read_checkpoint(file)
    assert (found.names, found.stride, found.entry) == (NAMES, network.head.stride, "model")
    assert found.modules[0].kind == "yolov6.models.yolo.Model"
    assert any(key.endswith(".block.conv.weight") for key in found.state_dict), "the wrappers of 0.4"
    assert {t.dtype for t in found.state_dict.values() if t.is_floating_point()} == {torch.float16}
    model = load_model(file)
    assert model.notes == ("random weights (seed 3): predictions are meaningless",)
    assert model.module.config == network.config
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.module.state_dict().items())


def test_it_names_the_originals_classes_and_none_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    written("yolov6n_qa", file)
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    named = {argument.split()[0] for op, argument, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    assert {"yolov6.models.yolo", "yolov6.layers.common"} < named
    assert {name.split(".")[0] for name in named} <= {"yolov6", "torch", "collections", "__builtin__"}


@pytest.mark.data
def test_the_module_tree_is_that_of_the_originals_code(shared: Path, tmp_path: Path) -> None:
    theirs = read_checkpoint(shared / "golden" / "yolov6n-narrow.pt")
    network = YOLOv6(yolov6_config("yolov6n", 5, width=0.125))
    (tmp_path / "m.pt").write_bytes(yolov6_checkpoint(network, [f"c{i}" for i in range(5)]))
    ours = read_checkpoint(tmp_path / "m.pt")
    assert sorted((m.path, m.kind) for m in ours.modules) == sorted((m.path, m.kind) for m in theirs.modules)
    assert {k: (t.shape, t.dtype) for k, t in ours.state_dict.items()} == {
        k: (t.shape, t.dtype) for k, t in theirs.state_dict.items()
    }
    expected = {m.path: m.attributes for m in theirs.modules}
    for module in ours.modules:
        for name in set(expected[module.path]) - {"training", "inplace"}:
            assert module.attributes[name] == expected[module.path][name], f"{module.path} {name}"


def test_graphs_before_03_are_written_as_state_dicts(tmp_path: Path) -> None:
    with torch.device("meta"):
        current = {name for name, scale in VARIANTS.items() if is_current(YOLOv6(scale.config(1)))}
    assert {name for name in VARIANTS if name not in current} == {n for n in VARIANTS if n.endswith(("_v1", "_v2"))}
    file = create_checkpoint("yolov6n-v1", tmp_path / "m.pt", num_classes=2)
    assert read_checkpoint(file).modules == ()
    model = load_model(file)
    assert (model.name, model.spec.classes) == ("yolov6n-v1", ("class 0", "class 1"))
