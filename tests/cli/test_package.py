"""``deploykit package``: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.errors import OutputError, UsageError
from tests.cell_model import cell_spec, write_cell_model


def test_a_repository_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write_cell_model(tmp_path / f"{name}.onnx", spec=cell_spec()) for name in ("a", "b")]
    folder = tmp_path / "repository"
    words = ["package", str(files[0]), f"other={files[1]}", "--triton", str(folder)]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == {"a": str(files[0]), "other": str(files[1])}
    assert {Path(entry).name for entry in document["written"]} == {entry.name for entry in folder.iterdir()}
    assert {"a", "a_network", "other", "other_postprocess"} <= {entry.name for entry in folder.iterdir()}
    assert main(words) == OutputError.exit_code
    assert "exists: choose another folder, or pass --force" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--max-batch", "2"]) == 0


def test_a_target_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_cell_model(tmp_path / "a.onnx", spec=cell_spec())
    assert main(["package", str(file)]) == UsageError.exit_code
    assert "--triton" in capsys.readouterr().err
