"""What is built: what it shows and needs, sanitizers, every GPU architecture, and what building says when it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.errors import BackendError, MissingDependencyError, NotFoundError, OutputError, UsageError
from deploykit.runtime.native import build as native_build
from deploykit.runtime.native import library
from deploykit.runtime.native.build import NEEDS, build_libraries, library_info, source_folder
from deploykit.runtime.native.library import ABI, FOLDER, LIBRARIES
from tests.cpp_plugins.conftest import symbols

ROOT = Path(__file__).resolve().parents[2]


def test_only_what_is_meant_to_be_seen_is_exported(cpu_library: Path) -> None:
    assert symbols(cpu_library / "libdeploykit_cpu.so", "--defined-only") == {
        "deploykit_abi", "deploykit_built_with", "deploykit_nms", "deploykit_nms_workspace",
        "deploykit_rotated_suppress",
    }  # fmt: skip


def test_the_cpu_library_cannot_allocate(cpu_library: Path) -> None:
    """No new, no malloc and no exception among what it calls, so a call cannot fail for lack of memory."""
    called = symbols(cpu_library / "libdeploykit_cpu.so", "--undefined-only")
    assert not [name for name in called if re.match(r"_Zn|malloc|calloc|realloc|__cxa_(throw|alloc)", name)], called


def test_the_number_of_the_interface_is_the_same_on_both_sides() -> None:
    header = (source_folder() / "common" / "portable.h").read_text()
    assert f"abi_number = {ABI};" in header


def test_info_tells_what_it_was_built_with(cpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(cpu_library))
    info = library_info("cpu")
    assert (info.abi, info.problem) == (ABI, None)
    assert re.match(r"\w+ \d+\.\d+", info.built_with)
    others = [library_info(name) for name in LIBRARIES if name != "cpu"]
    assert all(other.problem == f"not built: deploykit plugins build{NEEDS[other.name]}" for other in others)


def test_info_reads_a_library_once(cpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for GPUs are large."""
    checked = []
    monkeypatch.setenv(FOLDER, str(cpu_library))
    monkeypatch.setattr(library, "check_undamaged", checked.append)
    assert library_info("cpu").problem is None
    assert checked == [cpu_library / "libdeploykit_cpu.so"]


def test_nothing_else_is_left_in_the_folder(cpu_library: Path) -> None:
    assert {file.name for file in cpu_library.iterdir()} == {"libdeploykit_cpu.so", "build.log", "SHA256SUMS"}
    log = (cpu_library / "build.log").read_text()
    assert "deploykit_cpu: built with" in log
    assert "warning" not in log


SANITIZED = """
import numpy as np
import sys
sys.path.insert(0, {root!r})
from deploykit.export.plugins_check import _cpu
from deploykit.runtime.native.library import native_nms
from deploykit.runtime.postprocess.rotated_nms import rotated_nms
from tests import nms_corpus, rotated_corpus

for case in nms_corpus.corpus():
    for rows in (case.rows.copy(), np.asfortranarray(case.rows)):
        assert native_nms(rows, case.layout, case.thresholds) is not None
        assert native_nms(rows, case.layout, case.thresholds, multi_label=True, classes=(0, 2)) is not None
for case in rotated_corpus.corpus():
    rotated_nms(case.rows, case.layout, case.thresholds)
check = _cpu("cpu")
assert check.ok, check.says
print("all clean")
"""


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Address and undefined behaviour: the corpus, and the checks of ``plugins test``."""
    gcc = shutil.which("g++") or pytest.skip("no g++")
    runtime = subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if not Path(runtime.strip()).is_absolute():
        pytest.skip("g++ has no address sanitizer")
    build_libraries(tmp_path, only=["cpu"], sanitize="address,undefined")
    environment = {
        **os.environ,
        FOLDER: str(tmp_path),
        "LD_PRELOAD": runtime.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    environment.pop("DEPLOYKIT_NATIVE", None)
    code = SANITIZED.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "all clean", done.stderr[-3000:]
    assert "runtime error" not in done.stderr


@pytest.mark.slow
def test_the_cuda_library_is_built_for_every_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    report = build_libraries(tmp_path, only=["cuda"])
    monkeypatch.setenv(FOLDER, str(tmp_path))
    info = library_info("cuda")
    assert info.problem is None
    assert info.built_with.startswith("nvcc ")
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90"} <= set(info.architectures)
    assert re.search(r"for sm 75 80 86 89 90", report.said["cuda"])
    assert "warning" not in report.log.read_text()
    assert symbols(report.built["cuda"], "--defined-only") == {
        "deploykit_abi", "deploykit_built_with", "deploykit_decode_cuda", "deploykit_letterbox_cuda",
        "deploykit_nms_cuda", "deploykit_nms_cuda_workspace", "deploykit_nms_cuda_spreads",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "gpus"), [("x86_64", "75 80 86 89 90"), ("aarch64", "75 80 86 87 89 90")], ids=["a PC", "a Jetson"]
)
def test_a_jetson_gets_code_for_its_own_gpu(processor: str, gpus: str, tmp_path: Path) -> None:
    """Orin (8.7) runs neither code for 8.0 or 8.6 nor PTX of a later GPU, so it needs its own."""
    if shutil.which("nvcc") is None or shutil.which("cmake") is None:
        pytest.skip("no nvcc or no cmake")
    command = ["cmake", "-S", str(source_folder()), "-B", str(tmp_path), "-DCMAKE_SYSTEM_NAME=Linux"]
    done = subprocess.run(
        [*command, f"-DCMAKE_SYSTEM_PROCESSOR={processor}"], capture_output=True, text=True, check=True
    )
    assert re.search(rf"deploykit_cuda: built with nvcc \S+ for sm {gpus}( |$)", done.stdout, re.MULTILINE)


def test_without_cmake_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="cmake is needed here and is not installed: pip install cmake"):
        build_libraries(tmp_path / "out")


def test_a_source_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no CMake or no C++ compiler")
    copy = tmp_path / "sources"
    shutil.copytree(source_folder(), copy, ignore=shutil.ignore_patterns("lib"))
    (copy / "nms_kpt" / "host.cpp").write_text("int broken(\n")
    monkeypatch.setattr(native_build, "source_folder", lambda: copy)
    out = tmp_path / "out"
    with pytest.raises(
        BackendError, match=r"the libraries were not built: .*host\.cpp:.*error.*the whole build log is"
    ):
        build_libraries(out, only=["cpu"])
    assert [file.name for file in out.iterdir()] == ["build.log"]


def test_what_cannot_be_built_is_refused_before_anything_happens(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no 'gpu'"):
        build_libraries(tmp_path, only=["gpu"])
    with pytest.raises(NotFoundError, match="a folder with headers was expected"):
        build_libraries(tmp_path, tensorrt=tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no CMake")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        build_libraries(tmp_path / "file" / "out", only=["cpu"])
