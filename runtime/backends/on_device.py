"""What backends on an NVIDIA GPU have in common: where tensors lie there, and how work is put around a network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.session import TensorInfo

__all__ = ["STAGES", "DeviceTensor", "NetworkOnDevice", "RunsOnDevice", "is_replay"]

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
