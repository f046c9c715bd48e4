"""The conditions of a measurement: the machine, the library versions and the memory of this process."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploykit.runtime.cores import CGROUP, allowed_cores, core_limit
from deploykit.version import __version__

__all__ = [
    "Gpu",
    "Machine",
    "cpu_features",
    "peak_memory",
    "processor_name",
    "reset_peak_memory",
    "resident_memory",
    "versions",
]

BACKENDS = ("onnxruntime", "torch", "tensorrt", "tensorrt_rtx")
PROCESS = Path("/proc/self")
FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp",
    "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instructions that make networks faster: of x86 for float32, int8, half precision and matrices; of Arm."""
NVIDIA_SMI_TIMEOUT = 10  # seconds; nvidia-smi can hang where the driver is broken


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU and the version of its driver."""

    name: str
    driver: str


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement.

    Attributes:
        processor: the CPU model.
        cores: number of cores that this process may run on.
        machine_cores: number of cores of the machine.
        core_limit: the CPU quota of a container, in cores; None: there is no quota.
        memory: bytes of memory, or the limit of a container if that is lower; None: the system does not report it.
        load: the load average of the last minute, that is the number of programs that wanted a core, this one included;
            None: the system does not report it.
        system: the operating system.
        gpus: the NVIDIA GPUs that ``nvidia-smi`` lists.
    """

    processor: str
    cores: int
    machine_cores: int
    core_limit: float | None
    memory: int | None
    load: float | None
    system: str
    gpus: tuple[Gpu, ...] = ()

    @staticmethod
    def here() -> Machine:
        """Describe the machine that this process runs on, as it is now."""
        machine_cores = os.cpu_count() or 1
        load = None
        with contextlib.suppress(OSError, AttributeError):
            load = os.getloadavg()[0]
        return Machine(
            processor=processor_name(),
            cores=len(allowed_cores()),
            machine_cores=machine_cores,
            core_limit=core_limit(),
            memory=_memory(),
            load=load,
            system=platform.platform(),
            gpus=_gpus(),
        )


def versions() -> dict[str, str]:
    """Return the versions of Python, deploykit, numpy, OpenCV and every backend that this process has loaded."""
    import cv2  # not above: what describes a machine must not need it
    import numpy as np

    found = {"Python": platform.python_version(), "deploykit": __version__}
    found |= {"numpy": np.__version__, "OpenCV": cv2.__version__}
    loaded = {name: sys.modules.get(name) for name in BACKENDS}
    return found | {name: str(getattr(module, "__version__", "?")) for name, module in loaded.items() if module}


def processor_name() -> str:
    """Return the CPU model; Linux reports it only in /proc/cpuinfo."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Return those of :data:`FEATURES` that the CPU has; empty where the system does not report them."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(words.split())
            return tuple(feature for feature in FEATURES if feature in have)
    return ()


def resident_memory() -> int | None:
    """Return the bytes of memory that this process holds now; None where the system does not report it."""
    return _status("VmRSS")


def reset_peak_memory() -> bool:
    """Start :func:`peak_memory` anew.

    Returns False where the system keeps only the peak of the whole process.
    """
    try:
        (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """Return the most bytes that this process has held since :func:`reset_peak_memory`.

    Where the reset returned False, the peak is that of the whole process.
    """
    peak = _status("VmHWM")
    if peak is None:
        with contextlib.suppress(ImportError):  # Windows has no such module
            import resource

            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak = used if sys.platform == "darwin" else used * 1024
    return peak


def _status(name: str) -> int | None:
    for line in _text(PROCESS / "status").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _memory() -> int | None:
    total = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _text(CGROUP / "memory.max").strip()
    if not limit.isdecimal():  # "max" stands for no limit
        return total
    return int(limit) if total is None else min(total, int(limit))


def _gpus() -> tuple[Gpu, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        completed = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):  # for example without a driver
        return ()
    rows = (line.rpartition(",") for line in completed.stdout.splitlines())
    return tuple(Gpu(name.strip(), driver.strip()) for name, _, driver in rows)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
