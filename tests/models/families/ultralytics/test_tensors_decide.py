"""Where a file's tensors or modules and its description contradict one another, the former hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.models.families.ultralytics.blocks.c2f import SPPF, C3k
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.oriented import Oriented, Oriented26
from deploykit.models.families.ultralytics.heads.pose import FreePose, Pose26
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from tests.models.families.ultralytics.package_files import narrow, network, of_package, output_of, write, yaml_of

V8 = narrow("yolov8n")
FEW = (
    [-1, 1, "Conv", [128, 3, 2]],
    [-1, 1, "C3k2", [256, False, 0.25]],
    [-1, 2, "C3k2", [256, True]],
    [-1, 3, "Conv", [1024, 3, 2]],
    [-1, 2, "A2C2f", [1024, True, 1]],
    [-1, 1, "SPPF", [1024, 5]],
    [[3, 5], 1, "Detect", ["nc"]],
)


def few(**changes: Any) -> Description:
    """A network of seven layers that are built in several ways."""
    return replace(Description(FEW, 3, width=0.0625, depth=0.5, size="n"), **changes)


def loaded(path: Path, graph: LayerGraph, said: Description, **yaml: Any) -> tuple[ReferenceModel, ReferenceModel]:
    """A network read back from its pickled modules, and from its tensors, each with another description."""
    record = of_package(graph, said, yaml=yaml_of(said, **yaml))
    pickled = write(path / "modules.pt", {"model": record})
    tensors = {"model": graph.state_dict(), "yaml": yaml_of(said, **yaml)}
    return load_model(pickled), load_model(write(path / "tensors.pt", tensors))


def assert_tensors_hold(path: Path, graph: LayerGraph, said: Description, **yaml: Any) -> None:
    with pytest.raises(AssertionError):  # the description alone would give other tensors
        assert shapes(network(said)) == shapes(graph)
    for model in loaded(path, graph, said, **yaml):
        assert torch.equal(output_of(model.module), output_of(graph))


def shapes(graph: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in graph.state_dict().items()}


def with_head(graph: LayerGraph, **form: Any) -> LayerGraph:
    """The network with a detection head of another form."""
    old = graph.model[-1]
    assert isinstance(old, FreeDetect)
    torch.manual_seed(3)
    head = FreeDetect(old.num_classes, old.channels, **form).eval().half().float()
    head.set_stride(old.stride)
    graph.model[-1] = head.requires_grad_(False)
    return graph


def test_the_class_branch_is_depthwise_or_not_as_its_tensors_are(tmp_path: Path) -> None:
    """8.3.0 built every head's so, of YOLOv8 too."""
    assert_tensors_hold(tmp_path, with_head(network(V8), depthwise=True), V8)
    assert_tensors_hold(tmp_path, with_head(network(few()), depthwise=False), few())


def test_the_class_branch_is_as_wide_as_its_tensors(tmp_path: Path) -> None:
    """8.0 made it as wide as there are classes, later releases at most 100."""
    description = narrow("yolov8n", 120)
    assert_tensors_hold(tmp_path, with_head(network(description), class_width=120), description)


def test_a_layer_as_wide_as_there_are_classes_was_not_scaled(tmp_path: Path) -> None:
    """Up to 8.4.60, layers of 64 channels kept them in a network of 64 classes."""
    said = few(num_classes=128)
    unscaled = [[-1, 1, "Conv", [2048, 3, 2]], *FEW[1:]]
    assert_tensors_hold(tmp_path, network(replace(said, rows=tuple(unscaled))), said)


@pytest.mark.parametrize("built", ["n", "m", "l"])
@pytest.mark.parametrize("said", ["n", "m", "l"])
def test_blocks_within_are_those_of_the_tensors_and_not_of_the_size(tmp_path: Path, built: str, said: str) -> None:
    graph = network(few(size=built))
    kinds = [any(isinstance(m, C3k) for m in layer.modules()) for layer in graph.model[1:3]]
    assert kinds == [built != "n", True]
    assert ("model.4.gamma" in graph.state_dict()) == (built == "l")
    for model in loaded(tmp_path, graph, few(size=said)):
        assert torch.equal(output_of(model.module), output_of(graph))


def test_a_description_without_a_size_has_the_blocks_that_it_names() -> None:
    assert not any(isinstance(m, C3k) for m in network(few(size="")).model[1].modules())


@pytest.mark.parametrize("depth", [0.3, 0.5, 1.0])
def test_repeats_are_those_of_the_tensors(tmp_path: Path, depth: float) -> None:
    """A convolution that is repeated has one number more in its names."""
    graph = network(few(depth=depth))
    assert ("model.3.0.conv.weight" in graph.state_dict()) == (depth > 0.3)
    for model in loaded(tmp_path, graph, few(depth=0.7)):
        assert torch.equal(output_of(model.module), output_of(graph))


def test_widths_within_a_layer_are_those_of_the_tensors(tmp_path: Path) -> None:
    """Descriptions of YOLOv9 give them beside the width, and they are not scaled with it."""
    said = narrow("yolov9t")
    thin = {"RepNCSPELAN4": [8, 8, 2], "ELAN1": [8, 16], "SPPELAN": [24]}
    rows = [[f, n, k, [a[0], *thin[k]] if k in thin else list(a)] for f, n, k, a in said.rows]
    graph = network(replace(said, rows=tuple(rows)))
    assert_tensors_hold(tmp_path, graph, said)
    alone = load_model(write(tmp_path / "alone.pt", {"model": graph.state_dict()}))
    assert alone.family == "YOLOv9"
    assert torch.equal(output_of(alone.module), output_of(graph))


def test_sppf_without_an_activation_is_told_by_its_module_alone(tmp_path: Path) -> None:
    graph = network(V8)
    sppf = graph.model[9]
    assert isinstance(sppf, SPPF)
    usual = output_of(graph)
    sppf.cv1.act = nn.Identity()
    by_modules, by_tensors = loaded(tmp_path, graph, V8)
    assert any("SPPF" in note and "8.4.0 to 8.4.140" in note for note in by_modules.notes)
    assert torch.equal(output_of(by_modules.module), output_of(graph))
    assert torch.equal(output_of(by_tensors.module), usual)
    assert any("SPPF" in said and "8.4.0 to 8.4.140" in said for said in by_tensors.spec.assumptions)


def test_sppf_of_yolo26_has_none_and_adds_its_input(tmp_path: Path) -> None:
    graph = network(narrow("yolo26n"))
    sppf = graph.model[9]
    assert isinstance(sppf, SPPF)
    assert (type(sppf.cv1.act), sppf.add) == (nn.Identity, True)
    for model in loaded(tmp_path, graph, narrow("yolo26n")):
        assert not any("SPPF" in text for text in model.all_notes)
        assert torch.equal(output_of(model.module), output_of(graph))


def test_the_eps_of_batch_norms_is_the_modules_or_that_of_the_task(tmp_path: Path) -> None:
    def found(model: ReferenceModel) -> set[float]:
        return {m.eps for m in model.module.modules() if isinstance(m, nn.BatchNorm2d)}

    for description, eps in ((V8, 1e-3), (narrow("yolov8n_cls"), 1e-5)):
        graph = network(description)
        by_modules, by_tensors = loaded(tmp_path, graph, description)
        assert found(by_modules) == found(by_tensors) == {eps}
        assert f"a batch-norm eps of {eps}" in by_tensors.spec.assumptions[0]
        for module in graph.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 2e-4
        by_modules, _ = loaded(tmp_path, graph, description)
        assert found(by_modules) == {2e-4}
        assert torch.equal(output_of(by_modules.module), output_of(graph))


@pytest.mark.parametrize(
    ("older", "newer", "kinds"),
    [("OBB", "OBB26", (Oriented, Oriented26)), ("Pose", "Pose26", (FreePose, Pose26))],
)
def test_a_head_is_of_the_kind_that_it_says(tmp_path: Path, older: str, newer: str, kinds: Any) -> None:
    """The two oriented heads have the same tensors and other angles; those with keypoints have other equations."""
    rows = {
        kind: (*FEW[:-1], [[3, 5], 1, kind, ["nc", *([1] if "OBB" in kind else ["kpt_shape"])]])
        for kind in (older, newer)
    }
    first, second = (few(rows=rows[kind], reg_max=1, dual=True) for kind in (older, newer))
    outputs = []
    for description, kind in zip((first, second), kinds, strict=True):
        graph = network(description)
        for model in loaded(tmp_path, graph, description):
            assert type(model.module.get_submodule("model.6")) is kind
            assert torch.equal(output_of(model.module), output_of(graph))
        outputs.append((shapes(graph), output_of(graph)))
    assert (outputs[0][0] == outputs[1][0]) == (older == "OBB")
    assert not torch.equal(outputs[0][1], outputs[1][1])


def test_a_head_of_another_class_than_its_row_is_refused(tmp_path: Path) -> None:
    rows = (*FEW[:-1], [[3, 5], 1, "OBB26", ["nc", 1]])
    record = of_package(
        network(few(rows=rows)), few(rows=rows), yaml=yaml_of(few(rows=(*rows[:-1], [[3, 5], 1, "OBB", ["nc"]])))
    )
    with pytest.raises(CheckpointError, match=r"head of the pickled model is OBB26, and OBB by its layer description"):
        load_model(write(tmp_path / "m.pt", {"model": record}))


def test_keypoints_without_visibility_have_two_columns(tmp_path: Path) -> None:
    description = narrow("yolov8n_pose", 1, kpt_shape=(5, 2))
    graph = network(description)
    for model in loaded(tmp_path, graph, description):
        output = model.spec.output
        assert (output.keypoints, output.kpt_dims) == ((5, 15), 2)
        assert torch.equal(output_of(model.module), output_of(graph))


@pytest.mark.parametrize(("name", "value"), [("n", 7), ("num_heads", 5), ("area", 3), ("num_heads", "x")])
def test_numbers_of_a_module_that_do_not_fit_its_tensors_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    graph = network(few())
    for module in graph.modules():
        if hasattr(module, name):
            setattr(module, name, value)
    with pytest.raises(CheckpointError, match=r"layer [45] |cannot be rebuilt"):
        load_model(write(tmp_path / "m.pt", {"model": of_package(graph, few())}))
