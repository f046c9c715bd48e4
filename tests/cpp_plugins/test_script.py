"""What ``make demo`` and ``make setup`` say of the native library, with and without what its build needs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A folder with the script, and nothing of the system but what a shell needs, in ``bin``."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(root / "scripts" / "native", tmp_path / "scripts")
    for name in ("bash", "dirname", "mkdir", "tail", "touch"):
        program(tmp_path / "bin" / name, f'exec {shutil.which(name)} "$@"')
    return tmp_path


def program(file: Path, body: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    file.chmod(0o755)


def run(clone: Path) -> str:
    done = subprocess.run(
        [str(clone / "scripts" / "native")],
        env={"PATH": str(clone / "bin")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (clone / "cpp_plugins" / "lib" / ".ready").is_file()
    return done.stdout


def test_without_a_compiler_it_says_so(clone: Path) -> None:
    said = run(clone)
    assert said.startswith("native: there is no C++ compiler, so NMS on the CPU runs in numpy")
    assert said.count("\n") == 1


def test_with_a_compiler_it_builds_by_the_command(clone: Path) -> None:
    program(clone / "bin" / "g++", "exit 1")
    program(clone / "bin" / "cmake", "exit 1")
    program(clone / ".venv" / "bin" / "deploykit", 'echo "$*" > asked; echo "long talk"')
    assert run(clone) == "native: the library for NMS on the CPU is built, in cpp_plugins/lib\n"
    assert (clone / "asked").read_text() == "plugins build --only cpu\n"


def test_without_cmake_it_is_installed_and_a_failure_gives_its_reason(clone: Path) -> None:
    program(clone / "bin" / "clang++", "exit 1")
    program(clone / ".venv" / "bin" / "python", 'echo "$*" > asked; exit 1')
    program(clone / ".venv" / "bin" / "deploykit", 'echo "a step"; echo "cmake is needed here" >&2; exit 3')
    said = run(clone)
    assert said.startswith("native: the library is not built, so NMS on the CPU runs in numpy")
    assert said.endswith("the reason: cmake is needed here\n")
    assert (clone / "asked").read_text().split()[-4:] == ["install", "--constraint", "constraints.txt", "cmake"]
