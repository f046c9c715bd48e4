"""The programs of this folder by CTest, under the sanitizers: the presets of CMakePresets.json."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cpp_plugins.conftest import compiler

HERE = Path(__file__).parent


def output(*command: str, cwd: Path = HERE) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize(("preset", "sanitizers"), [("asan", "address,undefined"), ("tsan", "thread")])
@pytest.mark.slow
def test_the_sanitizers_find_nothing(preset: str, sanitizers: str, tmp_path: Path) -> None:
    """A sync() taken out of a kernel.cuh is a race that tsan finds."""
    cmake, ctest = (shutil.which(name) or pytest.skip(f"no {name}") for name in ("cmake", "ctest"))
    version = re.search(r"(\d+)\.(\d+)", output(cmake, "--version"))
    if version and (int(version[1]), int(version[2])) < (3, 21):
        pytest.skip("the presets need CMake 3.21")
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    trial = [compiler(), f"-fsanitize={sanitizers}", "empty.cpp", "-o", "empty"]
    if subprocess.run(trial, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip(f"this compiler has no sanitizers {sanitizers}")
    if subprocess.run([tmp_path / "empty"], capture_output=True, check=False).returncode:
        pytest.skip(f"the sanitizers {sanitizers} do not run on this kernel")
    build = tmp_path / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    output(cmake, "--preset", preset, "-B", str(build), *generator)
    assert "warning" not in output(cmake, "--build", str(build))
    said = output(ctest, "--test-dir", str(build), "--output-on-failure")
    assert {"guard", "team", "agreement"} <= set(re.findall(r"(\w+) \.+ +Passed", said))
