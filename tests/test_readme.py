"""The README's first blocks run when they are pasted, with random weights in place of the download."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks() -> list[list[str]]:
    """The indented blocks of the section "Start"."""
    section = README.split("## Start")[1].split("\n## ")[0]
    found = re.findall(r"(?m)(?:^ {4}.*\n|^\n(?= {4}))+", section)
    return [[line[4:] for line in block.strip("\n").splitlines()] for block in found]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_two_commands_are_those_of_the_makefile(root: Path) -> None:
    commands = re.findall(r"(?m)^ {4}make (\w+)", README)
    assert commands == ["demo", "test"]
    assert all(f"\n{name}: " in (root / "Makefile").read_text() for name in commands)


def test_the_first_blocks_run_as_they_are_pasted(root: Path, tmp_path: Path) -> None:
    shell, python = blocks()
    (tmp_path / "deploykit").mkdir()
    (tmp_path / "deploykit" / "assets").symlink_to(root / "deploykit" / "assets")
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
        if line.startswith("deploykit fetch"):
            line = line.partition("without a network: ")[2]  # noqa: PLW2901
        words = shlex.split(line, comments=True)
        assert words[0] == "deploykit"
        run("-m", *words)
        ran.append(words[1])
    assert ran == ["create", "export", "predict", "compare", "bench"]
    assert (tmp_path / "results" / "apollo11_crew.jpg").is_file()
    assert "apollo11_crew.jpg" in run("-c", "\n".join(python))
    assert (tmp_path / "drawn.jpg").is_file()
