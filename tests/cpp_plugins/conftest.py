"""The libraries that several files here test, each built once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from deploykit.runtime.cuda import open_gpu
from deploykit.runtime.native.build import build_libraries, source_folder
from deploykit.runtime.native.cuda_library import CudaLibrary
from deploykit.runtime.native.library import FOLDER
from tests.cpu_tensorrt import CpuGpu

TEAM = Path(__file__).with_name("team.cpp")


def compiler() -> str:
    return shutil.which("g++") or shutil.which("c++") or pytest.skip("no C++ compiler")


def compile_team(out: Path, *options: str) -> None:
    command = [compiler(), "-std=c++17", "-ffp-contract=off", f"-I{source_folder().resolve()}", *options, str(TEAM)]
    subprocess.run([*command, "-o", str(out), "-pthread"], check=True)


@pytest.fixture(scope="package", params=["threads", pytest.param("gpu", marks=pytest.mark.gpu)])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudaLibrary]:
    """The CUDA library on a GPU, or its algorithm with threads in place of a block's lanes."""
    folder = tmp_path_factory.mktemp("kernels")
    if request.param == "threads":
        file = folder / "libteam.so"
        compile_team(file, "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
        gpu = CpuGpu()
        yield CudaLibrary(gpu, file)
        assert not gpu.live, "memory was not given back"
        return
    gpu_here = open_gpu()
    major, minor = gpu_here.compute_capability
    report = build_libraries(folder, only=["cuda"], architectures=[10 * major + minor])
    if "cuda" not in report.built:
        pytest.skip(report.said["cuda"])
    yield CudaLibrary(gpu_here, report.built["cuda"])


@pytest.fixture(scope="package")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The library of the operators for ONNX Runtime, in use."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    place = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    report = build_libraries(folder, only=["onnxruntime"], onnxruntime=Path(place) if place else None)
    if "onnxruntime" not in report.built:
        pytest.skip(report.said["onnxruntime"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield folder


def symbols(library: Path, *options: str) -> set[str]:
    """The names that a library exports or asks for, without weak ones."""
    nm = shutil.which("nm") or pytest.skip("no nm")
    done = subprocess.run([nm, "-D", *options, str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines() if " w " not in line}


def with_attributes(model: bytes, change: dict[str, Any]) -> bytes:
    """An ONNX file of one node, some of whose attributes are others or new."""
    changed = onnx.load_from_string(model)
    (node,) = changed.graph.node
    for name, value in change.items():
        old = next((a for a in node.attribute if a.name == name), None) or node.attribute.add()
        old.CopyFrom(onnx.helper.make_attribute(name, value))
    return bytes(changed.SerializeToString())
