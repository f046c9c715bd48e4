"""The interface to a GPU: what works without one, and the same tests for both libraries on one."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit.errors import BackendError, DeviceError, MissingDependencyError, UsageError
from deploykit.runtime import cuda
from deploykit.runtime.backends.on_device import Buffer
from deploykit.runtime.cuda import BINDINGS, device_index, gpu_unavailable_reason, open_gpu
from tests.cpu_tensorrt import CpuGpu

no_gpu = pytest.mark.skipif(gpu_unavailable_reason() is None, reason="this machine has a GPU")


@no_gpu
def test_a_machine_without_a_gpu_says_why() -> None:
    reason = gpu_unavailable_reason()
    assert reason is not None
    assert reason.startswith(("this machine has no NVIDIA driver", "the NVIDIA driver"))
    with pytest.raises(DeviceError, match="an NVIDIA GPU is required, but ") as refused:
        open_gpu()
    assert reason in str(refused.value)
    assert refused.value.exit_code == 61


class Driver:
    """A driver of which only the return values are known."""

    def __init__(self, started: int, count: int) -> None:
        self._started, self._count = started, count

    def cuInit(self, flags: int) -> int:  # noqa: N802  (the driver's own name)
        return self._started

    def cuDeviceGetCount(self, place: object) -> int:  # noqa: N802
        place._obj.value = self._count  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver(0, 1), None),
        (Driver(0, 0), "the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty?)"),
        (
            Driver(803, 0),
            "cuInit returned 803: the driver and its kernel module have different versions: restart the machine",
        ),
        (Driver(12345, 0), "cuInit returned 12345: see the CUDA manual"),
    ],
)
def test_error_codes_of_the_driver_are_explained(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, reason: str | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    found = gpu_unavailable_reason()
    assert found == reason if reason is None or found is None else reason in found


@pytest.mark.parametrize(("provider", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_a_gpu_is_named_by_its_number(provider: str, index: int) -> None:
    assert device_index(provider) == index


@pytest.mark.parametrize(
    "provider", ["", "cuda:", "cuda:-1", "cuda:1.5", "cuda:\u0661", "gpu", "cpu", "CUDA", f"cuda:{9:05000}"]
)
def test_a_provider_that_names_no_gpu_is_refused(provider: str) -> None:
    with pytest.raises(UsageError, match="the device must be cuda or cuda:N here"):
        device_index(provider)


@pytest.mark.parametrize(("index", "count", "words"), [(1, 1, "only cuda:0"), (4, 4, "cuda:0 to cuda:3"), (-1, 2, "")])
def test_a_missing_gpu_is_named(index: int, count: int, words: str) -> None:
    with pytest.raises(DeviceError, match=f"cuda:{index} was requested, but this machine has .*{words}"):
        cuda._check_index(index, count)


def test_without_a_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpu_unavailable_reason", lambda: None)
    for module in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit-vision\[tensorrt\]'"):
        open_gpu()
    with pytest.raises(UsageError, match="binding must be auto, cuda-bindings or pycuda"):
        open_gpu(binding="cupy")


@no_gpu
@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-bindings is not installed")
def test_cuda_bindings_without_a_driver_raise_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own codes for a missing driver become errors; nothing is simulated here."""
    monkeypatch.setattr(cuda, "gpu_unavailable_reason", lambda: None)
    with pytest.raises(DeviceError, match="cudaGetDeviceCount failed with code"):
        open_gpu(binding="cuda-bindings")


def test_a_buffer_grows_and_keeps_its_host_memory() -> None:
    gpu = CpuGpu()
    with gpu.current():
        buffer = Buffer(gpu)
        host = buffer.host((4,), np.dtype(np.float32))
        host[:] = 7
        first = buffer.reserve(16)
        assert (host == 7).all()
        assert buffer.reserve(8) == first
        assert buffer.host((2,), np.dtype(np.float32)).tolist() == [7, 7]
        assert buffer.size == 16
        buffer.reserve(17)
        assert buffer.size == 17
        assert gpu.live == 2
        buffer.close()
        buffer.close()
    assert gpu.live == 0


class Runtime:
    """The functions of cuda-bindings for graphs; ``calls`` are their names, ``fails`` the codes of some."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="of this thread")  # noqa: N815

    def __init__(self, **fails: int) -> None:
        self.calls: list[str] = []
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        def call(*args: object) -> tuple[object, ...]:
            if name == "cudaGetErrorString":
                return 0, b"as the test says"
            self.calls.append(f"{name} {' '.join(map(str, args))}")
            results = {"cudaStreamEndCapture": ("graph",), "cudaGraphInstantiate": ("executable",)}
            return self._fails.get(name, 0), *results.get(name, ())

        return call


def graphs_of(runtime: Runtime) -> cuda.Gpu:
    gpu = cuda._CudaBindings.__new__(cuda._CudaBindings)
    gpu._rt = runtime
    return gpu


def test_a_capture_ends_and_gives_back_all_but_what_is_launched() -> None:
    runtime = Runtime()
    gpu = graphs_of(runtime)
    graph = gpu.capture("stream", lambda: runtime.calls.append("work"))
    gpu.launch(graph, "stream")
    gpu.close_graph(graph)
    assert runtime.calls == [
        "cudaStreamBeginCapture stream of this thread", "work", "cudaStreamEndCapture stream",
        "cudaGraphInstantiate graph 0", "cudaGraphDestroy graph", "cudaGraphLaunch executable stream",
        "cudaGraphExecDestroy executable",
    ]  # fmt: skip


@pytest.mark.parametrize("ended", [0, 901])  # 901: what was captured cannot be
def test_work_that_fails_ends_its_capture_too(ended: int) -> None:
    def work() -> None:
        raise KeyError("of the work")

    runtime = Runtime(cudaStreamEndCapture=ended)
    with pytest.raises(KeyError, match="of the work"):
        graphs_of(runtime).capture("stream", work)
    assert "cudaStreamEndCapture stream" in runtime.calls
    assert ("cudaGraphDestroy graph" in runtime.calls) is (ended == 0)


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_cuda_refuses_is_an_error(function: str) -> None:
    runtime = Runtime(**{function: 900})
    with pytest.raises(BackendError, match=f"{function} failed with code 900: as the test says"):
        graphs_of(runtime).capture("stream", lambda: None)
    assert ("cudaGraphDestroy graph" in runtime.calls) is (function == "cudaGraphInstantiate")


def test_an_empty_tensor_still_has_an_address() -> None:
    gpu = CpuGpu()
    with gpu.current():
        buffer = Buffer(gpu)
        assert buffer.reserve(0) != 0
        assert buffer.host((0, 4), np.dtype(np.float32)).shape == (0, 4)
        buffer.close()


@pytest.fixture(params=BINDINGS)
def gpu(request: pytest.FixtureRequest) -> cuda.Gpu:
    """The first GPU, by each library in turn."""
    module = {"cuda-bindings": "cuda", "pycuda": "pycuda"}[request.param]
    if find_spec(module) is None:
        pytest.skip(f"{request.param} is not installed")
    return open_gpu(binding=request.param)


@pytest.mark.gpu
def test_a_gpu_describes_itself(gpu: cuda.Gpu) -> None:
    assert gpu.name
    assert gpu.compute_capability >= (5, 0)
    with gpu.current():
        free, total = gpu.memory()
    assert 0 < free <= total


@pytest.mark.gpu
def test_bytes_are_copied_to_the_device_and_back(gpu: cuda.Gpu) -> None:
    with gpu.current():
        stream, start, end = gpu.new_stream(), gpu.new_event(), gpu.new_event()
        sent, received = gpu.allocate_pinned(1 << 20), gpu.allocate_pinned(1 << 20)
        sent[:] = np.random.default_rng(0).integers(0, 256, sent.size, np.uint8)
        received[:] = 0
        pointer = gpu.allocate(sent.size)
        gpu.record(start, stream)
        gpu.to_device(pointer, sent, stream)
        gpu.to_host(received, pointer, stream)
        gpu.record(end, stream)
        gpu.synchronize(stream)
        np.testing.assert_array_equal(sent, received)
        assert gpu.milliseconds(start, end) > 0
        assert gpu.handle(stream) != 0
        gpu.free(pointer)
        gpu.free_pinned(sent)
        gpu.free_pinned(received)
        gpu.close_event(start)
        gpu.close_event(end)
        gpu.close_stream(stream)


@pytest.mark.gpu
def test_memory_is_freed(gpu: cuda.Gpu) -> None:
    with gpu.current():
        before = gpu.memory()[0]
        pointer = gpu.allocate(256 << 20)
        assert before - gpu.memory()[0] >= 256 << 20
        gpu.free(pointer)
        assert before - gpu.memory()[0] < 64 << 20


@pytest.mark.gpu
def test_an_allocation_beyond_the_memory_is_an_error(gpu: cuda.Gpu) -> None:
    with pytest.raises(BackendError, match="memory"), gpu.current():
        gpu.allocate(1 << 50)


@pytest.mark.gpu
def test_a_graph_copies_again_what_lies_there_when_it_is_launched(gpu: cuda.Gpu) -> None:
    if not gpu.graphs:
        pytest.skip(f"{gpu.binding} has no graphs here")
    with gpu.current():
        stream, there, back = gpu.new_stream(), gpu.allocate(8), gpu.allocate_pinned(8)
        given = gpu.allocate_pinned(8)
        given[:] = 1

        def work() -> None:
            gpu.to_device(there, given, stream)
            gpu.to_host(back, there, stream)

        back[:] = 0
        graph = gpu.capture(stream, work)
        gpu.synchronize(stream)
        assert not back.any()
        given[:] = 7
        gpu.launch(graph, stream)
        gpu.synchronize(stream)
        assert back.tolist() == [7] * 8
        gpu.close_graph(graph)
        gpu.free(there)
        gpu.free_pinned(given)
        gpu.free_pinned(back)
        gpu.close_stream(stream)
