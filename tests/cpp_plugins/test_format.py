"""C++ and CUDA are written as .clang-format says, where that program is there to look."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def test_clang_format_would_change_nothing(root: Path) -> None:
    program = shutil.which("clang-format") or pytest.skip("clang-format is not installed: pip install clang-format")
    folders = (root / "cpp_plugins", root / "tests" / "cpp_plugins", root / "examples", root / "tests" / "examples")
    kinds = (".h", ".hpp", ".cpp", ".cu", ".cuh")
    files = [str(file) for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in kinds]
    assert len(files) > 20
    done = subprocess.run([program, "--dry-run", "-Werror", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
