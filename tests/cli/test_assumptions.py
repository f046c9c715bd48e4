"""What no tensor tells and is therefore assumed: printed by the commands, and kept in the spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.cli import main
from deploykit.runtime.session import open_session, session_spec
from tests.models.families.test_vit import narrow
from tests.models.files import saved

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = "1 heads for 32 channels, 64 channels each: no tensor tells"


def test_an_assumption_is_a_note_and_is_in_the_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, file = saved(tmp_path, narrow().module.state_dict()), tmp_path / "m.onnx"
    words = ["export", "--weights", str(weights), "--exporter", "legacy", "--out", str(file), "--json"]
    assert main(words) == 0
    assert f"assumed: {HEADS}" in json.loads(capsys.readouterr().out)["notes"]
    with open_session(file) as session:
        assert HEADS in session_spec(session, "m.onnx").assumptions
    for inspected in (weights, file):
        assert main(["inspect", str(inspected), "--json"]) == 0
        assert f"assumed: {HEADS}" in json.loads(capsys.readouterr().out)["notes"]
        assert main(["inspect", str(inspected)]) == 0
        assert "note" in (out := capsys.readouterr().out)
        assert f"assumed: {HEADS[:20]}" in out
