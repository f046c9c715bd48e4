"""Runs of ONNX Runtime on an NVIDIA GPU between buffers that stay there, on a stream that other work shares.

The inputs and outputs are bound to memory of ours (IO binding), so that kernels before and after the network read and
write it on the GPU, and a plain run costs one copy in and one out, both through page-locked memory. Everything is put
on one stream and waited for once.

A network all of whose shapes are fixed, and all of whose nodes run on the GPU, is captured in a CUDA graph: starting it
is one call in place of one a node. A graph holds addresses, which therefore never change here. It is trusted only after
its replay gave what an ordinary run gave on the same input; where it cannot be captured, the session goes without one
and says so. ONNX Runtime keeps a graph for the thread that captured it. It is captured twice: for the thread that
opened the session, and for one of the session's own, which replays it for all other threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deploykit.errors import BackendError, DeviceError, MissingDependencyError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.on_device import STAGES, Buffer, DeviceTensor, is_replay
from deploykit.runtime.backends.ort_providers import CUDA, CudaOptions, preload_cuda, reason_of, tensor_info
from deploykit.runtime.cuda import Gpu, open_gpu
from deploykit.runtime.session import TensorInfo, shape_matches

__all__ = ["CPU", "CUDA", "BoundRun", "DeviceRuns", "open_on_gpu"]

CPU = "CPUExecutionProvider"
MOST_SHAPES = 4  # whose buffers are kept
NO_WAIT = ("disable_synchronize_execution_providers", "1")  # of a run: the stream is waited for once, by us
GRAPH = "gpu_graph_id"  # of a run: which graph it captures or replays
NO_GRAPH = "-1"

Load = Callable[[list[str | tuple[str, dict[str, str]]], bool], Any]
"""Loads the network with a list of providers, which may fall back to the CPU or not, and returns the session."""


class BoundRun:
    """The binding of one set of input shapes, with its buffers.

    Attributes:
        inputs: where each input lies on the device, to be written before a run.
    """

    def __init__(self, runs: DeviceRuns, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._runs = runs
        self._buffers = {info.name: Buffer(runs.gpu) for info in (*runs.inputs, *runs.outputs)}
        self._binding = runs.session.io_binding()
        self.inputs = {
            info.name: self._placed(info, shapes[info.name], self._binding.bind_input) for info in runs.inputs
        }
        self._fixed: dict[str, DeviceTensor] = {}
        for info in runs.outputs:
            if None in info.shape:  # known after the run; the memory is ONNX Runtime's
                self._binding.bind_output(info.name, runs.kind, runs.index)
            else:
                self._fixed[info.name] = self._placed(info, info.shape, self._binding.bind_output)

    @property
    def size(self) -> int:
        """The bytes of device memory in the buffers."""
        return sum(buffer.size for buffer in self._buffers.values())

    def enqueue(self, options: Any = None) -> None:
        """Put the network on the stream, between the inputs and the outputs as they lie; it is not waited for.

        Args:
            options: ONNX Runtime's RunOptions of this run; None: new ones.
        """
        runs = self._runs
        options = runs.ort.RunOptions() if options is None else options
        options.add_run_config_entry(*NO_WAIT)
        if not runs.graph:
            options.add_run_config_entry(GRAPH, NO_GRAPH)
        runs.start(self._binding, options)

    def outputs(self) -> dict[str, DeviceTensor]:
        """Where the outputs of the run before lie, by name; valid until the next run of these shapes."""
        if len(self._fixed) == len(self._runs.outputs):
            return self._fixed
        found = dict(self._fixed)
        for info, value in zip(self._runs.outputs, self._binding.get_outputs(), strict=True):
            if info.name not in found:
                found[info.name] = DeviceTensor(value.data_ptr(), tuple(value.shape()), np.dtype(info.dtype))
        return found

    def upload(self, inputs: Mapping[str, Array]) -> None:
        """Queue the copies of the inputs to their places, through page-locked memory."""
        for name, value in inputs.items():
            host = self._buffers[name].host(value.shape, value.dtype)
            np.copyto(host, value)
            if host.size:
                self._runs.gpu.to_device(self.inputs[name].pointer, host, self._runs.stream)

    def download(self) -> dict[str, Array]:
        """Queue the copies of the outputs into page-locked memory; complete once the stream is done."""
        hosts = {}
        for name, place in self.outputs().items():
            hosts[name] = host = self._buffers[name].host(place.shape, place.dtype)
            if host.size:
                self._runs.gpu.to_host(host, place.pointer, self._runs.stream)
        return hosts

    def close(self) -> None:
        """Free the buffers."""
        self._binding = None
        for buffer in self._buffers.values():
            buffer.close()

    def _placed(self, info: TensorInfo, shape: tuple[Any, ...], bind: Callable[..., None]) -> DeviceTensor:
        dtype = np.dtype(info.dtype)
        place = DeviceTensor(0, shape, dtype)
        place = DeviceTensor(self._buffers[info.name].reserve(place.nbytes), shape, dtype)
        bind(info.name, self._runs.kind, self._runs.index, dtype.type, list(shape), place.pointer)
        return place


class DeviceRuns:
    """The runs of one session of ONNX Runtime on one stream of a GPU; several threads may call, one runs at a time.

    Args:
        ort: the module onnxruntime.
        session: its session.
        gpu: the GPU.
        stream: the stream that the session was loaded with; closed with this.
        graph: whether a CUDA graph is captured by the first run of a thread and replayed from then on.
        kind: ONNX Runtime's name of the memory's device.

    Attributes:
        stage_ms: milliseconds on the GPU of the last :meth:`run`, by stage.
        forked: whether this is the copy in a process that was forked since, where nothing of it is of use.
    """

    def __init__(
        self, ort: Any, session: Any, gpu: Gpu, stream: Any, *, graph: bool = False, kind: str = "cuda"
    ) -> None:
        self.ort, self.session, self.gpu, self.stream = ort, session, gpu, stream
        self.kind, self.index = kind, gpu.index
        self.inputs = tuple(map(tensor_info, session.get_inputs()))
        self.outputs = tuple(map(tensor_info, session.get_outputs()))
        self.graph, self._capturers = graph, {threading.get_ident()}
        self._runner = ThreadPoolExecutor(1, "CUDA graph") if graph else None
        self.stage_ms: dict[str, float] = {}
        self.loaded = 0
        self._lock, self.forked = threading.Lock(), False
        self._bound: OrderedDict[tuple[tuple[int, ...], ...], BoundRun] = OrderedDict()
        with gpu.current():
            self._events = [gpu.new_event() for _ in range(len(STAGES) + 1)]

    @property
    def size(self) -> int:
        """Bytes of device memory that loading took, and that the buffers have since."""
        return self.loaded + sum(bound.size for bound in self._bound.values())

    @contextlib.contextmanager
    def hold(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[BoundRun]:
        """Have the stream and the buffers for inputs of these shapes for a while; other threads wait.

        Raises:
            BackendError: CUDA failed, the network does not take these shapes, or the session is closed.
        """
        with self._lock, self.gpu.current():
            if self.session is None:
                raise BackendError("this session is closed")
            key = tuple(shapes[info.name] for info in self.inputs)
            if key not in self._bound:
                for info, shape in zip(self.inputs, key, strict=True):  # a graph would replay the shape of its capture
                    if not shape_matches(info.shape, shape):
                        raise BackendError(f"input {info.name!r} must be {info}, got {shape}")
                while len(self._bound) >= MOST_SHAPES:
                    self._bound.popitem(last=False)[1].close()
                self._bound[key] = BoundRun(self, shapes)
            self._bound.move_to_end(key)
            yield self._bound[key]

    def run(self, inputs: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Return the outputs, in the order of the network; copies, so that the next run changes none.

        Raises:
            BackendError: CUDA failed. ONNX Runtime's own errors are passed on.
        """
        gpu, stream, events = self.gpu, self.stream, self._events
        with self.hold({name: value.shape for name, value in inputs.items()}) as bound:
            gpu.record(events[0], stream)
            bound.upload(inputs)
            gpu.record(events[1], stream)
            bound.enqueue(options)
            gpu.record(events[2], stream)
            hosts = bound.download()
            gpu.record(events[3], stream)
            gpu.synchronize(stream)
            spans = zip(STAGES, events, events[1:], strict=False)
            self.stage_ms = {stage: gpu.milliseconds(start, end) for stage, start, end in spans}
            return [hosts[info.name].copy() for info in self.outputs]

    def start(self, binding: Any, options: Any) -> None:
        """Put a run on the stream, in a thread that has the graph."""
        if self._runner is None or threading.get_ident() in self._capturers:
            self.session.run_with_iobinding(binding, options)
        else:
            self._runner.submit(self.session.run_with_iobinding, binding, options).result()

    def in_runner(self, work: Callable[[], list[Array]]) -> list[Array]:
        """Do some work in the session's own thread, which captures a graph if it runs there.

        Raises:
            BackendError: there is no such thread, because there is no graph.
        """
        if self._runner is None:
            raise BackendError("this session runs without a CUDA graph")

        def there() -> list[Array]:
            self._capturers.add(threading.get_ident())
            return work()

        return self._runner.submit(there).result()

    def close(self) -> None:
        """Free the buffers, the events and the stream; a second call, and one in a forked process, does nothing."""
        if self.forked:
            return
        with self._lock:
            if self.session is None:
                return
            if self._runner is not None:
                self._runner.shutdown()
            with self.gpu.current():
                self.gpu.synchronize(self.stream)
                for bound in self._bound.values():
                    bound.close()
                self._bound.clear()
                self.session = None  # ONNX Runtime's side goes before the stream that it was given
                for event in self._events:
                    self.gpu.close_event(event)
                self.gpu.close_stream(self.stream)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # when CUDA may be gone, and the driver frees what there is
            with contextlib.suppress(Exception):  # which may not be whole
                self.close()


def open_on_gpu(ort: Any, load: Load, index: int, options: CudaOptions) -> tuple[Any, DeviceRuns | None, list[str]]:
    """Load a network on a GPU, with its runs bound to buffers there, and in a CUDA graph where that works.

    Args:
        ort: the module onnxruntime.
        load: loads the network.
        index: the number of the GPU.
        options: of the provider.

    Returns:
        ONNX Runtime's session; its runs, None where it has no buffers of ours; what a user should know.
    """
    preload_cuda(ort)
    try:
        gpu = open_gpu(index)
    except (DeviceError, MissingDependencyError) as e:  # without a GPU the provider does not load: the caller sees that
        notes = [f"inputs and outputs do not stay on the GPU: {e}"] if isinstance(e, MissingDependencyError) else []
        return load([(CUDA, options.for_provider(index)), CPU], True), None, notes
    notes = []
    if options.graph:
        try:
            return *_loaded_on(ort, load, gpu, options, graph=True), notes
        except _ShapesVaryError:
            pass
        except Exception as e:  # ONNX Runtime's exceptions share no base class; what is wrong with the file comes again
            notes = [f"this network runs on the GPU without a CUDA graph: {reason_of(' '.join(str(e).split()))}"]
    return *_loaded_on(ort, load, gpu, options, graph=False), notes


class _ShapesVaryError(Exception):
    """A graph is of one set of shapes, and this network has more."""


def _loaded_on(ort: Any, load: Load, gpu: Gpu, options: CudaOptions, *, graph: bool) -> tuple[Any, DeviceRuns | None]:
    """Return a session on a stream of its own, and its runs; without a graph, no runs if a tensor cannot be bound.

    Raises:
        _ShapesVaryError, BackendError: there can be no graph. ONNX Runtime's own errors are passed on.
    """
    with gpu.current():
        before, stream = gpu.memory()[0], gpu.new_stream()
    runs = None
    try:
        provider = (CUDA, options.for_provider(gpu.index, stream=gpu.handle(stream), graph=graph))
        session = load([provider, CPU], not graph)
        if session.get_providers()[0] == CUDA and _bindable(session):
            runs = DeviceRuns(ort, session, gpu, stream, graph=graph)
            if graph:
                _check_graph(runs)
            with gpu.current():
                runs.loaded = max(0, before - gpu.memory()[0] - runs.size)
        elif graph:
            raise BackendError("the provider is not in effect, or a tensor is of a type that numpy lacks")
    except BaseException:
        if runs is not None:
            runs.close()
        raise
    finally:
        if runs is None:  # else the stream goes with them
            with gpu.current():
                gpu.close_stream(stream)
    return session, runs


def _bindable(session: Any) -> bool:
    try:
        kinds = {np.dtype(tensor_info(each).dtype).kind for each in (*session.get_inputs(), *session.get_outputs())}
    except TypeError:  # bfloat16, a sequence
        return False
    return kinds <= set("fiub")


def _check_graph(runs: DeviceRuns) -> None:
    """Capture the network's graph, and compare a replay of it with an ordinary run on another input.

    Raises:
        _ShapesVaryError: a shape is not fixed. BackendError: the two differ.
    """
    if any(None in info.shape for info in (*runs.inputs, *runs.outputs)):
        raise _ShapesVaryError
    chance = np.random.default_rng(0)
    zeros: dict[str, Array] = {i.name: np.zeros(tuple(s or 0 for s in i.shape), i.dtype) for i in runs.inputs}
    noise = {n: chance.random(v.shape).astype(v.dtype) if v.dtype.kind == "f" else v for n, v in zeros.items()}
    ordinary = runs.ort.RunOptions()
    ordinary.add_run_config_entry(GRAPH, NO_GRAPH)
    expected = runs.run(noise, ordinary)

    def replayed() -> list[Array]:
        runs.run(zeros)  # warms up, captures and replays
        return runs.run(noise)

    for found in (replayed(), runs.in_runner(replayed)):
        for info, a, b in zip(runs.outputs, expected, found, strict=True):
            if not is_replay(b, a):
                raise BackendError(f"the replay of its graph gave another output {info.name!r} than an ordinary run")
