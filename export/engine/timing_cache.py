"""TensorRT's timing cache: the timings of kernels, kept between builds to make the next one faster.

Timings hold for one GPU and one version of TensorRT, so there is one file per pair. TensorRT checks both again by the
header of the cache. TensorRT for RTX measures nothing during a build, and has no timing cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploykit.runtime.cuda import Gpu
from deploykit.runtime.files import cache_folder

__all__ = ["place_of_cache"]


def place_of_cache(version: str, gpu: Gpu) -> Path:
    """Return the file for a version of TensorRT on GPUs of this model."""
    major, minor = gpu.compute_capability
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return cache_folder() / "timing" / f"tensorrt-{version}-sm{major}{minor}-{name}.cache"
