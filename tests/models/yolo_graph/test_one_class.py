"""The score of a detector of one class: by the marks in its file, by its layers, or as the user says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from deploykit.errors import UsageError
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import create_model, load_model
from deploykit.models.yolo_graph.description import GraphConfig
from deploykit.models.yolo_graph.one_class import OBJECTNESS, PRODUCT
from deploykit.spec import RawDetections
from tests.narrow import few_layers, narrow, older_layers, write_checkpoint


def written(path: Path, config: GraphConfig, mark: str = "") -> Path:
    """A checkpoint whose pickled model has one attribute more, as its project leaves it there."""
    write_checkpoint(path, config)
    if mark:
        saved = torch.load(path, weights_only=False)
        setattr(saved["model"], mark, False)
        torch.save(saved, path)
    return path


def plain(config: GraphConfig) -> GraphConfig:
    """The same with a Detect for a head."""
    return replace(config, rows=(*config.rows[:-1], [config.rows[-1][0], 1, "Detect", ["nc", "anchors"]]))


TINY = narrow("yolov7_tiny", 1)
TRAINING = narrow("yolov7_tiny", 1, training=True)
CUSTOM = few_layers(num_classes=1)
V5 = narrow("yolov5n", 1)
OLDER = plain(older_layers(num_classes=1, num_keypoints=0))


@pytest.mark.parametrize(
    ("config", "mark", "score", "told"),
    [
        pytest.param(TINY, "", "obj", True, id="a published YOLOv7"),
        pytest.param(TRAINING, "", "obj", True, id="its training form"),
        pytest.param(TINY, "traced", "obj", True, id="with the mark of YOLOv7's main branch"),
        pytest.param(TINY, "inplace", "obj*cls", True, id="with the mark of YOLOv5's descendants"),
        pytest.param(TRAINING, "inplace", "obj*cls", True, id="the same with implicits"),
        pytest.param(CUSTOM, "", "obj", True, id="custom layers, implicits in the head"),
        pytest.param(plain(CUSTOM), "", "obj", False, id="custom layers, nothing tells"),
        pytest.param(plain(CUSTOM), "traced", "obj", True, id="custom layers, YOLOv7's mark"),
        pytest.param(plain(CUSTOM), "inplace", "obj*cls", True, id="custom layers, YOLOv5's mark"),
        pytest.param(V5, "", "obj*cls", True, id="a published YOLOv5"),
        pytest.param(V5, "inplace", "obj*cls", True, id="with its mark"),
        pytest.param(OLDER, "", "obj*cls", False, id="custom layers of YOLOv5, nothing tells"),
        pytest.param(OLDER, "inplace", "obj*cls", True, id="custom layers of YOLOv5, its mark"),
        pytest.param(OLDER, "traced", "obj", True, id="layers of YOLOv5 in a file of YOLOv7"),
    ],
)
def test_the_project_that_wrote_a_file_decides(
    config: GraphConfig, mark: str, score: str, told: bool, tmp_path: Path
) -> None:
    model = load_model(written(tmp_path / "m.pt", config, mark))
    assert isinstance(model.spec.output, RawDetections)
    assert model.spec.output.score == score
    assert (OBJECTNESS in model.notes) == (told and score == "obj")
    said = [text for text in model.spec.assumptions if text.startswith((OBJECTNESS, PRODUCT))]
    other = "'obj*cls'" if score == "obj" else "obj"
    assert [text.endswith(f"--score {other}") for text in said] == ([] if told else [True])


def test_a_state_dict_of_a_published_variant_tells_too(tmp_path: Path) -> None:
    for name, score in (("yolov7-tiny", "obj"), ("yolov5n", "obj*cls")):
        model = create_model(name, num_classes=1)
        torch.save(model.module.state_dict(), tmp_path / "s.pt")
        found = load_model(tmp_path / "s.pt").spec
        assert isinstance(found.output, RawDetections)
        assert found.output.score == score
        assert not any(text.startswith((OBJECTNESS, PRODUCT)) for text in found.assumptions)
        assert found.output == model.spec.output


@pytest.mark.parametrize(
    "config",
    [
        narrow("yolov7_tiny", 2),
        narrow("yolov7_w6_pose", 1),
        few_layers(num_classes=1, num_keypoints=3),
        older_layers(num_classes=1, num_keypoints=3),
    ],
    ids=["two classes", "W6-pose", "keypoints", "keypoints of YOLOv5"],
)
def test_several_classes_and_keypoints_are_multiplied(config: GraphConfig, tmp_path: Path) -> None:
    model = load_model(written(tmp_path / "m.pt", config, "traced"))
    assert model.spec.output.as_rows().score == "obj*cls"  # type: ignore[attr-defined]
    assert not any("score" in note for note in model.all_notes)


@pytest.mark.parametrize("mark", ["", "traced", "inplace"])
@pytest.mark.parametrize("score", ["obj", "obj*cls"])
def test_the_user_may_decide(mark: str, score: Literal["obj", "obj*cls"], tmp_path: Path) -> None:
    model = load_model(written(tmp_path / "m.pt", plain(CUSTOM), mark), loading=LoadOptions(score=score))
    assert isinstance(model.spec.output, RawDetections)
    assert model.spec.output.score == score
    assert [note for note in model.all_notes if "score" in note] == [f"its score is {score} (--score)"]


def test_of_several_classes_there_is_nothing_to_decide(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.pt", few_layers(num_classes=2))
    with pytest.raises(UsageError, match=r"--score has no meaning for .*: it leaves nothing open there"):
        load_model(path, loading=LoadOptions(score="obj"))
