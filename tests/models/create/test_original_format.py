"""Created checkpoints are those of the original projects: our reader reads them like released ones, others run them."""

from __future__ import annotations

import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.create import original_format as module
from deploykit.models.create.original_format import ORIGINALS, has_original_format, original_checkpoint
from deploykit.models.create.random_weights import create_checkpoint, randomise
from deploykit.models.families import kapao, yolov5
from deploykit.models.families.yolov7 import VARIANTS, config_of
from deploykit.models.layers.anchor_head import Keypoint
from deploykit.models.layers.conv import Add, Concat, ReOrg, Shortcut
from deploykit.models.layers.pool import SP
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import LayerGraph, build_graph
from deploykit.models.yolo_graph.layer_table import CONVOLUTIONS, HEADS, SAME_CHANNELS, STACKS
from tests.narrow import older_layers

CASES = [(name, training) for name in VARIANTS for training in (False, True) if not (training and "pose" in name)]
NAMES = ("cat", "dog")


def graph_of(config: GraphConfig) -> LayerGraph:
    """With random weights that half precision holds exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        graph = build_graph(config)
        randomise(graph)
    for tensor in graph.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return graph


@pytest.fixture(scope="module")
def graphs() -> dict[tuple[str, bool], LayerGraph]:
    return {case: graph_of(config_of(case[0], 2, training=case[1], width=0.0625)) for case in CASES}


@pytest.fixture(scope="module")
def files(graphs: dict[tuple[str, bool], LayerGraph], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("original")
    found = {}
    for (name, training), graph in graphs.items():
        found[f"{name} {training}"] = folder / f"{name}-{training}.pt"
        found[f"{name} {training}"].write_bytes(original_checkpoint(graph, NAMES, random_seed=3))
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def computed(files: dict[str, Path], images: torch.Tensor, root: Path) -> dict[str, np.ndarray]:
    """What a project that unpickles the files computes with them."""
    given = next(iter(files.values())).with_name("images.npy")
    np.save(given, images.numpy())
    script = root / "tests" / "models" / "create" / "original_project.py"
    words = [sys.executable, str(script), str(given), *map(str, files.values())]
    done = subprocess.run(words, cwd=given.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {case: np.load(f"{file}.npy") for case, file in files.items()}


@pytest.mark.parametrize(("name", "training"), CASES)
def test_our_reader_reads_it_like_a_released_file(
    name: str, training: bool, graphs: dict[tuple[str, bool], LayerGraph], files: dict[str, Path]
) -> None:
    graph, file = graphs[name, training], files[f"{name} {training}"]
    found = read_checkpoint(file)
    assert (found.names, found.stride, found.entry) == (NAMES, graph.head.stride, "model")
    assert found.modules[0].kind == "models.yolo.Model"
    assert found.modules[0].attributes["nc"] == 2
    assert set(found.metadata) == {"training_results", "epoch", "random_seed"}
    model = load_model(file)
    assert model.name == f"{name.replace('_', '-')}-width-0.0625"
    assert model.notes[-1] == "random weights (seed 3): predictions are meaningless"
    expected = graph.state_dict()
    assert list(expected) == list(found.state_dict)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.module.state_dict().items())


@pytest.mark.parametrize(("name", "training"), CASES)
def test_a_project_that_unpickles_it_computes_the_same(
    name: str, training: bool, graphs: dict[tuple[str, bool], LayerGraph], images: torch.Tensor,
    computed: dict[str, np.ndarray],
) -> None:  # fmt: skip
    with torch.no_grad():
        ours = graphs[name, training](images).numpy()
    theirs = computed[f"{name} {training}"]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 2e-3  # pixels, over 16 to 256 layers in float32
    assert np.abs(ours[0, :, :4] - ours[1, :, :4]).max() > 0.1


def test_it_names_the_originals_classes_and_none_of_ours(files: dict[str, Path]) -> None:
    for file in files.values():
        with zipfile.ZipFile(file) as archive:
            pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
        named = {argument.split()[0] for op, argument, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
        assert {"models.yolo", "models.common"} < named
        assert not [
            name for name in named if name.split(".")[0] not in ("models", "torch", "collections", "__builtin__")
        ]
        assert b"deploykit" not in pickled


def test_torch_itself_will_not_load_it_as_weights_only(files: dict[str, Path]) -> None:
    with pytest.raises(Exception, match=r"models\.yolo\.Model"):
        torch.load(next(iter(files.values())), weights_only=True)


POSE = {"num_keypoints": 3}
OTHERS: dict[str, tuple[GraphConfig, bool]] = {
    "yolov5n": (yolov5.config_of("yolov5n", 2, width=0.0625), False),
    "yolov5s6": (yolov5.config_of("yolov5s6", 2, width=0.0625), False),
    "3.1": (yolov5.config_of("yolov5s", 2, width=0.0625, generation=3), True),
    "5.0": (yolov5.config_of("yolov5s6", 2, width=0.0625, generation=5), True),
    "YOLO-Pose": (yolov5.config_of("yolov5s6_pose", 1, width=0.0625, **POSE), True),  # type: ignore[arg-type]
    "ti_lite": (yolov5.config_of("yolov5s6_pose_ti_lite", 1, width=0.0625, **POSE), True),  # type: ignore[arg-type]
    "ghost": (older_layers(num_keypoints=3), True),
    "KaPao": (kapao.config_of("kapao_s", 4, width=0.0625), True),
}
"""A narrow model of each other project, and whether the project keeps the anchors in pixels."""


@pytest.fixture(scope="module")
def others(
    tmp_path_factory: pytest.TempPathFactory, images: torch.Tensor, root: Path
) -> dict[str, tuple[LayerGraph, Path]]:
    """The models and their files, beside which lies what a project that unpickles them computes."""
    folder, made = tmp_path_factory.mktemp("others"), {}
    for project, (config, _) in OTHERS.items():
        graph = graph_of(config)
        if project == "YOLO-Pose":
            graph.model[0].rows_first = False  # type: ignore[assignment]
        made[project] = graph, folder / f"{project}.pt"
        names = NAMES * 2 if project == "KaPao" else NAMES[: config.num_classes]
        made[project][1].write_bytes(original_checkpoint(graph, names, random_seed=3))
    np.save(folder / "images.npy", images.numpy())
    script = root / "tests" / "models" / "create" / "original_project.py"
    words = [sys.executable, script, folder / "images.npy", *(file for _, file in made.values())]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("project", OTHERS)
def test_the_other_projects_are_written_as_they_do(
    project: str, others: dict[str, tuple[LayerGraph, Path]], images: torch.Tensor
) -> None:
    (config, in_pixels), (graph, file) = OTHERS[project], others[project]
    found = read_checkpoint(file)
    assert (len(found.names or ()), found.stride) == (config.num_classes, graph.head.stride)
    assert any(key.endswith("anchor_grid") for key in found.state_dict) == in_pixels
    expected, again = graph.state_dict(), load_model(file)
    assert all(torch.equal(t, expected[key]) for key, t in again.module.state_dict().items())
    # A description with blocks of 3.1 says nothing of activations, and of that release Hardswish is known.
    assert project == "ghost" or not [note for note in again.notes if "description does not say so" in note]
    with torch.no_grad():
        assert torch.equal(again.module(images), graph(images))
        np.testing.assert_allclose(np.load(f"{file}.npy"), graph(images).numpy(), atol=2e-3)


def test_every_layer_of_a_description_has_an_original() -> None:
    tables = (CONVOLUTIONS, STACKS, SAME_CHANNELS, HEADS)
    ours = {*(kind for table in tables for kind in table.values()), Concat, Shortcut, Add, ReOrg, Keypoint, PoseObject}
    ours -= {kind for kind in ours if kind.__module__.startswith("torch.nn.")}  # which stay themselves
    assert not {kind.__name__ for kind in ours if kind not in ORIGINALS}, "add a line to ORIGINALS"


def test_what_has_no_original_is_written_as_a_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_model(create_checkpoint("yolov7-tiny", tmp_path / "whole.pt", num_classes=2))
    monkeypatch.delitem(module.ORIGINALS, SP)
    file = create_checkpoint("yolov7-tiny", tmp_path / "plain.pt", num_classes=2)
    assert read_checkpoint(file).modules == ()
    plain = load_model(file)
    assert (plain.name, plain.spec.classes, plain.notes) == (whole.name, whole.spec.classes, whole.notes)
    expected = whole.module.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in plain.module.state_dict().items())


def test_a_folded_graph_has_no_original(graphs: dict[tuple[str, bool], LayerGraph]) -> None:
    graph = graphs["yolov7_tiny", True]
    assert has_original_format(graph)
    assert not has_original_format(graph.fuse())
    assert not has_original_format(graph.model)


@pytest.mark.data
def test_the_module_tree_is_that_of_the_released_file(shared: Path, tmp_path: Path) -> None:
    theirs = read_checkpoint(shared / "data" / "weights" / "official_yolov7-tiny.structure-randomfill.pt")
    ours = read_checkpoint(create_checkpoint("yolov7-tiny", tmp_path / "tiny.pt"))
    assert [(m.path, m.kind) for m in ours.modules] == [(m.path, m.kind) for m in theirs.modules]
    assert list(ours.state_dict) == list(theirs.state_dict)
    assert {k: (t.shape, t.dtype) for k, t in ours.state_dict.items()} == {
        k: (t.shape, t.dtype) for k, t in theirs.state_dict.items()
    }
    assert ours.names == theirs.names
    later = {"inplace", "traced", "recompute_scale_factor"}  # what later versions of the original and of torch add
    for a, b in zip(ours.modules, theirs.modules, strict=True):
        assert set(b.attributes) <= set(a.attributes) | {"yaml_file"}
        assert set(a.attributes) - set(b.attributes) <= later
        for name in set(b.attributes) - {"yaml", "yaml_file", "grid", "inplace"}:
            assert a.attributes[name] == b.attributes[name], f"{a.path} {name}"
