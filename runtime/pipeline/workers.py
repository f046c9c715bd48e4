"""How many workers compute a stream, and with how many threads a network is opened for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from deploykit.errors import UsageError, import_extra
from deploykit.runtime.compute import THREADS, ComputeOptions, default_threads
from deploykit.runtime.cores import usable_cores
from deploykit.runtime.options import ComputeKeywords

__all__ = ["WorkersAsked", "check_workers", "few_together", "images_together", "plan_workers", "workers_on"]

WorkersAsked = int | Literal["auto"] | None

MOST = 16  # workers that nobody asked for: each holds the memory of a run
OVERLAP = 2  # workers where the network itself takes all cores: one image is read and drawn while another one runs
TOGETHER = 640 * 640
"""The most pixels that one thread of a CPU computes in one run, but for a single image.

What a layer gives for more of them leaves the cache before the next layer reads it. Batches of 4 take 0.84 of the time
of their images one by one at 160 x 160, 0.95 at 320 x 320, 1.02 at 416 x 416 and 1.06 at 640 x 640 (yolov5n, ONNX
Runtime 1.31), and hold four times the memory."""


def check_workers(asked: WorkersAsked) -> None:
    """Check a number of workers.

    Raises:
        UsageError: it is neither a number from 1 on nor ``auto`` nor None.
    """
    if not (asked is None or asked == "auto" or (isinstance(asked, int) and asked >= 1)):
        raise UsageError(f"workers must be a number from 1 on, or auto, got {asked!r}")


def plan_workers(
    path: str | os.PathLike[str], asked: WorkersAsked, compute: ComputeKeywords, *, backend: str = "auto"
) -> tuple[int, ComputeKeywords]:
    """Plan workers for a network that is about to be opened for streams.

    A network of ONNX Runtime on the CPU computes several images at the same time with one thread each, which wastes
    nothing: threads that share one image wait for one another at every operator. Where a number of threads is asked
    for, that is the share of the machine that the network may take, and is kept; workers then only overlap. So they do
    where the network runs on a GPU or in torch.

    Args:
        path: the model.
        asked: how many workers; ``auto`` or None: as many as there are cores to compute on.
        compute: the device and the threads that are asked for.
        backend: the backend that is asked for.

    Returns:
        The number of workers, and what to open the network with.

    Raises:
        UsageError: the number is below 1.
    """
    check_workers(asked)
    cores, _ = usable_cores()
    options = ComputeOptions(**compute)
    share, source = default_threads()
    share = options.threads or (share if source == THREADS else None)
    apart = share is None and _runs_apart(Path(path), options.provider, backend)
    count = asked if isinstance(asked, int) else min(cores, MOST) if apart else min(OVERLAP, cores, share or cores)
    return count, {**compute, "threads": max(1, cores // count)} if apart and count > 1 else compute


def workers_on(asked: WorkersAsked, threads: int | None) -> int:
    """Return the number of workers on a network that is open.

    Args:
        asked: how many, if that was said.
        threads: CPU threads within one operator of the network; None: its backend's own number.

    Raises:
        UsageError: the number is below 1.
    """
    check_workers(asked)
    cores, _ = usable_cores()
    return asked if isinstance(asked, int) else min(OVERLAP, cores, threads or cores)


def images_together(batch: int, size_hw: tuple[int, int]) -> int:
    """Return how many images of a batch one thread of a CPU computes in one run.

    Args:
        batch: how many may be.
        size_hw: the network's input in pixels.
    """
    height, width = size_hw
    return max(1, min(batch, TOGETHER // (height * width)))


def few_together(batch: int, together: int) -> str:
    """Return a note for who asked for a batch of more images than run together."""
    few = "one image" if together == 1 else f"{together} images"
    return f"batch {batch}: one thread of a CPU runs {few} of this size at a time, which takes less time"


def _runs_apart(path: Path, provider: str, backend: str) -> bool:
    """Return whether ONNX Runtime will compute a model on the CPU, where runs do not disturb each other."""
    if path.suffix.lower() != ".onnx" or backend not in ("auto", "onnxruntime"):
        return False
    if provider != "auto":
        return provider == "cpu"
    return "CUDAExecutionProvider" not in import_extra("onnxruntime", "cpu").get_available_providers()
