"""The ways to run a model on this machine: files beside it in other precisions, devices, numbers of threads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import import_extra
from deploykit.runtime.session import is_checkpoint
from deploykit.spec import ENGINE_SUFFIXES

__all__ = ["Candidate", "candidates", "files_beside"]

PRECISION = re.compile(r"(?:[-._ ](?:fp32|fp16|half|bf16|int8|cpu|fp8))+$", re.IGNORECASE)
"""Ends of a file's name that say a precision, or what it was quantized for."""
CPU, SUFFIX = "CPUExecutionProvider", "ExecutionProvider"
REMOTE = ("AzureExecutionProvider",)  # computes elsewhere
MANY_CORES = 4  # from which half of them are tried too


@dataclass(frozen=True)
class Candidate:
    """A file, a device as :class:`deploykit.runtime.compute.ComputeOptions` takes it, and threads; None: default."""

    file: Path
    device: str | int | None = None
    threads: int | None = None

    @property
    def name(self) -> str:
        """What it is called in a table."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        device = "" if self.device is None else f" on {self.device}"
        return f"{self.file.name}{device}{threads}"


def files_beside(file: Path) -> list[Path]:
    """Return exports in the same folder whose names differ in a precision alone: ``m-int8.onnx`` and ``m.trt``."""
    base = _base(file)
    try:
        beside = sorted(file.parent.iterdir())
    except OSError:
        return []
    suffixes = {".onnx", *ENGINE_SUFFIXES}
    return [one for one in beside if one.name != file.name and one.suffix.lower() in suffixes and _base(one) == base]


def candidates(
    files: Sequence[Path], *, device: str | int | None = None, threads: int | None = None
) -> list[Candidate]:
    """Return every way to run these files here; the first is the first file as it runs by default.

    Args:
        files: at least one, of any kind that a session opens.
        device, threads: only this device, only this number of threads.
    """
    found: dict[Candidate, None] = {}
    for file in files:
        for place in (device,) if device is not None else _devices(file):
            for count in (threads,) if threads is not None else _threads(file, place):
                found[Candidate(file, place, count)] = None
    return list(found)


def _base(file: Path) -> str:
    return PRECISION.sub("", file.stem)


def _devices(file: Path) -> Iterator[str | None]:
    """None (the default of the file) first, then what else computes."""
    yield None
    if file.suffix.lower() != ".onnx":
        return
    available: list[str] = import_extra("onnxruntime", "cpu").get_available_providers()
    others = [name for name in available if name != CPU and name not in REMOTE]
    default = "CUDAExecutionProvider" if "CUDAExecutionProvider" in available else CPU
    yield from (name.removesuffix(SUFFIX).lower() for name in others if name != default)
    if default != CPU:
        yield "cpu"


def _threads(file: Path, device: str | int | None) -> Iterator[int | None]:
    """The default first; one thread, and half of many cores, where they are what computes."""
    yield None
    if file.suffix.lower() in ENGINE_SUFFIXES or str(device).lower() not in ("none", "cpu"):
        return
    if device is None and not is_checkpoint(file):
        available = import_extra("onnxruntime", "cpu").get_available_providers()
        if "CUDAExecutionProvider" in available:  # the default is a GPU
            return
    cores = os.cpu_count() or 1
    if cores > 1:
        yield 1
    if cores >= MANY_CORES:
        yield cores // 2
