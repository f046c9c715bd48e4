"""Memory that was freed is given back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types

import pytest

from deploykit.export.sessions.freed_memory import release_freed_memory

PROGRAM = """
import os
from deploykit.export.sessions.freed_memory import release_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [bytearray(60_000) for _ in range(3000)]
top = bytearray(60_000)  # what lies above keeps the heap from shrinking
del blocks
before = resident()
release_freed_memory()
print(before - resident())
"""


def test_what_python_freed_is_given_back() -> None:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("only glibc gives memory back on demand")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100e6


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
    release_freed_memory()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: 1 / 0)
    release_freed_memory()
