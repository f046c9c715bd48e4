"""The runs of an engine on a stream of its own, for work that is put before and after the network on the GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from deploykit.errors import BackendError
from deploykit.runtime.backends.on_device import DeviceTensor
from deploykit.runtime.backends.trt.context import TrtContext
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.session import TensorInfo

__all__ = ["PlacedEngine", "TrtRuns"]


class PlacedEngine:
    """An engine between buffers on the device; see :class:`deploykit.runtime.backends.on_device.NetworkOnDevice`."""

    def __init__(self, context: TrtContext, inputs: Mapping[str, DeviceTensor]) -> None:
        self.inputs = inputs
        self._context = context

    def enqueue(self) -> None:
        """Put the engine on the stream; it is not waited for."""
        self._context.enqueue()

    def outputs(self) -> dict[str, DeviceTensor]:
        """Where the outputs of the run before lie; valid until the next one."""
        return self._context.outputs()


class TrtRuns:
    """See :class:`deploykit.runtime.backends.on_device.RunsOnDevice`; one thread at a time is on the GPU.

    An engine all of whose shapes are fixed is captured in a CUDA graph at once.

    Args:
        gpu: the GPU.
        context: an execution context that nothing else uses.
        inputs: the inputs of the engine.
        profile_for: the number of the profile for inputs of some shapes.
    """

    def __init__(
        self,
        gpu: Gpu,
        context: TrtContext,
        inputs: tuple[TensorInfo, ...],
        profile_for: Callable[[Mapping[str, tuple[int, ...]]], int],
    ) -> None:
        self.gpu, self.inputs = gpu, inputs
        self.stream: Any = context.stream
        self._context, self._profile_for = context, profile_for
        self._lock, self._closed = threading.Lock(), False
        shapes = {info.name: tuple(side for side in info.shape if side is not None) for info in inputs}
        if all(len(shapes[info.name]) == len(info.shape) for info in inputs):
            zeros = {info.name: np.zeros(shapes[info.name], info.dtype) for info in inputs}
            with gpu.current():
                for _ in range(2):  # the second is captured
                    context.run(zeros, profile_for(shapes))

    @contextlib.contextmanager
    def hold(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[PlacedEngine]:
        """Have the stream and the buffers for inputs of these shapes for a while; other threads wait.

        Raises:
            BackendError: TensorRT or CUDA failed, the engine does not take these shapes, or the session is closed.
        """
        with self._lock, self.gpu.current():
            if self._closed:
                raise BackendError("this session is closed")
            yield PlacedEngine(self._context, self._context.place(shapes, self._profile_for(shapes)))

    def close(self) -> None:
        """Wait for the thread that has them, and give them to no other; the context is closed by the session."""
        with self._lock:
            self._closed = True
