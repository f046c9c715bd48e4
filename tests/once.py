"""Folders that the processes of one test run share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this run: the first process that asks fills it, the others wait and then read it.

    Where ``fill`` raises, the next one that asks tries anew.
    """
    staged = factory.mktemp(name)
    if sys.platform == "win32" or "PYTEST_XDIST_WORKER" not in os.environ:
        fill(staged)
        return staged
    import fcntl

    run = factory.getbasetemp().parent  # each worker has a folder of its own in it
    folder = run / name
    with (run / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not folder.exists():
            fill(staged)
            staged.rename(folder)
    return folder
