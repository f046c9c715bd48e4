"""Restoration of RAW mosaics: packed to four channels, processed in tiles, unpacked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from deploykit.errors import DeployError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.in_memory import AnyImage, read_any_image
from deploykit.runtime.images.tiles import Tiling
from deploykit.runtime.pipeline.job import Job, Unreadable
from deploykit.runtime.raw.mosaic import RawImage, develop_raw, is_raw, pack, read_raw, unpack
from deploykit.runtime.results.dense import RestoredRaw
from deploykit.runtime.sources.frames import Images
from deploykit.spec import InputSpec

__all__ = ["is_mosaic", "mosaic_job", "read_item", "restore_mosaic"]


def is_mosaic(item: object) -> bool:
    """Return whether an item of a source is a RAW file."""
    return isinstance(item, (str, os.PathLike)) and is_raw(item)


def read_item(item: AnyImage, *, channels: int, max_pixels: int, **options: Any) -> Array:
    """Return an image; a RAW file is developed, for a network that takes no mosaics."""
    if is_mosaic(item):
        return develop_raw(cast("str | os.PathLike[str]", item), max_pixels=max_pixels)
    return read_any_image(item, channels=channels, max_pixels=max_pixels, **options)


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


def mosaic_job(
    source: Images, restore: Callable[[RawImage], RestoredRaw], *, max_pixels: int, here: bool
) -> Job[tuple[RawImage, float], RestoredRaw]:
    """Return the job of restoring the mosaics of RAW files, one by one; ``here`` as in :class:`Job`."""

    def load(item: str | os.PathLike[str]) -> tuple[RawImage, float] | Unreadable:
        start = time.perf_counter()
        try:
            raw = read_raw(item, max_pixels=max_pixels)
        except DeployError as e:
            return Unreadable(e)
        return raw, (time.perf_counter() - start) * 1e3

    def run(batch: list[tuple[RawImage, float]]) -> list[RestoredRaw]:
        found = ((restore(raw), read_ms) for raw, read_ms in batch)
        return [replace(each, timings={**each.timings, "read": read_ms}) for each, read_ms in found]

    loads = (partial(load, cast("str | os.PathLike[str]", item)) for item in source.items)
    return Job(loads, run, 1, lambda _, __: True, lambda item: item[0].mosaic.nbytes, here=here)
