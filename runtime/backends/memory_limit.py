"""A limit on the memory that the runs of networks hold on the CPU, in ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array

__all__ = [
    "MEMORY_LIMIT",
    "apply_limit",
    "is_over_limit",
    "limit_memory",
    "memory_limit",
    "run_within_limit",
    "size_of",
]

MEMORY_LIMIT = "DEPLOYKIT_MEMORY_LIMIT"
"""The environment variable with the bytes that the runs of all networks of the process may hold together."""

SIZE = re.compile(r"(\d{1,15})([kmg]?)", re.IGNORECASE)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

FULL = re.compile(r"Available memory of \d+ is smaller than requested bytes of \d+")
AS_ASKED = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
SHRINK = ("memory.enable_memory_arena_shrinkage", "cpu:0")
SHARED_ARENA = ("session.use_env_allocators", "1")


class _Limits:
    """The limits of this process: the one that was asked for by :func:`limit_memory`, and the one in effect."""

    asked: int | None = None
    applied: int | None = None
    lock = threading.Lock()


def limit_memory(size: int | None) -> None:
    """Set the limit for models that are opened from now on, in bytes; None: that of :data:`MEMORY_LIMIT`, if it is set.

    It counts activations and outputs of all networks that ONNX Runtime runs on the CPU, and not weights.

    Raises:
        UsageError: it is not over 0.
    """
    if size is not None and size < 1:
        raise UsageError(f"a memory limit must be over 0 bytes, got {size}")
    _Limits.asked = size


def memory_limit() -> int | None:
    """Return the limit that was asked for; None: there is none.

    Raises:
        UsageError: the environment variable is no number of bytes.
    """
    typed = os.environ.get(MEMORY_LIMIT, "").strip()
    if _Limits.asked is not None or not typed:
        return _Limits.asked
    if not (size := size_of(typed)):
        raise UsageError(f"{MEMORY_LIMIT} must be a number of bytes such as 500m or 2g, got {typed!r}")
    return size


def size_of(text: str) -> int | None:
    """Return a number of bytes, which may end in k, m or g (powers of 1024); None: it is none."""
    found = SIZE.fullmatch(text)
    return None if found is None else int(found[1]) * UNITS[found[2].lower()]


def apply_limit(ort: Any, options: Any, size: int) -> None:
    """Let a session that is about to be opened take its memory from the one arena that has the limit.

    Args:
        ort: the module onnxruntime.
        options: its options of the session.
        size: the limit in bytes.

    Raises:
        UsageError: the process has another limit already.
    """
    with _Limits.lock:
        if _Limits.applied is None:
            place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(place, ort.OrtArenaCfg({"max_mem": size, **AS_ASKED}))
            _Limits.applied = size
    if size != _Limits.applied:
        raise UsageError(
            f"the memory limit holds for the whole process, and is {_Limits.applied:,} bytes since the first model was "
            f"opened: it cannot become {size:,}"
        )
    options.add_session_config_entry(*SHARED_ARENA)


def is_over_limit(error: Exception) -> bool:
    """Return whether a run failed because of the limit."""
    return FULL.search(str(error)) is not None


def run_within_limit(run: Callable[[Any], Any], options: Any, *, lean: bool) -> list[Array]:
    """Return what ``run`` gives for ONNX Runtime's options of a run.

    The arena keeps what earlier runs gave back, in pieces that a run of another shape may find too small. Then they go
    back to the system, at the end of a run that fails too, and it runs again.

    Args:
        run: runs the network.
        options: the options.
        lean: give the memory back after every run.

    Raises:
        Exception: what ONNX Runtime raises, whose exceptions share no base class.
    """
    if lean:
        options.add_run_config_entry(*SHRINK)
    outputs: list[Array]
    try:
        outputs = run(options)
    except Exception as e:
        if not is_over_limit(e):
            raise
        options.add_run_config_entry(*SHRINK)
        with contextlib.suppress(Exception):
            outputs = run(options)
            return outputs
        outputs = run(options)
    return outputs
