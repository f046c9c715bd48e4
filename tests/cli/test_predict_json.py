"""The lines of ``deploykit predict --json`` are what the schema that is shipped says, whatever the task."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

from deploykit.cli import main
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.raw.mosaic import RawImage
from deploykit.runtime.results.base import SCHEMA
from deploykit.runtime.results.dense import Features, RestoredRaw
from deploykit.runtime.results.detection import Result
from deploykit.spec import KeypointSpec
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.dense_networks import brightener, classifier, segmenter


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    text = resources.files("deploykit").joinpath("assets/predict.schema.json").read_text()
    found: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def _check(line: dict[str, Any], schema: dict[str, Any]) -> None:
    """The line is valid, and the schema describes every member of it, of its objects and of its classes."""
    jsonschema.Draft202012Validator(schema).validate(line)
    assert set(line) <= set(schema["properties"])
    for members, kind in (("detections", "detection"), ("classes", "class")):
        for each in line.get(members, ()):
            assert set(each) <= set(schema["$defs"][kind]["properties"])


def _lines(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    assert main(["predict", *map(str, words), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(cv2.imencode(".png", planted((1, 2, RED), scale=2))[1].tobytes())
    return path


def test_detections_of_images_and_frames(
    tmp_path: Path, image: Path, schema: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    with Mp4Writer(tmp_path / "film.mp4", 12) as recorder:
        recorder.write(planted((3, 2, RED), scale=4))
    lines = _lines(capsys, model, image, tmp_path / "film.mp4")
    assert [(line["schema"], line["frame"], len(line["detections"])) for line in lines] == [
        (SCHEMA, None, 1),
        (SCHEMA, 0, 1),
    ]
    assert "keypoints" in lines[0]["detections"][0]
    for line in lines:
        _check(line, schema)


@pytest.mark.parametrize(
    ("write", "member"), [(classifier, "classes"), (segmenter, "shares"), (brightener, "restored")]
)
def test_whole_images(
    write: Any, member: str, tmp_path: Path, image: Path, schema: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = _lines(capsys, write(tmp_path / "m.onnx"), image)
    assert member in line
    _check(line, schema)


def _mosaic() -> RawImage:
    return RawImage(np.zeros((8, 8), np.uint16), (0, 1, 1, 2), (64, 64, 64, 64), 1023)


def test_masks_oriented_boxes_features_and_mosaics(schema: dict[str, Any]) -> None:
    mask: Array = np.zeros((1, 8, 8), bool)
    mask[0, 2:4, 2:5] = True
    fields: dict[str, Any] = {"boxes": [[1, 2, 5, 4]], "scores": [0.5], "labels": [0], "size": (8, 8)}
    points = {"keypoints": [[[-3, 2, 1]]], "keypoint_spec": KeypointSpec(("p",))}
    for result in (
        Result(**fields, masks=mask, **points),
        Result(**fields, name="camera 0", frame=3, time=1.7e9),
        Result(**fields, rotated=[[3, 3, 4, 2, 0.3]]),
        Features(values=[1.5, -2], size=(8, 8)),
        RestoredRaw(raw=_mosaic(), size=(8, 8)),
    ):
        _check(json.loads(json.dumps(result.to_dict())), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("frame",), "1"),
        (("size",), [64]),
        (("detections", 0, "score"), 1.5),
        (("detections", 0, "box"), [1, 2, 3]),
        (("detections", 0, "keypoints"), [[1, 2]]),
        (("detections",), None),
        (("classes",), [{"label": 0, "name": "a", "score": 1}]),
    ],
)
def test_the_schema_refuses_what_is_none_of_ours(schema: dict[str, Any], path: tuple[Any, ...], value: object) -> None:
    fields: dict[str, Any] = {"boxes": [[1, 2, 5, 4]], "scores": [0.5], "labels": [0], "size": (8, 8)}
    line = json.loads(json.dumps(Result(**fields, keypoints=[[[3, 2, 1]]]).to_dict()))
    jsonschema.Draft202012Validator(schema).validate(line)
    place: Any = line
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if value is None:
        del place[path[-1]]
    assert not jsonschema.Draft202012Validator(schema).is_valid(line)
