"""The TensorRT plugin library is loaded if it fits, once, and never for TensorRT for RTX."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.runtime.backends.trt import bindings
from deploykit.runtime.backends.trt.bindings import BuildLog, load_flavour, logger
from deploykit.runtime.native.library import FOLDER


class Registry:
    """TensorRT's plugin registry; ``returned`` is what it returns."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.returned: object | None = "handle"

    def load_library(self, path: str) -> object | None:
        self.loaded.append(path)
        return self.returned


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Stand-ins for both flavours, version 10.16, and a library that reports TensorRT 10 headers."""
    found = Registry()
    for name in ("tensorrt", "tensorrt_rtx"):
        module = types.ModuleType(name)
        module.__version__ = "10.16.1.11"  # type: ignore[attr-defined]
        module.get_plugin_registry = lambda: found  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    source = tmp_path / "plugin.cpp"
    source.write_text('extern "C" const char* deploykit_built_with() { return "TensorRT 10.3 headers, GNU 12.2.0"; }')
    library = tmp_path / "libdeploykit_tensorrt.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(bindings, "_loaded", set())
    return found


def test_the_library_is_loaded_once(registry: Registry, tmp_path: Path) -> None:
    for _ in range(3):
        load_flavour("tensorrt")
    assert registry.loaded == [str(tmp_path / "libdeploykit_tensorrt.so")]


def test_tensorrt_for_rtx_never_loads_the_library(registry: Registry) -> None:
    load_flavour("tensorrt-rtx")
    assert not registry.loaded


def test_a_library_for_another_major_version_is_not_loaded(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    sys.modules["tensorrt"].__version__ = "11.1.0.106"  # type: ignore[attr-defined]
    load_flavour("tensorrt")
    assert not registry.loaded
    load_flavour("tensorrt")
    (logged,) = caplog.records  # it is said once
    assert logged.levelname == "WARNING"
    assert "built for another TensorRT than 11.1.0.106 (TensorRT 10.3 headers" in logged.getMessage()


def test_a_library_that_tensorrt_cannot_load_is_a_warning(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    registry.returned = None
    load_flavour("tensorrt")
    assert re.search(r"TensorRT 10\.16\.1\.11 cannot load .*: run deploykit plugins build", caplog.text)


def test_without_a_library_nothing_is_loaded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "none"))
    load_flavour("tensorrt")
    assert not registry.loaded


MADE: dict[str, Callable[[Any, Any], object]] = {
    "builder": lambda trt, made: trt.Builder(made),
    "network": lambda trt, made: trt.Builder(made).create_network(0),
    "config": lambda trt, made: trt.Builder(made).create_builder_config(),
    "parser": lambda trt, made: trt.OnnxParser(trt.Builder(made).create_network(0), made),
    "runtime": lambda trt, made: trt.Runtime(made),
}


@pytest.mark.parametrize("name", MADE)
def test_what_tensorrt_makes_holds_its_logger(name: str) -> None:
    """So a collection before the next work is needed only where a logger is left."""
    trt = pytest.importorskip("tensorrt_rtx")
    made = logger(trt, BuildLog())
    kept, held = MADE[name](trt, made), weakref.ref(made)
    del made
    assert held() is not None
    del kept
    assert held() is None


@pytest.mark.parametrize("left", [False, True])
def test_garbage_is_collected_only_where_a_logger_is_left(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = types.SimpleNamespace(ILogger=type("ILogger", (), {}))
    collections: list[None] = []
    monkeypatch.setattr(bindings, "_loggers", weakref.WeakSet())
    kept = logger(trt, BuildLog()) if left else None
    monkeypatch.setattr(bindings.gc, "collect", lambda: collections.append(None))
    logger(trt, BuildLog())
    assert bool(collections) is left
    del kept
