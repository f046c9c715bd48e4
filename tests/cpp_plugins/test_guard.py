"""No exception leaves the libraries: it ends in common/guard.h and becomes what the interface takes for an error."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from deploykit.runtime.native.build import source_folder
from tests.cpp_plugins.conftest import compiler

PROGRAM = Path(__file__).with_name("guard.cpp")


def run(folder: Path, *options: str) -> list[str]:
    program = folder / "guard"
    command = [compiler(), "-std=c++17", f"-I{source_folder().resolve()}", *options, str(PROGRAM), "-o", str(program)]
    subprocess.run(command, check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def test_an_exception_becomes_the_result_of_a_failure(tmp_path: Path) -> None:
    assert run(tmp_path) == [
        "nothing: 7",
        "memory: std::bad_alloc",
        "memory: -1",
        "argument: the rows are wrong",
        "argument: -1",
        "a thing: an exception of an unknown type (no std::exception)",
        "a thing: -1",
    ]


def test_an_exception_becomes_a_status_of_onnx_runtime(tmp_path: Path) -> None:
    folders = [Path(os.environ.get("ONNXRUNTIME_INCLUDE_DIR", "/usr/include/onnxruntime"))]
    folders += [
        folder / "onnxruntime" / "core" / "session" for folder in (Path("/usr/include"), Path("/usr/local/include"))
    ]
    headers = next((folder for folder in folders if (folder / "onnxruntime_cxx_api.h").is_file()), None)
    if headers is None:
        pytest.skip("no onnxruntime_cxx_api.h: set ONNXRUNTIME_INCLUDE_DIR to its folder")
    fail, invalid, no_file = 1, 2, 3  # OrtErrorCode
    assert run(tmp_path, "-DWITH_ONNXRUNTIME", f"-isystem{headers}")[7:] == [
        "fine",
        f"status {invalid}: Op: the rows are wrong",
        "error",
        f"status {no_file}: Op: no such attribute",
        "error",
        f"status {fail}: Op: an exception of an unknown type",
        "error",
        f"status {fail}: Op: std::bad_alloc",
        "error",
        "no kernel",
    ]


def test_exceptions_are_caught_in_one_file_only() -> None:
    sources = [file for file in source_folder().resolve().rglob("*") if file.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert [file.name for file in sources if re.search(r"\bcatch \(|\btry \{", file.read_text())] == ["guard.h"]
