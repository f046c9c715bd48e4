"""Providers of ONNX Runtime that come as libraries of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit.errors import BackendError
from deploykit.runtime.backends import ort_providers
from deploykit.runtime.session import open_session
from tests.cell_model import cell_spec, write_cell_model

IMAGES = np.ones((1, 3, 64, 64), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """An installed plugin, whose provider and device are ONNX Runtime's own for the CPU; what was registered."""
    module: Any = ModuleType("onnxruntime_ep_webgpu")
    module.get_ep_name = lambda: "CPUExecutionProvider"
    module.get_library_path = lambda: "/somewhere/libprovider.so"
    registered: list[tuple[str, str]] = []
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", module)
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *given: registered.append(given), raising=False
    )
    monkeypatch.setattr(ort_providers, "_registered", set())
    return registered


@pytest.mark.skipif(not hasattr(onnxruntime, "get_ep_devices"), reason="this ONNX Runtime has no plugins")
@pytest.mark.parametrize("provider", ["webgpu", "WebGPU", "WebGpuExecutionProvider"])
def test_a_plugin_is_registered_once_and_runs(
    model: Path, plugin: list[tuple[str, str]], provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (expected,) = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(
        None, {"images": IMAGES}
    )
    for _ in range(2):
        with open_session(model, provider=provider) as session:
            np.testing.assert_array_equal(session.run({"images": IMAGES})["output"], expected)
            assert session.providers == ("CPUExecutionProvider",)
    assert plugin == [("CPUExecutionProvider", "/somewhere/libprovider.so")]
    assert capsys.readouterr().out == ""


def test_a_plugin_without_a_device_says_what_it_needs(
    model: Path, plugin: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list, raising=False)
    with pytest.raises(BackendError, match="finds none of the devices it needs here: it needs a GPU with a driver for"):
        open_session(model, provider="webgpu")


def test_a_plugin_whose_library_does_not_load_is_named(
    model: Path, plugin: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: str) -> None:
        raise RuntimeError("cannot open\nshared object")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fails, raising=False)
    with pytest.raises(BackendError, match="onnxruntime_ep_webgpu does not load: cannot open shared object"):
        open_session(model, provider="webgpu")


def test_an_onnx_runtime_without_plugins_is_named(
    model: Path, plugin: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(BackendError, match=r"needs ONNX Runtime 1\.24 or later, this one is "):
        open_session(model, provider="webgpu")


def test_a_plugin_that_is_not_installed_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(BackendError, match=r"no WebGpuExecutionProvider.*deploykit-vision\[webgpu\]' beside it"):
        open_session(model, provider="webgpu")


def test_a_provider_that_is_part_of_onnx_runtime_goes_before_its_plugin(
    plugin: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert ort_providers.plugin_for(onnxruntime, "cuda:1") is None
    assert ort_providers.plugin_for(onnxruntime, "auto") is None
    assert not plugin


def test_an_onnx_runtime_whose_cuda_is_a_plugin_is_given_the_libraries_first() -> None:
    """Such a package registers it when it is imported, which fails until they are loaded, and when it loads them."""
    available = ["CPUExecutionProvider"]
    for build, expected in (("a=1", []), ("a=1, cuda-plugin-ep=1", ["CUDAExecutionProvider"])):
        runtime = SimpleNamespace(
            get_build_info=lambda build=build: build,
            get_available_providers=lambda: list(available),
            preload_dlls=lambda: available.append("CUDAExecutionProvider"),
        )
        for _ in range(2):
            assert ort_providers.own_providers(runtime) == ["CPUExecutionProvider", *expected]
