"""``deploykit compare`` as a person or a script uses it; what it compares: ``tests/export/parity/test_compare.py``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.cli import main
from deploykit.cli._display import parity_lines
from deploykit.errors import NotFoundError, ParityError, SpecError, UsageError
from deploykit.export.parity.report import ParityReport
from tests.cell_model import cell_spec, write_cell_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def moved(model: Path, tmp_path: Path) -> Path:
    """The same network with every box two pixels further to the right."""
    found = onnx.load(str(model))
    boxes = next(t for t in found.graph.initializer if t.name == "boxes")
    shift = np.array([2, 0, 0, 0], np.float32)
    boxes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(boxes) + shift, "boxes"))
    onnx.save(found, str(tmp_path / "moved.onnx"))
    return tmp_path / "moved.onnx"


def compare(*words: object) -> int:
    return main(["compare", *map(str, words)])


def test_two_that_agree(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    assert compare(model, copy) == 0
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0].split() == ["parity", "largest", "difference", "of", "the", "limit", "where"]
    assert lines[1].startswith("boxes ")
    assert lines[1].endswith(" 0 px          0.0 %  apollo11_crew.jpg, against cells.onnx")
    assert lines[-1] == f"{copy} agrees with {model}"
    assert [line.split("] ")[1] for line in err.splitlines()] == [
        "cells.onnx on apollo11_crew.jpg",
        "cells.onnx on noise (seed 0)",
        "copy.onnx on apollo11_crew.jpg",
        "copy.onnx on noise (seed 0)",
    ]


def test_networks_that_detect_nothing_have_the_limits_of_detections() -> None:
    lines = parity_lines(ParityReport({"a.onnx": "ONNX Runtime"}, (), ()))
    assert lines[1].startswith("limits: 0.001 px + ")


def test_two_that_differ_end_with_42_and_the_worst_value(
    model: Path, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(model, moved) == ParityError.exit_code
    out = capsys.readouterr().out
    table, last = out.splitlines()[:-1], out.splitlines()[-1]
    assert any(line.startswith("boxes FAILED") and " 2 px " in line for line in table)
    assert any(line.startswith("scores ") and "FAILED" not in line for line in table)
    assert last.startswith("they differ: boxes of moved.onnx differ from cells.onnx on apollo11_crew.jpg by up to 2 (")
    assert last.endswith("row 0, column 0 is 6, expected 4")


@pytest.mark.parametrize("differ", [False, True])
def test_json_is_one_document_and_nothing_else(
    differ: bool, model: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    assert compare(model, moved if differ else copy, "--json") == (ParityError.exit_code if differ else 0)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["ok"] is not differ
    assert [d["ok"] for d in found["differences"] if d["values"] == "boxes"] == [not differ] * 2
    assert list(found["references"]) == ["cells.onnx"]


def test_a_spec_from_a_file_and_an_image_of_the_user(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    bare = [write_cell_model(tmp_path / f"{name}.onnx") for name in "ab"]
    assert compare(*bare) == SpecError.exit_code
    assert "--spec FILE" in capsys.readouterr().err
    (tmp_path / "spec.json").write_text(cell_spec().to_json())
    image = tmp_path / "[mine].png"
    image.write_bytes(cv2.imencode(".png", np.full((8, 8, 3), 255, np.uint8))[1].tobytes())
    assert compare(*bare, "--spec", tmp_path / "spec.json", "--sample", image) == 0
    out = capsys.readouterr().out
    assert "on [mine].png, noise (seed 0)" in out
    assert "[mine].png, against a.onnx" in out


def test_outputs_that_differ_are_refused_before_anything_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deploykit.export.parity.compare.expect", lambda *_, **__: pytest.fail("a model ran"))
    spec = cell_spec()
    output = dataclasses.replace(spec.output, cls=(5, 6), keypoints=None)
    faces = dataclasses.replace(spec, task="detect", classes=("face",), keypoints=None, output=output)
    other = write_cell_model(tmp_path / "faces.onnx", spec=faces)
    assert compare(model, other) == SpecError.exit_code
    assert (
        f"{model.name} has 2 classes and 1 keypoint and {other.name} has 1 class: models with different outputs "
        "cannot be compared" in capsys.readouterr().err
    )


def test_one_file_twice_is_a_slip(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(model, model) == UsageError.exit_code
    assert capsys.readouterr().err == f"deploykit: {model} would be compared with itself [deploykit help 2]\n"


def test_a_missing_file_is_one_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(model, tmp_path / "cell.onnx") == NotFoundError.exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "did you mean cells.onnx?" in err
