"""``deploykit plugins``: build, info, test."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli import main
from deploykit.errors import MissingDependencyError, UsageError
from deploykit.export import plugins_check
from deploykit.runtime.native import build
from deploykit.runtime.native.library import FOLDER, LIBRARIES, SWITCH


def test_info_without_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert main(["plugins", "info"]) == 0
    out = capsys.readouterr().out
    assert out.count("not built: deploykit plugins build") == len(LIBRARIES)
    assert "NMS on the CPU: numpy" in out


def test_info_and_test_of_a_library(native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nms_is_native"]
    assert found["folder"] == str(native)
    assert {library["name"]: library["problem"] is None for library in found["libraries"]} == {
        "cpu": True, "onnxruntime": False, "cuda": False, "tensorrt": False,
    }  # fmt: skip
    assert main(["plugins", "test"]) == 0
    first = capsys.readouterr().out.splitlines()[0].split()
    assert first[:2] == ["cpu", "ok"]
    assert first[2:] == ["152", "comparisons", "with", "the", "numpy", "reference,", "all", "agree"]


def test_the_switch_is_reported(
    native: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert main(["plugins", "info"]) == 0
    assert "NMS on the CPU: numpy (set DEPLOYKIT_NATIVE=0 to switch" in capsys.readouterr().out
    assert main(["plugins", "test", "--json"]) == 3
    (cpu, *_) = json.loads(capsys.readouterr().out)
    assert cpu == {"library": "cpu", "ok": None, "says": "it is switched off: unset DEPLOYKIT_NATIVE"}


def test_a_test_of_no_library_is_an_error_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert main(["plugins", "test"]) == MissingDependencyError.exit_code
    out, err = capsys.readouterr()
    assert out.count("not run") == len(LIBRARIES)
    assert "no native library was tested" in err
    assert "--allow-none" in err
    assert main(["plugins", "test", "--allow-none"]) == 0
    assert main(["plugins", "info", "--allow-none"]) == UsageError.exit_code


def test_a_library_that_differs_ends_with_an_error(
    native: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = plugins_check.native_nms

    def wrong(*args: Any, **choice: Any) -> object:
        rows, boxes, *rest = real(*args, **choice)  # type: ignore[misc]
        return rows, boxes + 1, *rest

    monkeypatch.setattr(plugins_check, "native_nms", wrong)
    assert main(["plugins", "test"]) == 42
    assert "WRONG" in capsys.readouterr().out


def test_build_says_what_was_built_and_what_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no CMake or no C++ compiler")
    monkeypatch.delenv(FOLDER, raising=False)
    assert main(["plugins", "build", "--only", "cpu", "--out", str(tmp_path / "libraries")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("cpu  NMS on the CPU  built with ")
    assert f"to use them, set {FOLDER}={tmp_path / 'libraries'}" in out
    assert "configuring" in err
    assert "compiling" in err
    assert (tmp_path / "libraries" / "libdeploykit_cpu.so").is_file()


def test_a_place_that_cannot_be_written_is_said_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = os.open

    def read_only(path: object, *arguments: object) -> int:
        if str(path).endswith(".partial"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(build, "_run", lambda *_: pytest.fail("it was said too late"))
    (tmp_path / "file").write_text("")
    for out, code, said in (
        (tmp_path / "file" / "libraries", 30, "Not a directory"),
        (tmp_path / "new" / "libraries", 31, "no permission (Read-only file system)"),
    ):
        if code == 31:
            monkeypatch.setattr(os, "open", read_only)
        assert main(["plugins", "build", "--out", str(out)]) == code
        assert f"cannot write {out}: {said}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_options_of_build_are_for_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "info", "--only", "cpu"]) == 2
    assert (
        capsys.readouterr().err == "deploykit: --only is for deploykit plugins build, not for info [deploykit help 2]\n"
    )
