"""TensorRT's timing cache: what its builder measured, kept from build to build, so that the next one is quicker.

A measurement is of one GPU and one TensorRT, so there is one file for each pair; TensorRT checks both again by what it
writes into the cache itself. TensorRT for RTX measures nothing when it builds, and has none.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from deploykit.errors import DeployError
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.files import cache_folder, write_atomic

__all__ = ["place_of_cache", "read_cache", "write_cache"]


def place_of_cache(version: str, gpu: Gpu) -> Path:
    """The file for this TensorRT on GPUs of this model."""
    major, minor = gpu.compute_capability
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return cache_folder() / "timing" / f"tensorrt-{version}-sm{major}{minor}-{name}.cache"


def read_cache(place: Path) -> bytes:
    """What the file holds; nothing where there is none."""
    try:
        return place.read_bytes()
    except OSError:
        return b""


def write_cache(place: Path, data: bytes) -> None:
    """Keep it, whole or not at all. It is a convenience: where it cannot be written there is none."""
    with contextlib.suppress(DeployError):
        write_atomic(place, data)
