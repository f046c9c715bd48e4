"""``deploykit verify`` as CI uses it; what it checks: ``tests/export/test_verify.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.errors import NotFoundError, ParityError, UsageError
from tests.cell_model import cell_spec, write_cell_model
from tests.export.test_junit import check_junit
from tests.export.test_verify import change


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


def run(*words: object) -> int:
    return main(["verify", *map(str, words)])


def test_exit_code_and_last_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, moved = change(model, tmp_path / "c.onnx", "boxes", 0), change(model, tmp_path / "m.onnx", "boxes", 2)
    assert run(model, copy) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{copy} is verified against {model}"
    assert lines[-2].endswith("checks passed")
    assert run(model, moved, "--junit", tmp_path / "m.xml") == ParityError.exit_code
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{moved} is NOT verified: boxes of m.onnx differ")
    assert int(check_junit((tmp_path / "m.xml").read_bytes()).attrib["failures"]) > 0
    assert run(model, moved, "--tolerance", "pixels=3,same_box=3,max_keypoint=3") == 0


def test_json_is_one_document(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = change(model, tmp_path / "m.onnx", "boxes", 2)
    assert run(model, moved, "--json") == ParityError.exit_code
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] is False
    assert (told["reference"], told["candidate"]) == (str(model), str(moved))
    assert any(not check["ok"] and "expected 4" in check["says"] for check in told["checks"])


@pytest.mark.parametrize(
    ("other", "code"), [("none.onnx", NotFoundError.exit_code), ("cells.onnx", UsageError.exit_code)]
)
def test_an_error_keeps_its_exit_code_and_is_in_the_file(other: str, code: int, model: Path, tmp_path: Path) -> None:
    assert run(model, tmp_path / other, "--junit", tmp_path / "out.xml") == code
    assert check_junit((tmp_path / "out.xml").read_bytes()).attrib["errors"] == "1"
