"""The README's first blocks run when they are pasted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

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


def test_the_first_blocks_run_as_they_are_pasted(root: Path, tmp_path: Path) -> None:
    shell, python = blocks()
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr[-800:]}"
        return done.stdout

    ran = []
    for line in shell:
        if line.startswith("pip install "):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] == "deploykit"
        run("-m", *words)
        ran.append(words[1])
    assert ran == ["demo", "export", "predict", "compare", "bench"]
    assert (tmp_path / "demo" / "results" / "markers.jpg").is_file()
    assert (tmp_path / "results" / "markers.jpg").is_file()
    assert re.search(r"markers\.jpg \{.*'aruco marker': \d", run("-c", python))
    assert (tmp_path / "drawn.jpg").is_file()
