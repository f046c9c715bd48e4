"""Build the libraries of ``cpp_plugins`` with CMake, and say what is there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.atomic import alone_in, check_folder_writable, temporary_folder, write_atomic
from deploykit.errors import BackendError, MissingDependencyError, NotFoundError, UsageError
from deploykit.progress import SILENT, Progress
from deploykit.runtime.files import is_folder
from deploykit.runtime.native.library import (
    ABI,
    LIBRARIES,
    SUMS,
    abi_and_words,
    find_library,
    library_folder,
)

__all__ = ["BuildReport", "LibraryInfo", "build_libraries", "library_info", "source_folder"]

LOG = "build.log"


@dataclass(frozen=True)
class BuildReport:
    """What was built (name -> file), and of every library what it was built with or why it was skipped."""

    built: dict[str, Path]
    said: dict[str, str]
    log: Path


NEEDS = {
    "cpu": "",
    "onnxruntime": " --onnxruntime FOLDER, with ONNX Runtime's C++ headers",
    "cuda": ", with nvcc",
    "tensorrt": " --tensorrt FOLDER, with nvcc and TensorRT's headers",
}
"""A library -> what its build takes, to be said behind the command; headers of a system package need no option."""


@dataclass(frozen=True)
class LibraryInfo:
    """One library: its file (None: not there), the number of its interface, with what and for which GPUs it was built.

    ``problem`` says why it cannot be used; None where it can.
    """

    name: str
    what: str
    file: Path | None
    abi: int | None = None
    built_with: str = ""
    architectures: tuple[str, ...] = ()
    problem: str | None = None


def source_folder() -> Path:
    """Where the sources lie: they are part of the package."""
    return Path(__file__).parents[2] / "cpp_plugins"


def build_libraries(
    out: Path | None = None,
    *,
    only: Sequence[str] = (),
    tensorrt: Path | None = None,
    onnxruntime: Path | None = None,
    architectures: Sequence[int] = (),
    sanitize: str = "",
    progress: Progress = SILENT,
) -> BuildReport:
    """Run CMake in a temporary folder, then move the libraries to their place, each whole or not at all.

    Args:
        out: the folder for the libraries; None: the one that they are looked for in.
        only: names of :data:`deploykit.runtime.native.library.LIBRARIES`; ``cpu`` is always built. Empty: all that can
            be.
        tensorrt: a folder with ``NvInfer.h``, or the one above it.
        onnxruntime: a folder with ``onnxruntime_cxx_api.h``.
        architectures: compute capabilities such as 90; empty: all from 75 on that the compiler knows.
        sanitize: sanitizers for what the host runs, for tests.
        progress: receives the steps: configuring, compiling.

    Raises:
        MissingDependencyError: CMake or a C++ compiler is missing. BackendError: a source did not compile.
        UsageError: there is no library of that name. NotFoundError: a folder that was named does not exist.
        OutputError: the place is not writable.
    """
    if unknown := [name for name in only if name not in LIBRARIES]:
        raise UsageError(f"the libraries are {', '.join(LIBRARIES)}; there is no {unknown[0]!r}")
    for folder in (tensorrt, onnxruntime):
        if folder is not None and not is_folder(folder):
            raise NotFoundError(f"a folder with headers was expected at {folder}, and there is none")
    cmake = shutil.which("cmake")
    if cmake is None:
        raise MissingDependencyError(
            "cmake is needed here and is not installed: pip install cmake, or a system package"
        )
    place = out or library_folder()
    check_folder_writable(place)
    wanted = set(only) or set(LIBRARIES)
    values = {
        "DEPLOYKIT_ONNXRUNTIME": "ON" if "onnxruntime" in wanted else "OFF",
        "DEPLOYKIT_CUDA": "ON" if wanted & {"cuda", "tensorrt"} else "OFF",
        "DEPLOYKIT_TENSORRT": "ON" if "tensorrt" in wanted else "OFF",
        "CMAKE_CUDA_ARCHITECTURES": ";".join(
            [*(f"{a}-real" for a in architectures[:-1]), *map(str, architectures[-1:])]
        ),
        "DEPLOYKIT_SANITIZE": sanitize,
        "TENSORRT_ROOT": str(tensorrt.absolute()) if tensorrt else "",
        "ONNXRUNTIME_INCLUDE_DIR": str(onnxruntime.absolute()) if onnxruntime else "",
    }
    log: list[str] = []
    with temporary_folder() as temporary:
        build, ready = temporary / "build", temporary / "lib"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        settings = [f"-D{name}={value}" for name, value in values.items() if value]
        progress.step("configuring")
        command = [cmake, "-S", str(source_folder().resolve()), "-B", str(build), *generator, *settings]
        said = _run([*command, f"-DCMAKE_INSTALL_PREFIX={ready}"], place, log)
        progress.step("compiling")
        _run([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], place, log)
        _run([cmake, "--install", str(build)], place, log)
        _install(ready, place)
    write_atomic(place / LOG, "".join(log).encode())
    lines = dict(re.findall(r"^-- deploykit: deploykit_(\w+): (.*)$", said, re.MULTILINE))
    built = {
        name: place / f.name
        for name in LIBRARIES
        for f in place.glob(f"*deploykit_{name}.*")
        if lines.get(name, "").startswith("built")
    }
    return BuildReport(built, lines, place / LOG)


def _install(ready: Path, place: Path) -> None:
    """Move built libraries to their place; meanwhile no sums say that an old one is damaged."""
    new = {file.name: file.read_bytes() for file in sorted(ready.iterdir())}
    place.mkdir(parents=True, exist_ok=True)
    with alone_in(place):
        sums = place / SUMS
        old = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
        sums.unlink(missing_ok=True)
        for name, data in new.items():
            write_atomic(place / name, data)
        lines = [line for line in old if line.partition("  ")[2] not in new]
        lines += [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in new.items()]
        write_atomic(sums, "".join(f"{line}\n" for line in lines).encode())


def _run(command: Sequence[str], place: Path, log: list[str]) -> str:
    """Run one step; its output goes to the log, which is written where the step fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    log.append(f"$ {' '.join(command)}\n{done.stdout}\n")
    if done.returncode == 0:
        return done.stdout
    write_atomic(place / LOG, "".join(log).encode())
    if "No CMAKE_CXX_COMPILER could be found" in done.stdout:
        raise MissingDependencyError("a C++17 compiler is needed here, and CMake finds none: install g++ or clang++")
    first = re.search(r"^.*\b(?:error|Error)\b[: ].*$", done.stdout, re.MULTILINE)
    reason = first[0].strip() if first else f"exit code {done.returncode}"
    raise BackendError(f"the libraries were not built: {reason}; the whole build log is {place / LOG}")


def library_info(name: str) -> LibraryInfo:
    """What is known of one library without running it on anything."""
    file = find_library(name)
    if file is None:
        return LibraryInfo(name, LIBRARIES[name], None, problem=f"not built: deploykit plugins build{NEEDS[name]}")
    try:
        abi, words = abi_and_words(file)
    except BackendError as e:
        return LibraryInfo(name, LIBRARIES[name], file, problem=str(e))
    found = {m.decode() for m in re.findall(rb"sm_\d+", file.read_bytes())} if name in ("cuda", "tensorrt") else set()
    problem = None if abi == ABI else f"it has ABI {abi}, and this deploykit needs {ABI}: deploykit plugins build"
    ordered = tuple(sorted(found, key=lambda text: int(text[3:])))
    return LibraryInfo(name, LIBRARIES[name], file, abi, words, ordered, problem)
