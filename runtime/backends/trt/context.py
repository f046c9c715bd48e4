"""An execution context of an engine with its stream and memory, and the kernel cache that contexts share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import BackendError, DeployError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import Buffer, Gpu
from deploykit.runtime.files import cache_folder
from deploykit.runtime.session import TensorInfo

__all__ = ["KernelCache", "TrtContext"]


class KernelCache:
    """The kernels that TensorRT for RTX compiles when an engine first runs, kept between processes.

    TensorRT itself compiles them at build time and has no such cache; for its engines this class does nothing.

    Args:
        trt: the module of the flavour.
        engine: the deserialised engine.
        digest: the hash of the engine file; kernels belong to one engine.
        gpu: the GPU; kernels belong to one GPU model.
    """

    def __init__(self, trt: Any, engine: Any, digest: str, gpu: Gpu) -> None:
        self._config: Any = None
        self._cache: Any = None
        self._before = b""
        if not hasattr(trt, "IRuntimeCache"):
            return
        name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
        self._path = cache_folder() / "kernels" / f"tensorrt-rtx-{trt.__version__}-{name}-{digest[:32]}.cache"
        self._config = engine.create_runtime_config()
        self._cache = self._config.create_runtime_cache()
        with suppress(OSError):
            self._before = self._path.read_bytes()
            self._cache.deserialize(self._before)  # False for kernels of another driver: the cache stays empty
        self._config.set_runtime_cache(self._cache)

    def new_context(self, engine: Any) -> Any:
        """Create an execution context that uses and fills the cache."""
        return (
            engine.create_execution_context() if self._config is None else engine.create_execution_context(self._config)
        )

    def save(self) -> None:
        """Store the compiled kernels; a path that cannot be written is ignored, the cache only saves time."""
        if self._cache is not None:
            data = bytes(self._cache.serialize())
            if data != self._before:
                with suppress(DeployError):
                    write_atomic(self._path, data, durable=False)


class TrtContext:
    """Runs an engine, one call at a time.

    Args:
        name: the engine's name in messages.
        gpu: the GPU to run on; it must be the calling thread's current device in every call.
        trt: the module of the flavour.
        engine: the deserialised engine.
        context: its execution context.
        inputs, outputs: the tensors of the engine.
        log: the log of TensorRT.
    """

    def __init__(
        self,
        name: Path,
        gpu: Gpu,
        trt: Any,
        engine: Any,
        context: Any,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        log: BuildLog,
    ) -> None:
        if context is None:
            free, total = gpu.memory()
            raise BackendError(
                f"TensorRT cannot create an execution context for {name}: {_last(log)}; {free / 1e9:.1f} of "
                f"{total / 1e9:.1f} GB of {gpu.name} are free"
            )
        self._name, self._gpu, self._context, self._log = name, gpu, context, log
        self._inputs, self._outputs = inputs, outputs
        self._profile = 0
        self._stream = gpu.new_stream()
        self._events = [gpu.new_event() for _ in range(4)]
        self._buffers = {info.name: Buffer(gpu) for info in (*inputs, *outputs)}
        on_host = trt.TensorLocation.HOST  # tensors that hold shapes lie on the host
        self._on_host = {n for n in self._buffers if engine.get_tensor_location(n) == on_host}
        self._allocators = {info.name: _allocator(trt, self._buffers[info.name]) for info in outputs}

    @property
    def size(self) -> int:
        """The bytes of device memory in the buffers."""
        return sum(buffer.size for buffer in self._buffers.values())

    def run(self, inputs: Mapping[str, Array], profile: int) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the outputs by name, and the GPU's milliseconds per stage.

        The buffers are reused; the outputs are copies.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        gpu, stream, events = self._gpu, self._stream, self._events
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, gpu.handle(stream)):
                raise self._failed(f"cannot use its profile {profile}")
            self._profile = profile
        gpu.record(events[0], stream)
        for info in self._inputs:
            self._put(info.name, inputs[info.name])
        gpu.record(events[1], stream)
        if missing := self._context.infer_shapes():
            raise self._failed(f"needs the shape or the values of {', '.join(missing)}")
        for info in self._outputs:
            self._bind(info)
        ran = self._context.execute_async_v3(gpu.handle(stream))
        for allocator in self._allocators.values():
            if allocator.error is not None:
                raise allocator.error
        if not ran:
            raise self._failed("failed to run")
        gpu.record(events[2], stream)
        pinned = {info.name: self._fetch(info) for info in self._outputs}
        gpu.record(events[3], stream)
        gpu.synchronize(stream)
        spans = zip(("copy in", "compute", "copy out"), events, events[1:], strict=False)
        times = {stage: gpu.milliseconds(start, end) for stage, start, end in spans}
        return {name: value.copy() for name, value in pinned.items()}, times

    def close(self) -> None:
        """Free the buffers, events and stream."""
        self._context = None
        self._allocators.clear()
        for buffer in self._buffers.values():
            buffer.close()
        for event in self._events:
            self._gpu.close_event(event)
        self._events.clear()
        self._gpu.close_stream(self._stream)

    def _put(self, name: str, value: Array) -> None:
        """Copy an input through page-locked memory to the device and set its address."""
        buffer = self._buffers[name]
        host = buffer.host(value.shape, value.dtype)
        np.copyto(host, value)
        if not self._context.set_input_shape(name, value.shape):
            raise self._failed(f"does not accept {name!r} of shape {value.shape}")
        if name in self._on_host:
            address = host.ctypes.data
        else:
            address = buffer.reserve(value.nbytes)
            self._gpu.to_device(address, host, self._stream)
        self._context.set_tensor_address(name, address)

    def _bind(self, info: TensorInfo) -> None:
        """Provide memory for an output, by its shape or, where the data decides that, by TensorRT's request."""
        shape = tuple(self._context.get_tensor_shape(info.name))
        buffer, allocator = self._buffers[info.name], self._allocators[info.name]
        if any(side < 0 for side in shape):
            allocator.shape, allocator.error = None, None
            self._context.set_output_allocator(info.name, allocator)
            return
        allocator.shape = shape
        dtype = np.dtype(info.dtype)
        if info.name in self._on_host:
            address = buffer.host(shape, dtype).ctypes.data
        else:
            address = buffer.reserve(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._context.set_tensor_address(info.name, address)

    def _fetch(self, info: TensorInfo) -> Array:
        """Queue the copy of the output into page-locked memory; it is complete once the stream is done."""
        buffer, allocator = self._buffers[info.name], self._allocators[info.name]
        if allocator.shape is None:
            raise self._failed(f"does not report the shape of {info.name!r}")
        host = buffer.host(allocator.shape, np.dtype(info.dtype))
        if host.size and info.name not in self._on_host:
            self._gpu.to_host(host, buffer.pointer, self._stream)
        return host

    def _failed(self, what: str) -> BackendError:
        return BackendError(f"{self._name} {what}: {_last(self._log)}")


def _last(log: BuildLog) -> str:
    errors = log.errors()
    return " ".join(errors[-1].split()) if errors else "TensorRT gives no reason"


def _allocator(trt: Any, buffer: Buffer) -> Any:
    """Create an ``IOutputAllocator`` that grows a buffer, for outputs whose shape depends on the data."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] | None = None
            self.error: DeployError | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            try:  # 0 tells TensorRT of the failure; it would only print an exception
                return buffer.reserve(size)
            except DeployError as e:
                self.error = e
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
