"""An execution context of an engine with its stream and memory, and the kernel cache that contexts share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import BackendError, DeployError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.kept_bytes import keep_bytes, kept_bytes
from deploykit.runtime.backends.on_device import STAGES, Buffer, DeviceTensor, is_replay
from deploykit.runtime.backends.trt.bindings import BuildLog
from deploykit.runtime.cuda import Gpu
from deploykit.runtime.files import cache_folder
from deploykit.runtime.session import TensorInfo

__all__ = ["KernelCache", "TrtContext"]

WIPED = 0xA5  # what no network gives everywhere
ALIGNED = 256  # bytes


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
        self._before = kept_bytes(self._path)
        if self._before:
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
                keep_bytes(self._path, data)


class TrtContext:
    """Runs an engine, one call at a time, between buffers that stay on the GPU and on a stream of its own.

    The second run of the same shapes in the same memory is captured in a CUDA graph, which starts the engine with one
    call in place of one for each kernel. The graph is trusted only after its replay gave what the run before it gave.

    Args:
        name: the engine's name in messages.
        gpu: the GPU to run on; it must be the calling thread's current device in every call.
        trt: the module of the flavour.
        engine: the deserialised engine.
        context: its execution context.
        inputs, outputs: the tensors of the engine.
        log: the log of TensorRT.
        graph: whether runs may be captured.

    Attributes:
        stream: the stream.
        without_graph: why runs are not captured, as half a sentence; empty where they may be.
        failed_graph: the same where that was tried.
    """

    def __init__(
        self,
        name: Path,
        gpu: Gpu,
        trt: Any,
        engine: Any,
        context: Any,
        tensors: tuple[Sequence[TensorInfo], Sequence[TensorInfo]],
        log: BuildLog,
        *,
        graph: bool = True,
    ) -> None:
        if context is None:
            free, total = gpu.memory()
            raise BackendError(
                f"TensorRT cannot create an execution context for {name}: {_last(log)}; {free / 1e9:.1f} of "
                f"{total / 1e9:.1f} GB of {gpu.name} are free"
            )
        self._name, self._gpu, self._context, self._log = name, gpu, context, log
        self._inputs, self._outputs = tensors
        self._profile = 0
        self.stream = gpu.new_stream()
        self._events = [gpu.new_event() for _ in range(4)]
        self._buffers = {info.name: Buffer(gpu) for info in (*self._inputs, *self._outputs)}
        on_host = trt.TensorLocation.HOST  # tensors that hold shapes lie on the host
        self._on_host = {n for n in self._buffers if engine.get_tensor_location(n) == on_host}
        self._allocators = {info.name: _allocator(trt, self._buffers[info.name]) for info in self._outputs}
        self._places: dict[str, DeviceTensor] = {}
        self._together = Buffer(gpu)  # outputs whose shapes are all known, so that one copy brings them
        self._starts: dict[str, int] = {}  # where each of these begins there; empty: they lie apart
        self._end = 0  # where the last of them ends
        self._graph: Any = None
        self._asked: object = None  # the profile and the shapes that the inputs were placed for
        self._is_moved = True  # whether they were placed anew since the last run
        self._key: object = None  # of the last run: with the same key it would be the same work on the same memory
        self.without_graph = self.failed_graph = ""
        if not graph:
            self.without_graph = "it is switched off"
        elif not gpu.graphs:
            self.without_graph = f"{gpu.binding} has none"
        elif self._on_host:
            self.without_graph = "it reads shapes on the host"

    @property
    def size(self) -> int:
        """The bytes of device memory in the buffers."""
        return self._together.size + sum(buffer.size for buffer in self._buffers.values())

    def run(self, inputs: Mapping[str, Array], profile: int) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the outputs by name, and the GPU's milliseconds per stage.

        The buffers are reused; the outputs are copies.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        gpu, stream, events = self._gpu, self.stream, self._events
        gpu.record(events[0], stream)
        self.place({name: value.shape for name, value in inputs.items()}, profile)
        for name, value in inputs.items():
            self._upload(name, value)
        gpu.record(events[1], stream)
        was_repeated = self.enqueue()
        gpu.record(events[2], stream)
        pinned = self._fetch()
        gpu.record(events[3], stream)
        gpu.synchronize(stream)
        spans = zip(STAGES, events, events[1:], strict=False)
        times = {stage: gpu.milliseconds(start, end) for stage, start, end in spans}
        outputs = {name: value.copy() for name, value in pinned.items()}
        if was_repeated and self._graph is None and not self.without_graph:
            self._capture(outputs)
        return outputs, times

    def place(self, shapes: Mapping[str, tuple[int, ...]], profile: int) -> dict[str, DeviceTensor]:
        """Give the inputs of the next run their memory, and return where each lies on the device."""
        asked = (profile, tuple(shapes[info.name] for info in self._inputs))
        if self._graph is not None and asked == self._asked:
            return {info.name: self._places[info.name] for info in self._inputs}
        self._asked, self._is_moved = asked, True
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._gpu.handle(self.stream)):
                raise self._failed(f"cannot use its profile {profile}")
            self._profile = profile
        for info in self._inputs:
            name, shape, dtype = info.name, shapes[info.name], np.dtype(info.dtype)
            if not self._context.set_input_shape(name, shape):
                raise self._failed(f"does not accept {name!r} of shape {shape}")
            place = DeviceTensor(0, shape, dtype)
            if name in self._on_host:
                address = self._buffers[name].host(shape, dtype).ctypes.data
            else:
                address = self._buffers[name].reserve(place.nbytes)
            self._context.set_tensor_address(name, address)
            self._places[name] = replace(place, pointer=address)
        return {info.name: self._places[info.name] for info in self._inputs}

    def enqueue(self) -> bool:
        """Put the engine on the stream, between the inputs as :meth:`place` put them and the outputs.

        It is not waited for. Returns whether the run before had the same shapes and the same memory.

        Raises:
            BackendError: TensorRT or CUDA failed.
        """
        if self._graph is not None and not self._is_moved:
            self._gpu.launch(self._graph, self.stream)
            return True
        if missing := self._context.infer_shapes():
            raise self._failed(f"needs the shape or the values of {', '.join(missing)}")
        is_fixed = self._bind_outputs()
        if not is_fixed:
            self.without_graph = self.without_graph or "the shape of an output depends on the values"
        key = (self._profile, tuple((p.pointer, p.shape) for p in self._places.values())) if is_fixed else None
        was_repeated = key is not None and key == self._key
        self._drop_graph()  # it holds other shapes
        self._key, self._is_moved = key, False
        self._execute()
        return was_repeated

    def outputs(self) -> dict[str, DeviceTensor]:
        """Where the outputs of the run before lie on the device, by name; valid until the next run."""
        found = {}
        for info in self._outputs:
            place = DeviceTensor(self._buffers[info.name].pointer, self._shape_of(info), np.dtype(info.dtype))
            found[info.name] = self._places[info.name] if info.name in self._starts else place
        return found

    def _execute(self) -> None:
        ran = self._context.execute_async_v3(self._gpu.handle(self.stream))
        for allocator in self._allocators.values():
            if allocator.error is not None:
                raise allocator.error
        if not ran:
            raise self._failed("failed to run")

    def _capture(self, outputs: Mapping[str, Array]) -> None:
        """Capture the run before, whose outputs these are, and keep the graph if its replay gives them again."""
        gpu, stream = self._gpu, self.stream
        try:
            self._graph = gpu.capture(stream, self._execute)
            wiped = self._together.host((self._end,), np.dtype(np.uint8))
            wiped.fill(WIPED)  # else a graph that does nothing would leave what it is compared with
            gpu.to_device(self._together.pointer, wiped, stream)
            gpu.launch(self._graph, stream)
            again = self._fetch()
            gpu.synchronize(stream)
            wrong = [name for name, value in outputs.items() if not is_replay(again[name], value)]
            if wrong:
                raise BackendError(f"the replay of its graph gave another output {wrong[0]!r} than an ordinary run")
        except BackendError as e:
            self.without_graph = self.failed_graph = str(e)
            self._drop_graph()

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._gpu.close_graph(self._graph)
        self._graph = None

    def close(self) -> None:
        """Free the graph, the buffers, the events and the stream."""
        self._drop_graph()
        self._context = None
        self._allocators.clear()
        for buffer in (self._together, *self._buffers.values()):
            buffer.close()
        for event in self._events:
            self._gpu.close_event(event)
        self._events.clear()
        self._gpu.close_stream(self.stream)

    def _upload(self, name: str, value: Array) -> None:
        """Queue the copy of an input to its place, through page-locked memory."""
        host = self._buffers[name].host(value.shape, value.dtype)
        np.copyto(host, value)
        if name not in self._on_host:
            self._gpu.to_device(self._places[name].pointer, host, self.stream)

    def _bind_outputs(self) -> bool:
        """Provide memory for the outputs, by their shapes or by TensorRT's request; return whether all are known."""
        shapes = {info.name: tuple(self._context.get_tensor_shape(info.name)) for info in self._outputs}
        is_fixed = all(side >= 0 for shape in shapes.values() for side in shape)
        places = {info.name: DeviceTensor(0, shapes[info.name], np.dtype(info.dtype)) for info in self._outputs}
        self._starts, self._end = {}, 0
        for name in (name for name in places if is_fixed and name not in self._on_host):
            self._starts[name] = self._end
            self._end += -(-places[name].nbytes // ALIGNED) * ALIGNED
        start = self._together.reserve(self._end) if self._starts else 0
        for name, place in places.items():
            buffer, allocator = self._buffers[name], self._allocators[name]
            if any(side < 0 for side in place.shape):
                allocator.shape, allocator.error = None, None
                self._context.set_output_allocator(name, allocator)
                continue
            allocator.shape = place.shape
            if name in self._starts:
                address = start + self._starts[name]
            elif name in self._on_host:
                address = buffer.host(place.shape, place.dtype).ctypes.data
            else:
                address = buffer.reserve(place.nbytes)
            self._context.set_tensor_address(name, address)
            self._places[name] = replace(place, pointer=address)
        return is_fixed

    def _shape_of(self, info: TensorInfo) -> tuple[int, ...]:
        shape: tuple[int, ...] | None = self._allocators[info.name].shape
        if shape is None:
            raise self._failed(f"does not report the shape of {info.name!r}")
        return shape

    def _fetch(self) -> dict[str, Array]:
        """Queue the copy of the outputs into page-locked memory; it is complete once the stream is done."""
        together = np.empty(0, np.uint8)
        if self._starts:
            together = self._together.host((self._end,), np.dtype(np.uint8))
            if together.size:
                self._gpu.to_host(together, self._together.pointer, self.stream)
        hosts = {}
        for info in self._outputs:
            shape, dtype, buffer = self._shape_of(info), np.dtype(info.dtype), self._buffers[info.name]
            if info.name in self._starts:
                start = self._starts[info.name]
                hosts[info.name] = together[start : start + self._places[info.name].nbytes].view(dtype).reshape(shape)
                continue
            hosts[info.name] = host = buffer.host(shape, dtype)
            if host.size and info.name not in self._on_host:
                self._gpu.to_host(host, buffer.pointer, self.stream)
        return hosts

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
