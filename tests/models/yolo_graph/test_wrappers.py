"""What is put around a YOLO model before it is saved, and models that only look like one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, UnknownLayerError
from deploykit.models.create.random_weights import randomise
from deploykit.models.families import yolov5, yolov7
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.layer_graph import build_graph

YOLOV5 = yolov5.config_of("yolov5s", 2, width=0.125)
FULL = yolov5.config_of("yolov5n", 2)


class AutoShape(nn.Module):
    """What ``torch.hub.load`` gives: a model, with its description copied from it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.yaml, self.names, self.conf = model.yaml, model.names, 0.25


class DetectMultiBackend(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.names, self.yaml = model, model.names, model.yaml
        self.fp16, self.pt = False, True


class ModelEMA:
    """YOLOv5's average of the weights, which is no module."""

    def __init__(self, model: Any) -> None:
        self.ema, self.updates = model, 100


def graph_of(config: GraphConfig) -> Any:
    torch.manual_seed(0)
    graph: Any = build_graph(config)
    randomise(graph)
    graph.names = ["cat", "dog"]
    graph.yaml = {
        "nc": config.num_classes,
        "anchors": [list(level) for level in config.anchors],
        "depth_multiple": config.depth_multiple,
        "width_multiple": config.width_multiple,
        "backbone": [list(row) for row in config.rows[:-1]],
        "head": [list(config.rows[-1])],
    }
    return graph


def rows_of(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))  # type: ignore[no-any-return]


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "AutoShape": AutoShape,
    "AutoShape of a backend": lambda graph: AutoShape(DetectMultiBackend(graph)),
    "AutoShape in an entry": lambda graph: {"model": AutoShape(graph), "epoch": -1},
    "AutoShape in DataParallel": lambda graph: {"model": nn.DataParallel(AutoShape(graph))},
    "EMA": lambda graph: {"ema": ModelEMA(graph), "epoch": 3},
    "EMA alone": ModelEMA,
    "EMA and its updates": lambda graph: {"ema": (graph, 100), "model": None},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_what_is_around_a_model_is_taken_off(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    graph = graph_of(YOLOV5)
    expected = rows_of(graph)
    torch.save(wrap(graph), tmp_path / "best.pt")
    model = load_model(tmp_path / "best.pt")
    assert model.family == "YOLOv5"
    assert model.spec.classes == ("cat", "dog")
    assert model.spec.assumptions == (), "its pickled modules are read"
    assert torch.equal(rows_of(model.module), expected)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_state_dict_of_what_is_around_a_model_is_recognised(tmp_path: Path, levels: int) -> None:
    graph = graph_of(FULL)
    expected = rows_of(graph)
    torch.save({f"{'model.' * levels}{key}": tensor for key, tensor in graph.state_dict().items()}, tmp_path / "a.pt")
    model = load_model(tmp_path / "a.pt")
    assert (model.name, len(model.spec.assumptions)) == ("yolov5n", 1)
    assert torch.equal(rows_of(model.module), expected)


# Models of others


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("ADown", "YOLOv9"),
        ("IV6Detect", "the branch u6 of YOLOv7"),
        ("ImplicitA", "YOLOR"),
        ("BottleneckCSPC", "YOLOR-CSP or YOLOv4-CSP"),
        ("ShuffleV2Block", "yolov5-face"),
    ],
)
def test_a_layer_of_another_model_is_named_with_it(tmp_path: Path, kind: str, match: str) -> None:
    graph = graph_of(YOLOV5)
    graph.yaml["backbone"][1] = [-1, 1, kind, [8]]
    torch.save({"model": graph}, tmp_path / "best.pt")
    with pytest.raises(UnknownLayerError, match=rf"is of {match}.* does not build it; .*layer 1 .*'{kind}'"):
        load_model(tmp_path / "best.pt")


def test_a_description_without_anchors_says_whose_it_is() -> None:
    yaml = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[-1], 1, "Detect", ["nc"]]]}
    with pytest.raises(CheckpointError, match=r"no 'anchors': .*; models without anchors are YOLOv5u, "):
        GraphConfig.from_yaml(yaml)


@pytest.fixture
def as_class() -> Iterator[Callable[[nn.Module, str], None]]:
    """Pickle a module under another class's name, as if that project had written it."""
    before = dict(sys.modules)

    def rename(module: nn.Module, kind: str) -> None:
        place, _, name = kind.rpartition(".")
        package = types.ModuleType(place)
        for i, _ in enumerate(parts := place.split(".")):
            sys.modules[".".join(parts[: i + 1])] = package
        new = type(name, (type(module),), {"__module__": place})
        setattr(package, name, new)
        module.__class__ = new

    yield rename
    sys.modules.clear()
    sys.modules.update(before)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (
            "models.models.Darknet",
            r"a model of a Darknet description \(YOLOv3, YOLOv4, YOLOR\) \(models\.mod",
        ),
        ("ultralytics.nn.tasks.WorldModel", "YOLO-World"),
    ],
)
def test_a_pickled_model_of_another_project_is_refused_by_its_class(
    tmp_path: Path, as_class: Any, kind: str, match: str
) -> None:
    graph = graph_of(YOLOV5)
    as_class(graph, kind)
    torch.save({"model": graph}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=match):
        load_model(tmp_path / "best.pt")


@pytest.mark.parametrize(("more", "match"), [(10, "it is a yolov5-face model, whose head"), (3, "of another project")])
def test_a_head_that_gives_more_than_ours_is_refused_by_what_it_gives(tmp_path: Path, more: int, match: str) -> None:
    graph = graph_of(YOLOV5)
    head = graph.model[-1]
    head.no = 7 + more
    head.m = nn.ModuleList(nn.Conv2d(conv.in_channels, 3 * head.no, 1) for conv in head.m)
    torch.save({"model": graph}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=f"gives {7 + more} values per anchor, and a Detect of 2 .*{match}"):
        load_model(tmp_path / "best.pt")


def test_a_file_of_yolov7_that_lost_a_tensor_is_not_called_damaged(tmp_path: Path) -> None:
    """A file that was damaged is refused by the reader, which checks it; this one was changed."""
    state = build_graph(yolov7.config_of("yolov7_tiny", 2)).state_dict()
    del state["model.5.bn.running_var"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"lacks the tensor model\.5\.bn\.running_var .*a changed yolov7"
    ) as caught:
        load_model(tmp_path / "a.pt")
    assert "damaged" not in str(caught.value)
