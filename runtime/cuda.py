"""GPU memory, streams and events: one narrow interface over two libraries, either of which is enough.

``cuda-bindings`` comes as wheels; ``pycuda`` is published as source only and is compiled when it is installed. Both use
the device's primary context, so that memory and streams can be shared with other libraries in the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deploykit.errors import BackendError, DeviceError, MissingDependencyError, UsageError, import_extra
from deploykit.numerals import typed_number
from deploykit.runtime.arrays import Array

__all__ = ["BINDINGS", "Gpu", "device_index", "gpu_unavailable_reason", "open_gpu"]

BINDINGS = ("cuda-bindings", "pycuda")
"""The libraries, in the order in which they are tried."""


class Gpu(ABC):
    """One GPU. Pointers, streams and events are integers or objects of the library; sizes are in bytes.

    ``driver`` is the CUDA version that the driver supports, such as ``13.0``; ``binding`` is the library's name.
    Every method may be called from any thread, inside :meth:`current`.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    driver: str
    binding: str

    @abstractmethod
    def current(self) -> contextlib.AbstractContextManager[None]:
        """Make this GPU the calling thread's current device while the context lasts."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Return the (free, total) bytes of the device's memory, shared by all processes."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes on the device and return the pointer."""

    @abstractmethod
    def free(self, pointer: int) -> None:
        """Free memory of :meth:`allocate`."""

    @abstractmethod
    def allocate_pinned(self, size: int) -> Array:
        """Allocate ``uint8 (size,)`` in page-locked host memory, which asynchronous copies need."""

    @abstractmethod
    def free_pinned(self, memory: Array) -> None:
        """Free memory of :meth:`allocate_pinned`; the array must not be used any more."""

    @abstractmethod
    def new_stream(self) -> Any:
        """Create a stream that does not wait for the default one."""

    @abstractmethod
    def handle(self, stream: Any) -> int:
        """Return the stream's handle as an integer, which other libraries accept."""

    @abstractmethod
    def close_stream(self, stream: Any) -> None:
        """Destroy a stream."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None:
        """Wait until all work on the stream is done.

        Raises:
            BackendError: some of the work failed.
        """

    @abstractmethod
    def to_device(self, pointer: int, memory: Array, stream: Any) -> None:
        """Queue a copy of ``memory`` (contiguous) to the device."""

    @abstractmethod
    def to_host(self, memory: Array, pointer: int, stream: Any) -> None:
        """Queue a copy from the device into ``memory`` (contiguous)."""

    @abstractmethod
    def new_event(self) -> Any:
        """Create an event that measures time."""

    @abstractmethod
    def close_event(self, event: Any) -> None:
        """Destroy an event."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Record the event at the current end of the stream."""

    @abstractmethod
    def milliseconds(self, start: Any, end: Any) -> float:
        """Return the time between two recorded events; their stream must have been synchronised."""

    graphs = False
    """Whether the library has CUDA graphs."""

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Return what ``work`` puts on the stream as a CUDA graph; nothing of it runs.

        The graph holds the addresses that the work used. Other threads may use the GPU meanwhile.

        Raises:
            BackendError: the work cannot be captured. What ``work`` raises is passed on.
        """
        raise BackendError(f"{self.binding} has no CUDA graphs here: install cuda-bindings")

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue the work of a graph of :meth:`capture`."""
        raise BackendError(f"{self.binding} has no CUDA graphs here: install cuda-bindings")

    def close_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        raise BackendError(f"{self.binding} has no CUDA graphs here: install cuda-bindings")


def gpu_unavailable_reason() -> str | None:
    """Return why no NVIDIA GPU is usable here, as half a sentence; None where one is.

    The driver itself is queried, so the answer needs no package.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"this machine has no NVIDIA driver ({name} was not found)"
    if code := driver.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit returned {code}: {_CODES.get(code, 'see the CUDA manual')})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty?)"
    return None


_CODES = {
    3: "not initialised",
    34: "a stub library is installed in place of the driver",
    100: "no GPU",
    101: "no such GPU",
    802: "the system is not ready yet",
    803: "the driver and its kernel module have different versions: restart the machine",
    804: "this GPU does not support forward compatibility",
    999: "unknown error",
}
"""The most frequent error codes of cuInit."""


def device_index(provider: str) -> int:
    """Return the number in ``cuda:1``; plain ``cuda`` is 0.

    Raises:
        UsageError: ``provider`` has neither form.
    """
    kind, _, number = provider.partition(":")
    index = typed_number(number) if number else 0
    if kind != "cuda" or index is None or provider.endswith(":"):
        raise UsageError(f"the device must be cuda or cuda:N here, where N is the number of a GPU; got {provider!r}")
    return index


def open_gpu(index: int = 0, binding: str = "auto") -> Gpu:
    """Open a GPU by its number, with the named library or the first one of :data:`BINDINGS` that imports.

    Raises:
        DeviceError: there is no GPU, or none with this number.
        MissingDependencyError: the library is not installed, or neither of the two.
        UsageError: ``binding`` names no known library.
    """
    if reason := gpu_unavailable_reason():
        raise DeviceError(f"an NVIDIA GPU is required, but {reason}")
    makers = {"cuda-bindings": _CudaBindings, "pycuda": _PyCuda}
    if binding != "auto":
        if binding not in makers:
            raise UsageError(f"binding must be auto, {' or '.join(BINDINGS)}; got {binding!r}")
        return makers[binding](index)
    try:
        return _CudaBindings(index)
    except MissingDependencyError as missing:
        try:
            return _PyCuda(index)
        except MissingDependencyError:
            raise missing from None


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        available = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"cuda:{index} was requested, but this machine has {available}")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class _CudaBindings(Gpu):
    """A GPU through NVIDIA's own Python bindings of the CUDA runtime."""

    binding = "cuda-bindings"

    def __init__(self, index: int) -> None:
        self._rt: Any = import_extra("cuda.bindings.runtime", "tensorrt")
        _check_index(index, self._call("cudaGetDeviceCount"))
        self.index = index
        properties = self._call("cudaGetDeviceProperties", index)
        self.name = bytes(properties.name).split(b"\0")[0].decode()
        self.compute_capability = (int(properties.major), int(properties.minor))
        self.driver = _version(self._call("cudaDriverGetVersion"))
        self._kind = self._rt.cudaMemcpyKind

    def _call(self, function: str, *args: Any) -> Any:
        """Call a function, check the error code that it returns first, and return the other values."""
        code, *values = getattr(self._rt, function)(*args)
        if int(code):
            text = self._rt.cudaGetErrorString(code)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            kind = DeviceError if int(code) in (35, 100, 101) else BackendError
            raise kind(f"{function} failed with code {int(code)}: {reason}")
        return values[0] if len(values) == 1 else tuple(values)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        before = self._call("cudaGetDevice")
        self._call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            if before != self.index:
                self._call("cudaSetDevice", before)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> Array:
        address = int(self._call("cudaMallocHost", size))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, memory: Array) -> None:
        self._call("cudaFreeHost", memory.ctypes.data)

    def new_stream(self) -> Any:
        return self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def close_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def to_device(self, pointer: int, memory: Array, stream: Any) -> None:
        kind = self._kind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, memory.ctypes.data, memory.nbytes, kind, stream)

    def to_host(self, memory: Array, pointer: int, stream: Any) -> None:
        kind = self._kind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", memory.ctypes.data, pointer, memory.nbytes, kind, stream)

    def new_event(self) -> Any:
        return self._call("cudaEventCreate")

    def close_event(self, event: Any) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: Any, stream: Any) -> None:
        self._call("cudaEventRecord", event, stream)

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", start, end))

    graphs = True

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(BackendError):  # what the work broke, ends the capture with an error of its own
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def close_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)


class _PyCuda(Gpu):
    """A GPU through pycuda; the primary context is pushed for each use and popped again."""

    binding = "pycuda"

    def __init__(self, index: int) -> None:
        self._drv: Any = import_extra("pycuda.driver", "pycuda")
        self._drv.init()
        _check_index(index, self._drv.Device.count())
        device = self._drv.Device(index)
        self.index = index
        self.name = device.name()
        self.compute_capability = tuple(device.compute_capability())
        self.driver = _version(self._drv.get_driver_version())
        self._context = device.retain_primary_context()
        self._memory: dict[int, Any] = {}  # pycuda frees memory without references

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._drv.Error as e:
            raise BackendError(f"CUDA failed: {e}") from e
        finally:
            self._context.pop()

    def memory(self) -> tuple[int, int]:
        free, total = self._drv.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        memory = self._drv.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        self._memory.pop(pointer).free()

    def allocate_pinned(self, size: int) -> Array:
        memory: Array = self._drv.pagelocked_empty((size,), np.uint8)
        return memory

    def free_pinned(self, memory: Array) -> None:
        owner: Any = memory.base
        owner.free()

    def new_stream(self) -> Any:
        return self._drv.Stream(1)  # CU_STREAM_NON_BLOCKING

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def close_stream(self, stream: Any) -> None:
        del stream  # pycuda destroys it with its last reference

    def synchronize(self, stream: Any) -> None:
        stream.synchronize()

    def to_device(self, pointer: int, memory: Array, stream: Any) -> None:
        self._drv.memcpy_htod_async(pointer, memory, stream)

    def to_host(self, memory: Array, pointer: int, stream: Any) -> None:
        self._drv.memcpy_dtoh_async(memory, pointer, stream)

    def new_event(self) -> Any:
        return self._drv.Event()

    def close_event(self, event: Any) -> None:
        del event  # as streams

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(start.time_till(end))
