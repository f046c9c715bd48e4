"""Memory that images freed is there for what comes next."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGES_IN_THREE = 3 * (6 << 20) // 4096
CODE = """
import resource
from concurrent.futures import ThreadPoolExecutor
from deploykit.runtime.pipeline.kept_memory import keep_freed_memory

def work():
    for _ in range(10):
        three = [b"x" * (6 << 20) for _ in range(3)]

assert keep_freed_memory()
with ThreadPoolExecutor(1) as pool:
    pool.submit(work).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pool.submit(work).result()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_a_thread_frees_is_not_asked_of_the_system_again() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < PAGES_IN_THREE // 10, "ten times three allocations were faults on each page"
