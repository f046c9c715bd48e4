"""One execution context of an engine, with its stream and its memory, and the cache of kernels that contexts share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import BackendError, DeployError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import Buffer, Gpu
from deploykit.runtime.files import cache_folder, write_whole
from deploykit.runtime.session import TensorInfo

__all__ = ["KernelCache", "TrtContext"]


class KernelCache:
    """The kernels that TensorRT for RTX compiles when an engine first runs, kept from process to process.

    TensorRT compiles when it builds: it has no such cache, and this does nothing then.

    Args:
        trt: the flavour's module.
        engine: the deserialised engine.
        digest: the engine file's hash; kernels are of one engine.
        gpu: ... and of one kind of GPU.
    """

    def __init__(self, trt: Any, engine: Any, digest: str, gpu: Gpu) -> None:
        self._config: Any = None
        self._cache: Any = None
        self._before = b""
        if not hasattr(trt, "IRuntimeCache"):
            return
        name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
        self._place = cache_folder() / "kernels" / f"tensorrt-rtx-{trt.__version__}-{name}-{digest[:32]}.cache"
        self._config = engine.create_runtime_config()
        self._cache = self._config.create_runtime_cache()
        with suppress(OSError):
            self._before = self._place.read_bytes()
            self._cache.deserialize(self._before)  # False for those of another driver: then it stays empty
        self._config.set_runtime_cache(self._cache)

    def new_context(self, engine: Any) -> Any:
        """An execution context that uses and fills the cache."""
        return (
            engine.create_execution_context() if self._config is None else engine.create_execution_context(self._config)
        )

    def save(self) -> None:
        """Keep what was compiled. It is a convenience: where it cannot be written there is none."""
        if self._cache is not None:
            data = bytes(self._cache.serialize())
            if data != self._before:
                with suppress(DeployError):
                    write_whole(self._place, data)


class TrtContext:
    """Runs an engine; one call at a time.

    Args:
        name: how messages call the engine.
        gpu: where it runs; current in the calling thread whenever something is called here.
        trt: the flavour's module.
        engine: the deserialised engine.
        context: its execution context.
        inputs, outputs: of the engine.
        log: what TensorRT logs.
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
                f"TensorRT makes no execution context for {name}: {_last(log)}; {free / 1e9:.1f} of "
                f"{total / 1e9:.1f} GB of {gpu.name} are free"
            )
        self._name, self._gpu, self._context, self._log = name, gpu, context, log
        self._inputs, self._outputs = inputs, outputs
        self._profile = 0
        self._stream = gpu.new_stream()
        self._events = [gpu.new_event() for _ in range(4)]
        self._buffers = {info.name: Buffer(gpu) for info in (*inputs, *outputs)}
        on_host = trt.TensorLocation.HOST  # where shapes are given and taken as tensors
        self._on_host = {n for n in self._buffers if engine.get_tensor_location(n) == on_host}
        self._allocators = {info.name: _allocator(trt, self._buffers[info.name]) for info in outputs}

    @property
    def size(self) -> int:
        """Bytes of device memory in the buffers."""
        return sum(buffer.size for buffer in self._buffers.values())

    def run(self, inputs: Mapping[str, Array], profile: int) -> tuple[dict[str, Array], dict[str, float]]:
        """Outputs by name, and the GPU's milliseconds a stage; buffers are reused, the outputs are copies.

        Raises:
            BackendError: TensorRT or CUDA refused.
        """
        gpu, stream, events = self._gpu, self._stream, self._events
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, gpu.handle(stream)):
                raise self._failed(f"does not take its profile {profile}")
            self._profile = profile
        gpu.record(events[0], stream)
        for info in self._inputs:
            self._put(info.name, inputs[info.name])
        gpu.record(events[1], stream)
        if missing := self._context.infer_shapes():
            raise self._failed(f"lacks the shape or the values of {', '.join(missing)}")
        for info in self._outputs:
            self._bind(info)
        ran = self._context.execute_async_v3(gpu.handle(stream))
        for allocator in self._allocators.values():
            if allocator.error is not None:
                raise allocator.error
        if not ran:
            raise self._failed("did not run")
        gpu.record(events[2], stream)
        found = {info.name: self._fetch(info) for info in self._outputs}
        gpu.record(events[3], stream)
        gpu.synchronize(stream)
        spans = zip(("copy in", "compute", "copy out"), events, events[1:], strict=False)
        times = {stage: gpu.milliseconds(start, end) for stage, start, end in spans}
        return {name: value.copy() for name, value in found.items()}, times

    def close(self) -> None:
        """Give buffers, events and stream back."""
        self._context = None
        self._allocators.clear()
        for buffer in self._buffers.values():
            buffer.close()
        for event in self._events:
            self._gpu.close_event(event)
        self._events.clear()
        self._gpu.close_stream(self._stream)

    def _put(self, name: str, value: Array) -> None:
        """Through page-locked memory to the device, and tell TensorRT where."""
        buffer = self._buffers[name]
        host = buffer.host(value.shape, value.dtype)
        np.copyto(host, value)
        if not self._context.set_input_shape(name, value.shape):
            raise self._failed(f"does not take {name!r} of shape {value.shape}")
        if name in self._on_host:
            address = host.ctypes.data
        else:
            address = buffer.reserve(value.nbytes)
            self._gpu.to_device(address, host, self._stream)
        self._context.set_tensor_address(name, address)

    def _bind(self, info: TensorInfo) -> None:
        """Memory for an output: as much as its shape says, or as TensorRT asks for where the data decides."""
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
        """Have the output copied into page-locked memory; it is there once the stream is done."""
        buffer, allocator = self._buffers[info.name], self._allocators[info.name]
        if allocator.shape is None:
            raise self._failed(f"does not say the shape of {info.name!r}")
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
    """An ``IOutputAllocator`` that grows a buffer, for outputs whose shape only the data decides."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] | None = None
            self.error: DeployError | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            try:  # TensorRT takes 0 for a refusal; an exception it would only print
                return buffer.reserve(size)
            except DeployError as e:
                self.error = e
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
