"""TensorRT's runtime API on the CPU, so that what surrounds it can be tested where there is no GPU.

An engine here is an ONNX file with the profiles of its input, and runs in ONNX Runtime. Device memory is memory of the
host at its real address, so a wrong pointer, a buffer that is too small or one that is freed too early shows. What is
not used by :mod:`deploykit.runtime.backends.trt.session` is not here; how TensorRT itself behaves is what the tests
marked ``gpu`` are for.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from deploykit.runtime.arrays import Array
from deploykit.runtime.cuda import Gpu

__version__ = "10.16.0.1"

TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
TensorFormat = enum.Enum("TensorFormat", "LINEAR CHW4")
DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 INT64 BF16")

TYPES = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int64)": DataType.INT64}
NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}

MAGIC = b"cpu engine\n"


def write_engine(
    path: Path, onnx: Path, profiles: Sequence[Sequence[Sequence[int]]] = (), *, data_dependent: bool = False
) -> Path:
    """An engine file; ``profiles`` are (least, best, most) shapes of the input, one of the file's own where none."""
    about = {"profiles": profiles, "data_dependent": data_dependent}
    path.write_bytes(MAGIC + json.dumps(about).encode() + b"\n" + onnx.read_bytes())
    return path


class ILogger:
    """Base class of loggers."""

    def log(self, severity: Any, msg: str) -> None:
        """What a subclass does."""


class IOutputAllocator:
    """Base class of allocators."""


class Runtime:
    """Deserialises; ``says`` is logged as an error when it does not, as a test sets it."""

    says = ""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        """The engine, or None with the reason in the log."""
        if self.says or not data.startswith(MAGIC):
            text = self.says or "Error Code 1: Serialization (assertion failed. Magic tag does not match)"
            self._logger.log("Severity.ERROR", text)
            return None
        about, onnx = data[len(MAGIC) :].split(b"\n", 1)
        return Engine(onnx, **json.loads(about))


class Engine:
    """A network with named tensors."""

    def __init__(self, onnx: bytes, profiles: list[list[list[int]]], data_dependent: bool) -> None:
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self._all = {t.name: t for t in (*self.inputs, *self.outputs)}
        fixed = [side if isinstance(side, int) else -1 for side in self.inputs[0].shape]
        self.profiles = profiles or [[fixed] * 3]
        self.data_dependent = data_dependent
        self.num_io_tensors, self.num_optimization_profiles = len(self._all), len(self.profiles)
        self.contexts: list[Context] = []

    def get_tensor_name(self, index: int) -> str:
        """Inputs and outputs, mixed as TensorRT does not promise an order."""
        return str(list(reversed(self._all))[index])

    def get_tensor_mode(self, name: str) -> Any:
        """Input or output."""
        return TensorIOMode.INPUT if name in {t.name for t in self.inputs} else TensorIOMode.OUTPUT

    def get_tensor_format(self, name: str) -> Any:
        """Always linear."""
        return TensorFormat.LINEAR

    def get_tensor_location(self, name: str) -> Any:
        """Always on the device."""
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        """The element type."""
        return TYPES[self._all[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """-1 for what is dynamic."""
        return tuple(side if isinstance(side, int) else -1 for side in self._all[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        """Least, best, most."""
        return self.profiles[index]

    def create_execution_context(self) -> Context:
        """A context of its own."""
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """Runs at once when it is enqueued; ``refuses_capture``: not in a capture, as a test sets it."""

    refuses_capture = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self.profile = 0
        self.runs = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Switch; shapes must be set again."""
        self.profile, self._shapes = index, {}
        return 0 <= index < len(self._engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """False outside of the profile."""
        least, _, most = self._engine.profiles[self.profile]
        self._shapes[name] = tuple(shape)
        return all(a <= side <= b for a, side, b in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        """Inputs whose shape is missing."""
        return [t.name for t in self._engine.inputs if t.name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Known as soon as the input's shape is, unless only the data decides."""
        batch = self._shapes[self._engine.inputs[0].name][0]
        sides = self._engine.get_tensor_shape(name)
        if self._engine.data_dependent:
            return (-1, *sides[1:])
        return tuple(batch if side < 0 else side for side in sides)

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Where a tensor is."""
        self._addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        """Who gives an output its memory."""
        self._allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Read the inputs where they are, run, write the outputs where they belong; in a capture, later."""
        if CAPTURE.work is not None:
            CAPTURE.work.append((self, dict(self._shapes), dict(self._addresses)))
            return not self.refuses_capture
        self.runs += 1
        return self.compute(self._shapes, self._addresses)

    def compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> bool:
        """Run on tensors of these shapes at these addresses."""
        feed = {}
        for tensor in self._engine.inputs:
            kind = np.dtype(NUMPY[self._engine.get_tensor_dtype(tensor.name)])
            shape = shapes[tensor.name]
            size = int(np.prod(shape)) * kind.itemsize
            raw = ctypes.string_at(addresses[tensor.name], size)
            feed[tensor.name] = np.frombuffer(raw, kind).reshape(shape)
        for tensor, value in zip(self._engine.outputs, self._engine.session.run(None, feed), strict=True):
            address = addresses.get(tensor.name, 0)
            if self._engine.data_dependent:
                allocator = self._allocators[tensor.name]
                address = allocator.reallocate_output(tensor.name, address, value.nbytes, 256)
                if not address:
                    return False
                allocator.notify_shape(tensor.name, value.shape)
            data = np.ascontiguousarray(value)
            ctypes.memmove(address, data.ctypes.data, data.nbytes)
        return True


class Capture(threading.local):
    """What the calling thread enqueues while it captures; None: it does not."""

    work: list[Any] | None = None


CAPTURE = Capture()


class CpuGpu(Gpu):
    """Memory of the host as a device's; ``live`` counts what was allocated and not given back."""

    name, compute_capability, driver, binding = "CPU stand-in", (9, 0), "13.0", "stand-in"
    graphs = True
    replays = True  # False: a graph does nothing when it is launched, as a test sets it

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.graphs_made: list[Any] = []
        self.launches = 0
        self._memory: dict[int, Array] = {}
        self.pinned: list[int] = []
        self.streams = 0
        self.events: list[int] = []
        self.allocations = 0
        self._depth = 0

    @property
    def live(self) -> int:
        """Pieces of device and page-locked memory, streams, events and graphs that were not given back."""
        return len(self._memory) + len(self.pinned) + self.streams + len(self.events) + len(self.graphs_made)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Everything below must happen inside."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def memory(self) -> tuple[int, int]:
        """A device of 1 GB."""
        assert self._depth
        return 10**9 - sum(m.nbytes for m in self._memory.values()), 10**9

    def allocate(self, size: int) -> int:
        """Filled with what is no number, so that reading before writing shows."""
        assert self._depth
        memory = np.full(size, 0xFF, np.uint8)
        self._memory[memory.ctypes.data] = memory
        self.allocations += 1
        return memory.ctypes.data

    def free(self, pointer: int) -> None:
        """Only what was allocated, and only once."""
        assert self._depth
        self._memory.pop(pointer).fill(0xEE)

    def allocate_pinned(self, size: int) -> Array:
        """Ordinary memory."""
        memory = np.full(size, 0xFF, np.uint8)
        self.pinned.append(memory.ctypes.data)
        self.allocations += 1
        return memory

    def free_pinned(self, memory: Array) -> None:
        """Only what was allocated, and only once."""
        self.pinned.remove(memory.ctypes.data)

    def new_stream(self) -> Any:
        """Streams are numbers from 1."""
        self.streams += 1
        return self.streams

    def handle(self, stream: Any) -> int:
        """Itself."""
        return int(stream)

    def close_stream(self, stream: Any) -> None:
        """One less."""
        self.streams -= 1

    def synchronize(self, stream: Any) -> None:
        """Everything has happened already."""
        assert self._depth

    def _inside(self, pointer: int, size: int) -> None:
        assert any(start <= pointer and pointer + size <= start + m.nbytes for start, m in self._memory.items())

    def to_device(self, pointer: int, memory: Array, stream: Any) -> None:
        """Within allocated memory only."""
        self._inside(pointer, memory.nbytes)
        ctypes.memmove(pointer, memory.ctypes.data, memory.nbytes)

    def to_host(self, memory: Array, pointer: int, stream: Any) -> None:
        """Within allocated memory only."""
        self._inside(pointer, memory.nbytes)
        ctypes.memmove(memory.ctypes.data, pointer, memory.nbytes)

    def new_event(self) -> Any:
        """A place for a time."""
        event = [0.0]
        self.events.append(id(event))
        return event

    def close_event(self, event: Any) -> None:
        """Only what was made, and only once."""
        assert self._depth
        self.events.remove(id(event))

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """What contexts enqueue, with the addresses that they have now."""
        assert self._depth
        graph: list[Any] = []
        CAPTURE.work = graph
        try:
            work()
        finally:
            CAPTURE.work = None
        self.graphs_made.append(graph)
        return graph

    def launch(self, graph: Any, stream: Any) -> None:
        """Runs at the addresses of the capture."""
        assert self._depth
        assert any(graph is made for made in self.graphs_made)
        self.launches += 1
        for context, shapes, addresses in graph if self.replays else ():
            for address in addresses.values():
                self._inside(address, 1)
            context.compute(shapes, addresses)

    def close_graph(self, graph: Any) -> None:
        """Only what was made, and only once."""
        self.graphs_made = [made for made in self.graphs_made if made is not graph]

    def record(self, event: Any, stream: Any) -> None:
        """Now."""
        import time

        event[0] = time.perf_counter()

    def milliseconds(self, start: Any, end: Any) -> float:
        """By the host's clock."""
        return float(end[0] - start[0]) * 1e3
