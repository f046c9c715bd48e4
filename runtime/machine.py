"""What a measurement was made on: the machine, the versions of what computes, and the memory of this process."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from deploykit.version import __version__

__all__ = ["Gpu", "Machine", "peak_memory", "processor_name", "reset_peak_memory", "resident_memory", "versions"]

BACKENDS = ("onnxruntime", "torch", "tensorrt", "tensorrt_rtx")
GROUP = Path("/sys/fs/cgroup")  # where Linux tells a container its limits
PROCESS = Path("/proc/self")
PATIENCE = 10  # seconds for nvidia-smi, which can hang where a driver is broken


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU and the version of its driver."""

    name: str
    driver: str


@dataclass(frozen=True)
class Machine:
    """Where a measurement was made.

    Attributes:
        processor: the CPU's model.
        cores: how many cores this process may run on.
        machine_cores: how many the machine has.
        core_limit: the share of them that a container's quota leaves, in cores; None: there is no quota.
        memory: bytes of memory, or a container's limit where that is less; None: the system does not say.
        load: programs that wanted a core in the last minute (the load average), this one included; None: not said.
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
        """The machine that this process runs on, as it is now."""
        machine_cores = os.cpu_count() or 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine_cores
        load = None
        with contextlib.suppress(OSError, AttributeError):
            load = os.getloadavg()[0]
        return Machine(
            processor=processor_name(),
            cores=cores,
            machine_cores=machine_cores,
            core_limit=_core_limit(),
            memory=_memory(),
            load=load,
            system=platform.platform(),
            gpus=_gpus(),
        )


def versions() -> dict[str, str]:
    """Python, deploykit, numpy and OpenCV, and whichever backends this process has loaded."""
    found = {"Python": platform.python_version(), "deploykit": __version__}
    found |= {"numpy": np.__version__, "OpenCV": cv2.__version__}
    loaded = {name: sys.modules.get(name) for name in BACKENDS}
    return found | {name: str(getattr(module, "__version__", "?")) for name, module in loaded.items() if module}


def processor_name() -> str:
    """The CPU's model; Linux names it only in /proc/cpuinfo."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_memory() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say (it does on Linux)."""
    return _status("VmRSS")


def reset_peak_memory() -> bool:
    """Let :func:`peak_memory` count from now on; False where the system keeps the peak of the whole process."""
    try:
        (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """The most bytes that this process has held since :func:`reset_peak_memory`, or ever where that gave False."""
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
    limit = _text(GROUP / "memory.max").strip()
    if not limit.isdecimal():  # "max": none
        return total
    return int(limit) if total is None else min(total, int(limit))


def _core_limit() -> float | None:
    quota, _, period = _text(GROUP / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _gpus() -> tuple[Gpu, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):  # for example no driver behind it
        return ()
    rows = (line.rpartition(",") for line in done.stdout.splitlines())
    return tuple(Gpu(name.strip(), driver.strip()) for name, _, driver in rows)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
