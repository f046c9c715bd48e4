"""What backends on an NVIDIA GPU have in common: buffers, where tensors lie, and work around a network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.session import TensorInfo

__all__ = ["STAGES", "Buffer", "DeviceTensor", "NetworkOnDevice", "RunsOnDevice", "is_replay"]

STAGES = ("copy in", "compute", "copy out")
"""What a plain run on a GPU consists of."""

REPLAY_SHARE = 1e-3
"""How far a replay may lie from an ordinary run: the kernels are the same, and some add in any order."""


@dataclass(frozen=True)
class DeviceTensor:
    """Where a tensor lies on the device."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Buffer:
    """Device memory with a page-locked counterpart on the host; it grows when needed and never shrinks."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.pointer = 0
        self.size = 0
        self._pinned: Array | None = None

    def reserve(self, size: int) -> int:
        """Ensure at least ``size`` bytes on the device and return the pointer; the old content may be lost."""
        if size > self.size or not self.pointer:
            self._free()
            self.pointer = self._gpu.allocate(max(size, 1))
            self.size = max(size, 1)
        return self.pointer

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return the start of the host memory as an array; a later call with a larger size invalidates it."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self._pinned is None or len(self._pinned) < size:
            self._free_pinned()
            self._pinned = self._gpu.allocate_pinned(max(size, self.size, 1))
        return self._pinned[:size].view(dtype).reshape(shape)

    def close(self) -> None:
        """Free both memories."""
        self._free()
        self._free_pinned()

    def _free(self) -> None:
        if self.pointer:
            self._gpu.free(self.pointer)
        self.pointer = self.size = 0

    def _free_pinned(self) -> None:
        if self._pinned is not None:
            self._gpu.free_pinned(self._pinned)
        self._pinned = None


class NetworkOnDevice(Protocol):
    """A network between buffers on the device. ``inputs`` are where each input lies, to be written before a run."""

    @property
    def inputs(self) -> Mapping[str, DeviceTensor]: ...

    def enqueue(self) -> object:
        """Put the network on the stream; it is not waited for."""
        ...

    def outputs(self) -> Mapping[str, DeviceTensor]:
        """Where the outputs of the run before lie; valid until the next one."""
        ...


class RunsOnDevice(Protocol):
    """The runs of a session on one stream of a GPU, for work that is put before and after the network there."""

    gpu: Gpu
    stream: Any
    inputs: tuple[TensorInfo, ...]

    def hold(self, shapes: Mapping[str, tuple[int, ...]]) -> AbstractContextManager[NetworkOnDevice]:
        """Have the stream and the buffers for inputs of these shapes for a while; other threads wait."""
        ...


def is_replay(found: Array, expected: Array) -> bool:
    """Whether the replay of a CUDA graph gave an output of the ordinary run again."""
    most = float(np.nan_to_num(np.abs(expected.astype(np.float64))).max(initial=0.0))
    return bool(np.allclose(expected, found, rtol=REPLAY_SHARE, atol=REPLAY_SHARE * most, equal_nan=True))
