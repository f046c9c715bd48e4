"""Restoration of RAW mosaics: packed to four channels, processed in tiles, unpacked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from deploykit.errors import DeployError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.tiles import Tiling
from deploykit.runtime.raw.mosaic import RawImage, is_raw, pack, read_raw, unpack
from deploykit.runtime.results.dense import RestoredRaw
from deploykit.runtime.sources.frames import Images, Skip
from deploykit.spec import InputSpec

__all__ = ["is_mosaic", "restore_mosaic", "restored_mosaics"]


def is_mosaic(item: object) -> bool:
    """Return whether an item of a source is a RAW file."""
    return isinstance(item, (str, os.PathLike)) and is_raw(item)


def restore_mosaic(
    raw: RawImage, run_tiled: Callable[[Array], Array], tiling: Tiling, canvas: InputSpec
) -> RestoredRaw:
    """Restore one mosaic.

    Args:
        raw: the mosaic as it was read.
        run_tiled: computes the network's output for planes ``(4, H, W)``.
        tiling: how ``run_tiled`` cuts the planes.
        canvas: the network's input.

    Raises:
        SpecError: the output has another size. BackendError: the network failed.
    """
    start = time.perf_counter()
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (canvas.mean, canvas.std))
    planes = (pack(raw) - mean) / std
    ready = time.perf_counter()
    found = run_tiled(np.ascontiguousarray(planes, np.float32))
    done = time.perf_counter()
    if found.shape != planes.shape:
        raise SpecError(
            f"the output for a mosaic must have the shape of its channels, {planes.shape}, got {found.shape}"
        )
    out = unpack(found.astype(np.float32) * std + mean, raw)
    marks = (start, ready, done, time.perf_counter())
    stages = ("prepare", "inference", "postprocess")
    timings = {stage: 1e3 * (b - a) for stage, a, b in zip(stages, marks, marks[1:], strict=False)}
    count = len(tiling.places(planes.shape[1:]))
    return RestoredRaw(size=raw.mosaic.shape, name=raw.name, timings={"read": 0.0, **timings}, raw=out, tiles=count)


def restored_mosaics(
    source: Images, restore: Callable[[RawImage], RestoredRaw], skip: Skip | None, *, max_pixels: int
) -> Iterator[RestoredRaw]:
    """Yield the restored mosaics of RAW files in order; ``skip`` is called for each file that cannot be read."""
    for item in source.items:
        start = time.perf_counter()
        try:
            raw = read_raw(cast("str | os.PathLike[str]", item), max_pixels=max_pixels)
        except DeployError as e:
            if skip is None:
                raise
            skip(e)
            continue
        read_ms = (time.perf_counter() - start) * 1e3
        found = restore(raw)
        yield replace(found, timings={**found.timings, "read": read_ms})
