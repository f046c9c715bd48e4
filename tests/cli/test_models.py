"""``deploykit models``: the models that can be built, and where their weights come from."""

from __future__ import annotations

import json

import pytest

from deploykit.cli import main
from deploykit.models.registry import list_models
from deploykit.releases.fetch import RELEASED


def test_every_registered_model_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == list_models()
    pose = next(line for line in lines if line.startswith("  yolov7-w6-pose "))
    assert pose.split()[1:6] == ["keypoints", "960", "px", "80.2", "M"]
    assert pose.endswith("deploykit fetch")
    assert "YOLOv7 (weights by its authors: GPL-3.0)" in lines
    assert not any(line != line.rstrip() for line in lines)


def test_json_output_is_exactly_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = {entry.pop("name"): entry for entry in json.loads(out)}
    assert sorted(found) == list_models()
    assert found["yolov7-tiny"] == {
        "family": "YOLOv7", "task": "detect", "size": 640, "parameters": 6_227_101, "weights_licence": "GPL-3.0",
        "released": True,
    }  # fmt: skip
    assert all(entry["weights_licence"] for entry in found.values())


def test_released_files_named_like_a_model_can_be_built() -> None:
    released = [name for name in list_models() if name in RELEASED]
    assert "yolov7-w6-pose" in released
    assert all(RELEASED[name].built for name in released)
