"""How the C library treats memory that images freed."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of glibc's mallopt
LARGEST = 32 << 20  # bytes that one allocation takes from kept memory; glibc allows no more
KEPT = 64 << 20  # bytes that each arena keeps
ARENAS = 4


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for what is allocated next, and return whether it does; it holds for the process.

    Without it, the pixels of every image come from the system anew and each page of them is a fault, which cost 6 ms
    of the processor's time for a JPEG of 1920 x 1080 that a thread decodes. At most 256 MiB are kept. Other C libraries
    are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        asked = ((ARENA_MAX, ARENAS), (MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT))
        return all([mallopt(number, value) == 1 for number, value in asked])
    return False
