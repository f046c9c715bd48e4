"""Forked processes: what a session holds belongs to threads and devices of the process that it was opened in."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

__all__ = ["never_free", "tell_forks"]


class _Told(Protocol):
    def forked(self) -> None: ...


_told: weakref.WeakSet[_Told] = weakref.WeakSet()


def tell_forks(owner: _Told) -> None:
    """Let ``owner.forked()`` be called in every process that is forked from this one, before anything else there."""
    _told.add(owner)


def never_free(held: object) -> None:
    """Keep an object until the process ends, and then too.

    ONNX Runtime waits for the threads of a session that it frees, for ever where they are in another process; a GPU's
    libraries call the device.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


def _tell() -> None:
    for owner in list(_told):
        owner.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
