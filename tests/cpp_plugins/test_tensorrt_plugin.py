"""The TensorRT plugin's contract, by the headers alone: TensorRT itself is not needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from deploykit.runtime.native.build import BuildReport, build_libraries
from deploykit.runtime.native.library import ABI, abi_of
from tests.cpp_plugins.conftest import symbols

HARNESS = Path(__file__).with_name("harness.cpp")


def headers() -> Path:
    """The folder with NvInfer.h, where CMakeLists.txt looks for it too."""
    places = [os.environ.get("TENSORRT_INCLUDE_DIR"), os.environ.get("TENSORRT_ROOT")]
    folders = [Path(place) for place in places if place]
    folders += [folder / "include" for folder in folders]
    folders += [Path("/usr/include"), Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or "")]
    found = next((folder for folder in folders if (folder / "NvInfer.h").is_file()), None)
    return found or pytest.skip("no TensorRT headers: set TENSORRT_INCLUDE_DIR or TENSORRT_ROOT")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    found = headers()
    nvcc = shutil.which("nvcc") or pytest.skip("no nvcc: the plugin runs CUDA kernels")
    assert nvcc
    return build_libraries(tmp_path_factory.mktemp("tensorrt"), only=["tensorrt"], tensorrt=found, architectures=[90])


def test_it_is_built_and_links_to_no_tensorrt(report: BuildReport) -> None:
    assert "built with the headers in" in report.said["tensorrt"]
    assert "warning" not in report.log.read_text()
    readelf = shutil.which("readelf") or pytest.skip("no readelf")
    done = subprocess.run([readelf, "-d", str(report.built["tensorrt"])], capture_output=True, text=True, check=True)
    needed = [line for line in done.stdout.splitlines() if "NEEDED" in line]
    assert needed
    assert not [line for line in needed if "nvinfer" in line or "cudart" in line]


def test_only_what_is_meant_to_be_seen_is_exported(report: BuildReport) -> None:
    assert symbols(report.built["tensorrt"], "--defined-only") == {
        "deploykit_abi", "deploykit_built_with", "getCreators", "setLoggerFinder",
    }  # fmt: skip
    assert abi_of(report.built["tensorrt"]) == ABI


def test_the_contract_holds(report: BuildReport, tmp_path: Path) -> None:
    nvcc = str(shutil.which("nvcc"))  # it knows where its own headers lie
    program = tmp_path / "harness"
    subprocess.run([nvcc, "-std=c++17", f"-isystem={headers()}", str(HARNESS), "-o", str(program), "-ldl"], check=True)
    done = subprocess.run([program, report.built["tensorrt"]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the contract holds"
    assert "FAILED" not in done.stdout
    assert not done.stderr  # errors went to TensorRT's logger
