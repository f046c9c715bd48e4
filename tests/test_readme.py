"""The README's first blocks run when they are pasted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.cli import main
from tests.doc_blocks import blocks_of

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks() -> tuple[list[str], str]:
    """The lines of bash of the section "Start", and its Python."""
    first, export, python = blocks_of(README.split("## Start")[1].split("\n## ")[0])
    assert (first.language, export.language, python.language) == ("bash", "bash", "python")
    assert [line.split()[:2] for line in first.text.splitlines()] == [["pip", "install"], ["deploykit", "demo"]]
    return [*first.text.splitlines(), *export.text.splitlines()], python.text


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_two_commands_are_those_of_the_makefile(root: Path) -> None:
    commands = re.findall(r"(?m)^make (\w+)", README)
    assert commands == ["demo", "test"]
    assert all(f"\n{name}: " in (root / "Makefile").read_text() for name in commands)


def test_the_first_blocks_run_as_they_are_pasted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo in a process, as those of docs/start.md are; the others, most of which wait for torch, in this one."""
    shell, python = blocks()
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in shell:
        if line.startswith("pip install "):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] == "deploykit"
        if words[1] == "demo":
            done = subprocess.run(
                [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-800:]
        else:
            assert main(words[1:]) == 0, capsys.readouterr().err
        ran.append(words[1])
    assert ran == ["demo", "export", "predict", "compare", "bench"]
    assert (tmp_path / "demo" / "results" / "markers.jpg").is_file()
    assert (tmp_path / "results" / "markers.jpg").is_file()
    capsys.readouterr()
    exec(compile(python, "README.md", "exec"), {"__name__": "__main__"})
    assert re.search(r"markers\.jpg \{.*'aruco marker': \d", capsys.readouterr().out)
    assert (tmp_path / "drawn.jpg").is_file()
