"""The forms in which networks of the ultralytics package are saved, and what of a file decides what is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.create.original_format import StandIn, module_record
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import ReferenceModel, load_model
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import EndToEndRows, RawDetections
from tests.models.families.ultralytics.package_files import (
    Bound,
    narrow,
    network,
    of_package,
    output_of,
    write,
    yaml_of,
)

V8 = narrow("yolov8n")
V26 = narrow("yolo26n")


def loaded(path: Path, content: Any, **loading: Any) -> ReferenceModel:
    return load_model(write(path / "m.pt", content), loading=LoadOptions(**loading) if loading else None)


def assert_same(model: ReferenceModel, graph: nn.Module) -> None:
    assert torch.equal(output_of(model.module), output_of(graph))


def yolo_object(record: StandIn, *, module: bool) -> StandIn:
    """The object that a user of the package holds: a module since 8.1, and before an object with an attribute."""
    if module:
        return module_record(
            "ultralytics.models.yolo.model.YOLO", modules={"model": record}, attributes={"task": "detect"}
        )
    around = module_record("ultralytics.yolo.engine.model.YOLO")
    around.__dict__.clear()
    around.__dict__.update(model=record, task="detect", ckpt_path="yolov8n.pt", predictor=None)
    return around


FORMS: dict[str, Any] = {
    "stripped": lambda record: {"model": record, "ema": None, "epoch": -1, "train_args": {"imgsz": 96}},
    "in training": lambda record: {"model": None, "ema": record, "updates": 7, "epoch": 3},
    "the network itself": lambda record: record,
    "a YOLO object": lambda record: yolo_object(record, module=False),
    "a YOLO module": lambda record: yolo_object(record, module=True),
    "a YOLO object in an entry": lambda record: {"model": yolo_object(record, module=False), "epoch": 1},
    "DataParallel": lambda record: module_record(
        "torch.nn.parallel.data_parallel.DataParallel", modules={"module": record}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_found_whatever_is_around_it(tmp_path: Path, form: str) -> None:
    graph = network(V8)
    model = loaded(tmp_path, FORMS[form](of_package(graph, V8, names={0: "a", 1: "b\u00e9", 2: "c"})))
    assert (model.family, model.spec.classes, model.spec.assumptions) == ("YOLOv8", ("a", "b\u00e9", "c"), ())
    assert model.spec.input.size == ((96, 96) if form == "stripped" else (640, 640))
    assert_same(model, graph)


def test_the_average_is_taken_before_the_network_that_was_trained(tmp_path: Path) -> None:
    average, trained = network(V8, seed=1), network(V8, seed=2)
    content = {"model": of_package(trained, V8), "ema": of_package(average, V8)}
    assert_same(loaded(tmp_path, content), average)
    assert_same(loaded(tmp_path, content, entry="model"), trained)


def test_old_module_paths_and_multiples_are_the_same_network(tmp_path: Path) -> None:
    """8.0.0 wrote one description per size, with widths that are clipped already, and flat module paths."""
    graph = network(V8)
    yaml = yaml_of(V8, depth_multiple=V8.depth, width_multiple=V8.width)
    del yaml["scales"], yaml["scale"]
    assert_same(loaded(tmp_path, {"model": of_package(graph, V8, yaml=yaml, flat=True)}), graph)


def test_multiples_and_scales_describe_the_same_widths() -> None:
    large = replace(V8, width=1.25, max_channels=512, size="x")
    clipped = [
        [f, n, k, [min(a[0], 512), *a[1:]] if k in ("Conv", "C2f", "SPPF") else list(a)] for f, n, k, a in V8.rows
    ]
    old = {
        "nc": 3,
        "depth_multiple": large.depth,
        "width_multiple": 1.25,
        "backbone": clipped[:10],
        "head": clipped[10:],
    }
    from_scales, from_multiples = (Description.from_yaml(y) for y in (yaml_of(large), old))
    assert shapes(from_scales) == shapes(from_multiples)
    unnamed = yaml_of(large)
    del unnamed["scale"]
    assert Description.from_yaml(unnamed).width == 1.25, "the first of the scales, where none is named"


def shapes(description: Description) -> dict[str, torch.Size]:
    from deploykit.models.families.ultralytics.build import build_graph

    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in build_graph(description).state_dict().items()}


def test_bound_methods_are_not_called(tmp_path: Path) -> None:
    """Releases up to 8.1 left one in heads, and folding leaves one in each convolution."""
    graph = network(narrow("yolov8n_seg"))
    record = of_package(graph, narrow("yolov8n_seg"))
    record.__dict__["detect"] = Bound(type(record), "forward")
    record.__dict__["forward"] = Bound(record, "forward_fuse")
    model = loaded(tmp_path, {"model": record})
    assert any("getattr" in note and "not called" in note for note in model.notes)
    assert_same(model, graph)


@pytest.mark.parametrize("description", [V8, narrow("yolov9t"), narrow("yolov8n_cls")], ids=["v8", "v9", "cls"])
def test_a_network_that_was_folded_before_it_was_saved(tmp_path: Path, description: Description) -> None:
    folded = fuse_model(network(description)).half().float()
    assert isinstance(folded, LayerGraph)
    model = loaded(tmp_path, {"model": of_package(folded, description, fused=True)})
    assert any("fused its batch norms" in note for note in model.notes)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.module.modules())
    assert_same(model, folded)


@pytest.mark.parametrize("name", ["yolo26n", "yolo26n_pose", "yolo26n_seg", "yolo26n_obb", "yolov10n"])
@pytest.mark.parametrize(("branch", "other"), [("one2one", "one2many"), ("one2many", "one2one")])
def test_folding_left_one_branch_of_two(tmp_path: Path, name: str, branch: Any, other: Any) -> None:
    """Releases 8.4.0 to 8.4.140 kept the one that needs no NMS, later ones keep the other."""
    description = narrow(name)
    graph = network(description)
    graph.model[-1] = graph.model[-1].with_branch(branch)
    folded = fuse_model(graph).half().float()
    assert isinstance(folded, LayerGraph)
    path = write(tmp_path / "m.pt", {"model": of_package(folded, description, fused=True)})
    model = load_model(path)
    assert isinstance(model.spec.output, EndToEndRows if branch == "one2one" else RawDetections)
    assert any("holds the one-to-one branch" in note for note in model.notes) == (branch == "one2one")
    assert_same(model, folded)
    assert_same(load_model(path, loading=LoadOptions(head=branch)), folded)
    with pytest.raises(UsageError, match=f"--head {other} is not in"):
        load_model(path, loading=LoadOptions(head=other))


def test_of_two_branches_the_one_without_nms_is_the_default_and_the_other_has_its_name(tmp_path: Path) -> None:
    graph = network(V26)
    path = write(tmp_path / "m.pt", {"model": of_package(graph, V26)})
    model = load_model(path)
    assert (model.choices, type(model.spec.output)) == (("head",), EndToEndRows)
    assert any("--head one2many" in note for note in model.notes)
    assert_same(model, graph)
    chosen = load_model(path, loading=LoadOptions(head="one2many"))
    assert chosen.spec.output == RawDetections(obj=None, cls=(4, 7))
    graph.model[-1] = graph.model[-1].with_branch("one2many")
    assert_same(chosen, graph)


@pytest.mark.parametrize("name", ["yolov8n", "yolov8n_cls"])
def test_a_branch_of_a_head_that_has_one_is_refused(tmp_path: Path, name: str) -> None:
    description = narrow(name)
    with pytest.raises(UsageError, match="--head"):
        loaded(tmp_path, {"model": of_package(network(description), description)}, head="one2one")


@pytest.mark.parametrize("name", ["yolo26n_seg", "yolo26n_pose"])
def test_tensors_that_only_training_reads_are_left_out(tmp_path: Path, name: str) -> None:
    description = narrow(name)
    graph = network(description)
    extra = {
        "proto.semseg.0.conv.weight": torch.ones(2, 2), "proto.semseg.2.bias": torch.ones(3),
        "flow_model.s.0.0.weight": torch.ones(2, 2), "flow_model.loc": torch.ones(2),
        "cv4_sigma.0.weight": torch.ones(34, 2, 1, 1), "one2one_cv4_sigma.0.bias": torch.ones(34),
    }  # fmt: skip
    state = {**graph.state_dict(), **{f"model.{len(graph.model) - 1}.{key}": t for key, t in extra.items()}}
    model = loaded(tmp_path, {"model": state, "yaml": yaml_of(description)})
    assert "6 of its tensors are for training only, and are left out" in model.notes
    assert_same(model, graph)


def test_other_tensors_too_many_are_refused(tmp_path: Path) -> None:
    graph = network(V8)
    with pytest.raises(CheckpointError, match=r"model\.22\.extra\.weight"):
        loaded(tmp_path, {"model": {**graph.state_dict(), "model.22.extra.weight": torch.ones(1)}, "yaml": yaml_of(V8)})


@pytest.mark.parametrize("half", [True, False], ids=["half", "float"])
@pytest.mark.parametrize("named", [True, False], ids=["names", "no names"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_state_dict_alone_is_recognised(tmp_path: Path, suffix: str, named: bool, half: bool) -> None:
    graph = network(V8)
    state = {key: t.half() if half and t.is_floating_point() else t for key, t in graph.state_dict().items()}
    path = tmp_path / f"m.{suffix}"
    if suffix == "pt":
        torch.save({"model": state, **({"names": ["a", "b", "c"]} if named else {})}, path)
    else:
        save_file(state, path, {"names": "['a', 'b', 'c']"} if named else None)
    model = load_model(path)
    assert (model.family, model.spec.task) == ("YOLOv8", "detect")
    if suffix == "pt":
        assert model.spec.classes == (("a", "b", "c") if named else ("class 0", "class 1", "class 2"))
    assert_same(model, graph)
