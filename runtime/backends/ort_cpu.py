"""Networks on the CPU in ONNX Runtime: what they hold in memory, and how its threads wait.

What each setting saves and costs is in docs/memory.md, by benchmarks/memory.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from deploykit.errors import UsageError
from deploykit.runtime.backends.memory_limit import apply_limit, memory_limit
from deploykit.runtime.backends.onnx_weights import graph_without_weights
from deploykit.runtime.machine import resident_memory

__all__ = ["LOW_MEMORY", "give_back", "low_memory", "open_on_cpu", "set_for_cpu"]

LOW_MEMORY = "DEPLOYKIT_LOW_MEMORY"
"""The environment variable that lets every run give back the memory of its activations."""

SPIN_MICROSECONDS = 200
"""How long a thread looks for work before it sleeps. The gaps between two operators are shorter, so a run alone on its
cores takes no longer (with 50 it takes up to 1.75 times as long, docs/predict.md); threads that look for longer take
the cores from whatever else wants to compute."""

LARGE = 32 << 20  # bytes that loading must have added to the process before freed memory is looked for
FOLDER = "session.model_external_initializers_file_folder_path"
MAPS = Path("/proc/self/maps")


def low_memory() -> bool:
    """Return whether :data:`LOW_MEMORY` is set.

    Raises:
        UsageError: it is neither 0 nor 1.
    """
    typed = os.environ.get(LOW_MEMORY, "").strip()
    if typed not in ("", "0", "1"):
        raise UsageError(f"{LOW_MEMORY} must be 0 or 1, got {typed!r}")
    return typed == "1"


def set_for_cpu(ort: Any, options: Any) -> None:
    """Set the options of a session of ONNX Runtime (``ort``) that runs on the CPU alone.

    Raises:
        UsageError: the process has another memory limit than is asked for.
    """
    limit = memory_limit()
    if limit is not None:
        apply_limit(ort, options, limit)
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.enable_mem_pattern = False  # plans one block for all activations and keeps the first run's memory beside it
    options.enable_cpu_mem_arena = limit is not None or not low_memory()  # it keeps the memory of one run for the next


def open_on_cpu(load: Callable[[str | bytes], Any], path: Path, options: Any, *, whole: bool) -> Any:
    """Load a file for the CPU provider, with the settings of :func:`set_for_cpu`, and return ONNX Runtime's session.

    ONNX Runtime turns the weights of convolutions and products into layouts of its own and keeps these alone. A file
    that it reads itself is in memory twice meanwhile, and the C library keeps the freed half for later. So the weights
    of a large file are mapped while it is loaded, and what was freed goes back to the system.

    Args:
        load: makes the session of a file's path, or of an ONNX model's bytes.
        path: the ONNX file.
        options: ONNX Runtime's options of the session, which are completed.
        whole: let ONNX Runtime read the file itself.
    """
    before = resident_memory()
    session = None if whole else _with_mapped_weights(load, path, options)
    if session is None:
        session = load(str(path))
    after = resident_memory()
    if before is None or after is None or after - before >= LARGE:
        give_back()
    return session


def _with_mapped_weights(load: Callable[[str | bytes], Any], path: Path, options: Any) -> Any:
    """Return a session whose weights were mapped while it was loaded; None: the file has to be read as it is.

    A file that stays mapped ends the process when somebody truncates it, so a session that still needs the mapping
    (of a layer whose weights are used as they are) is dropped. So is one of a file that was replaced meanwhile.
    """
    file = path.resolve()
    if sys.platform != "linux":
        return None
    seen = _identity(file)
    if (graph := graph_without_weights(file)) is None:
        return None
    options.add_session_config_entry(FOLDER, str(file.parent))
    try:
        session = load(graph)
    except Exception as e:  # ONNX Runtime's exceptions share no base class
        if "is not a registered function/op" in str(e):
            raise
        return None  # the file itself gives the error that a user should read
    session._model_bytes = b""  # kept for a change of providers, which nobody makes
    mapped = str(file) in MAPS.read_text(errors="replace")
    return None if mapped or _identity(file) != seen else session


def _identity(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def give_back() -> None:
    """Give memory that is free in the C library back to the system; only glibc can do that."""
    if trim := _trim():
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        return ctypes.CDLL(None).malloc_trim
    return None
