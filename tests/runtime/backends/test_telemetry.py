"""ONNX Runtime, as deploykit loads it, keeps and sends no events, and lets a forked process end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cell_model import cell_spec, write_cell_model

RUN = """
import os, sys
import deploykit
import numpy
with deploykit.load(sys.argv[1], threads=1) as model:
    model(numpy.zeros((64, 64, 3), numpy.uint8))
"""
FORK = """
child = os.fork()
if child == 0:
    sys.exit(0)  # which runs what libraries do at the end, as os._exit does not
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def kept(home: Path, script: str, model: Path, **environment: str) -> list[str]:
    """The files that a run leaves in the user's home."""
    own = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", script, str(model)],
        env={**own, "HOME": str(home), **environment},
        check=True,
        timeout=60,
    )
    return [each.name for each in home.rglob("*") if each.is_file()]


def test_no_event_is_kept_and_a_forked_process_ends(tmp_path: Path) -> None:
    model = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    if not kept(tmp_path / "asked", RUN, model, ORT_DISABLE_TELEMETRY="0"):
        pytest.skip("this ONNX Runtime keeps no events, whether it is told so or not")
    assert kept(tmp_path / "home", RUN + (FORK if hasattr(os, "fork") else ""), model) == []


def test_a_program_that_imports_it_first_is_not_reported_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    from deploykit.runtime.session import open_session

    called: list[bool] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: called.append(True))
    model = write_cell_model(tmp_path / "m.onnx", spec=cell_spec())
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    open_session(model).close()
    assert called == [True]
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    open_session(model).close()
    assert called == [True], "who asks for it has it"
