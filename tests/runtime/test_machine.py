"""The description of the machine: values that the system reports, and None where it reports none."""

from __future__ import annotations

import mmap
import os
import platform
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit
from deploykit.runtime import cores as own_cores
from deploykit.runtime import machine
from deploykit.runtime.machine import (
    Gpu,
    Machine,
    peak_memory,
    processor_name,
    reset_peak_memory,
    resident_memory,
    versions,
)

linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has /proc")


def test_this_machine_is_described() -> None:
    here = Machine.here()
    assert here.processor == processor_name() != ""
    assert 1 <= here.cores <= here.machine_cores == os.cpu_count()
    assert here.system == platform.platform()
    assert here.memory is None or here.memory > 100_000_000


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_only_cores_that_the_process_may_use_are_counted() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert Machine.here().cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("cores", "memory", "limits"),
    [
        ("150000 100000\n", "64000000\n", (1.5, 64_000_000)),
        ("max 100000\n", "max\n", (None, None)),
        (None, None, (None, None)),
        ("nonsense", "nonsense", (None, None)),
    ],
)
def test_the_limits_of_a_container_are_reported(
    cores: str | None,
    memory: str | None,
    limits: tuple[float | None, int | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in (("cpu.max", cores), ("memory.max", memory)):
        if text is not None:
            (tmp_path / name).write_text(text)
    for module in (machine, own_cores):
        monkeypatch.setattr(module, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(own_cores, "OWN_GROUPS", tmp_path / "none")
    free = Machine.here()
    assert free.core_limit is None
    for module in (machine, own_cores):
        monkeypatch.setattr(module, "CGROUP", tmp_path)
    here = Machine.here()
    assert (here.core_limit, here.memory) == (limits[0], limits[1] or free.memory)


def _nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Gpu, ...]:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Machine.here().gpus


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'NVIDIA H100 80GB HBM3, 550.54.15'", (Gpu("NVIDIA H100 80GB HBM3", "550.54.15"),)),
        ("echo 'A, 1'; echo 'B, 1'", (Gpu("A", "1"), Gpu("B", "1"))),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", ()),
        ("exec sleep 30", ()),
        ("true", ()),
    ],
)
def test_gpus_come_from_the_drivers_list(
    script: str, gpus: tuple[Gpu, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "NVIDIA_SMI_TIMEOUT", 0.5)
    assert _nvidia_smi(tmp_path, script, monkeypatch) == gpus


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Machine.here().gpus == ()


def test_versions_cover_the_loaded_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.delitem(machine.sys.modules, "torch", raising=False)
    found = versions()
    assert found["deploykit"] == deploykit.__version__
    assert found["Python"] == platform.python_version()
    assert (found["numpy"], found["OpenCV"]) == (np.__version__, cv2.__version__)
    assert found["onnxruntime"] == onnxruntime.__version__
    assert "torch" not in found
    assert all(type(version) is str for version in found.values())


@linux
def test_the_peak_memory_counts_from_its_reset() -> None:
    if not reset_peak_memory():
        pytest.skip("this system does not let a process reset its peak")
    before = resident_memory()
    block = mmap.mmap(-1, 60_000_000)  # fresh pages: an array may reuse memory of the process
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    held = resident_memory()
    block.close()
    peak = peak_memory()
    assert before is not None
    assert held is not None
    assert peak is not None
    assert min(held, peak) - before > 50_000_000
    assert reset_peak_memory()
    after = peak_memory()
    assert after is not None
    assert peak - after > 50_000_000


def test_without_proc_the_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESS", Path("/proc/none"))
    assert resident_memory() is None
    assert not reset_peak_memory()
    assert os.name != "posix" or (peak_memory() or 0) > 1_000_000
