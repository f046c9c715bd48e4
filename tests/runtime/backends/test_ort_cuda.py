"""Sessions of ONNX Runtime on a GPU: binding, graphs, notes; real ONNX Runtime on memory that stands for a GPU's."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import BackendError, MissingDependencyError, UsageError
from deploykit.facade import load
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends import ort_cuda
from deploykit.runtime.backends.onnx_weights import has_free_sides
from deploykit.runtime.backends.ort_cuda import DeviceRuns
from deploykit.runtime.backends.ort_providers import CUDA_SETTINGS, CudaOptions
from deploykit.runtime.session import open_session
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.cpu_cuda_ort import CPU, CUDA, Binding, CudaSession, SharedGpu
from tests.forked import forked

NOISE = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedGpu]:
    """A machine with a GPU, and an ONNX Runtime that has its provider; a test must give back what it allocates."""
    device = SharedGpu()
    monkeypatch.setattr(ort_cuda, "open_gpu", lambda index=0: device)
    monkeypatch.setattr(onnxruntime, "InferenceSession", CudaSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    for name, value in {"loads": [], "runs": [], "threads": [], "refuses": "", "wrong_replay": False}.items():
        monkeypatch.setattr(CudaSession, name, value)
    monkeypatch.delenv(CUDA_SETTINGS, raising=False)
    yield device
    assert device.live == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())


@pytest.mark.parametrize("half", [False, True])
def test_a_network_on_a_gpu_gives_what_it_gives_on_the_cpu(tmp_path: Path, gpu: SharedGpu, half: bool) -> None:
    path = write_cell_model(tmp_path / "cells.onnx", half=half)
    image = NOISE.astype(np.float16 if half else np.float32)
    with open_session(path, provider="cpu") as cpu, open_session(path, provider="cuda") as session:
        assert session.providers[0] == CUDA
        assert session.concurrent
        assert not session.notes
        for value in (image, image * 0, image):
            np.testing.assert_array_equal(
                session.run({"images": value})["output"], cpu.run({"images": value})["output"]
            )
        assert set(session.stage_ms) == {"copy in", "compute", "copy out"}
        assert session.device_memory is not None
        assert session.device_memory >= image.nbytes


def test_the_provider_is_told_the_stream_and_that_tf32_is_off(model: Path, gpu: SharedGpu) -> None:
    open_session(model, provider="cuda").close()
    assert CudaSession.loads == [
        {
            "use_tf32": "0", "prefer_nhwc": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1",
            "user_compute_stream": "1",
        }
    ]  # fmt: skip
    assert CudaOptions().for_provider(3)["device_id"] == "3"


def test_the_provider_is_told_how_much_memory_it_may_take(
    model: Path, gpu: SharedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUDA_SETTINGS, "memory=3g,no-graph")
    open_session(model, provider="cuda").close()
    (told,) = CudaSession.loads
    assert (told["gpu_mem_limit"], told["arena_extend_strategy"]) == (str(3 << 30), "kSameAsRequested")
    for wrong in ("memory=", "memory=0", "memory=much", "memory"):
        monkeypatch.setenv(CUDA_SETTINGS, wrong)
        with pytest.raises(UsageError, match=rf"memory=BYTES; got '{wrong}'"):
            open_session(model, provider="cuda")


def test_a_graph_is_replayed_by_the_threads_that_captured_it(model: Path, gpu: SharedGpu) -> None:
    """ONNX Runtime keeps a graph for one thread; other threads' runs go to the session's own."""
    here = threading.current_thread().name
    with open_session(model, provider="cuda") as session:
        assert CudaSession.runs == ["-1", None, None, None, None]  # ordinary; twice a capture and a replay
        assert [name == here for name in CudaSession.threads] == [True, True, True, False, False]
        expected = session.run({"images": NOISE})["output"]
        found: list[Array] = []
        others = [threading.Thread(target=lambda: found.append(session.run({"images": NOISE})["output"])) for _ in "ab"]
        for other in others:
            other.start()
        for other in others:
            other.join()
        for each in found:
            np.testing.assert_array_equal(each, expected)
    assert CudaSession.runs[5:] == [None, None, None]
    assert CudaSession.threads[5] == here
    assert set(CudaSession.threads[6:]) == {CudaSession.threads[3]}
    assert not any(thread.name.startswith("CUDA graph") for thread in threading.enumerate())


def test_a_network_that_cannot_be_captured_runs_without_a_graph_and_says_why(
    model: Path, gpu: SharedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaSession, "refuses", "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph")
    with open_session(model, provider="cuda") as session:
        assert session.notes == (
            "this network runs on the GPU without a CUDA graph: This session cannot use the graph",
        )
        session.run({"images": NOISE})
    assert [each["enable_cuda_graph"] for each in CudaSession.loads] == ["1", "0"]
    assert CudaSession.loads[1]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert CudaSession.runs == ["-1"]


def test_a_replay_that_gives_other_numbers_is_not_trusted(
    model: Path, gpu: SharedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaSession, "wrong_replay", True)
    with open_session(model, provider="cuda") as session, open_session(model, provider="cpu") as cpu:
        assert "the replay of its graph gave another output 'output'" in session.notes[0]
        found = session.run({"images": NOISE})["output"]
        np.testing.assert_array_equal(found, cpu.run({"images": NOISE})["output"])


def test_a_network_of_many_shapes_has_no_graph_and_keeps_the_buffers_of_a_few(tmp_path: Path, gpu: SharedGpu) -> None:
    path = write_cell_model(tmp_path / "d.onnx", batch="batch")
    with open_session(path, provider="cuda") as session, open_session(path, provider="cpu") as cpu:
        assert not session.notes
        for batch in (1, 2, 3, 4, 5, 6, 1):
            images = np.random.default_rng(batch).random((batch, 3, 64, 64), np.float32)
            found = session.run({"images": images})["output"]
            np.testing.assert_array_equal(found, cpu.run({"images": images})["output"])
        assert len(gpu._memory) <= ort_cuda.MOST_SHAPES
        before = gpu.allocations
        session.run({"images": images})
        assert gpu.allocations == before
    assert set(CudaSession.runs) == {"-1"}
    assert [each["enable_cuda_graph"] for each in CudaSession.loads] == ["0"]  # it is loaded once


def test_an_output_whose_shape_follows_from_the_inputs_is_no_hindrance(tmp_path: Path, gpu: SharedGpu) -> None:
    """The file leaves it free, and ONNX Runtime works it out."""
    path = write_cell_model(tmp_path / "d.onnx", batch="batch")
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, str(path))
    assert not has_free_sides(path)
    with open_session(path, provider="cuda") as session:
        assert session.run({"images": NOISE})["output"].shape == (1, 64, 10)
        assert session.runs.graph  # type: ignore[attr-defined]  # of ONNX Runtime's sessions


@pytest.mark.parametrize(("batch", "free"), [(1, False), ("batch", True)])
def test_free_sides_are_seen_in_the_file(tmp_path: Path, batch: int | str, free: bool) -> None:
    assert has_free_sides(write_cell_model(tmp_path / "c.onnx", batch=batch)) is free
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 40)
    assert not has_free_sides(tmp_path / "x.onnx")


@settings(max_examples=15)
@given(batches=st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_outputs_do_not_depend_on_the_runs_before(batches: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The binding itself, without names translated: device ``cpu`` of ONNX Runtime's own."""
    path = write_cell_model(tmp_path_factory.mktemp("b") / "d.onnx", batch="batch")
    session, device = onnxruntime.InferenceSession(str(path), providers=[CPU]), SharedGpu()
    with device.current():
        stream = device.new_stream()
    runs = DeviceRuns(onnxruntime, session, device, stream, kind="cpu")
    for i, batch in enumerate(batches):
        images = np.random.default_rng(i).random((batch, 3, 64, 64), np.float32)
        (found,) = runs.run({"images": images})
        np.testing.assert_array_equal(found, session.run(None, {"images": images})[0])
    runs.close()
    runs.close()
    assert device.live == 0
    with pytest.raises(BackendError, match="closed"):
        runs.run({"images": images})


def test_a_graph_is_not_replayed_for_another_shape(model: Path, gpu: SharedGpu) -> None:
    """It would give the output of the shape that it captured, without an error."""
    with open_session(model, provider="cuda") as session:
        runs = session.runs  # type: ignore[attr-defined]  # of ONNX Runtime's sessions
        assert runs.graph
        allocations = gpu.allocations
        with (
            pytest.raises(BackendError, match=r"input 'images' must be float32 \(1, 3, 64, 64\), got \(2, 3, 64, 64\)"),
            runs.hold({"images": (2, 3, 64, 64)}),
        ):
            pass
        with pytest.raises(BackendError, match="input 'images' must be"):
            session.run({"images": NOISE[:, :, :32]})
        assert gpu.allocations == allocations
        with runs.hold({"images": NOISE.shape}) as bound:
            assert set(bound.outputs()) == {"output"}


def test_everything_lies_on_the_gpu_that_is_asked_for(
    model: Path, gpu: SharedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    bound: list[int] = []

    def opened(index: int = 0) -> SharedGpu:
        asked.append(index)
        gpu.index = index
        return gpu

    def elsewhere(bind: Any) -> Any:
        def there(self: Binding, name: str, device: str, index: int, *place: Any) -> None:
            bound.append(index)
            bind(self, name, device, 0, *place)  # the host has one memory

        return there

    monkeypatch.setattr(ort_cuda, "open_gpu", opened)
    for name in ("bind_input", "bind_output"):
        monkeypatch.setattr(Binding, name, elsewhere(getattr(Binding, name)))
    with open_session(model, provider="cuda:2") as session:
        assert session.run({"images": NOISE})["output"].shape == (1, 64, 10)
    assert asked == [2]
    assert bound == [2, 2]
    assert [told["device_id"] for told in CudaSession.loads] == ["2"]


def test_outputs_survive_the_next_run(model: Path, gpu: SharedGpu) -> None:
    with open_session(model, provider="cuda") as session:
        first = session.run({"images": NOISE})["output"]
        kept = first.copy()
        session.run({"images": NOISE * 0.5})
        np.testing.assert_array_equal(first, kept)


def test_a_predictor_runs_on_it(model: Path, gpu: SharedGpu) -> None:
    with load(model, device="cuda") as predictor:
        assert predictor(planted((2, 3, RED))).counts() == {"red": 1}


def test_without_a_library_for_gpu_memory_it_runs_and_says_what_is_missing(
    model: Path, gpu: SharedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(index: int = 0) -> None:
        raise MissingDependencyError("cuda.bindings.runtime is required here but is not installed")

    monkeypatch.setattr(ort_cuda, "open_gpu", missing)
    with open_session(model, provider="cuda") as session:
        assert session.notes[0].startswith("inputs and outputs do not stay on the GPU: cuda.bindings")
        assert session.run({"images": NOISE})["output"].shape == (1, 64, 10)
    assert CudaSession.loads[0]["use_tf32"] == "0"
    assert "user_compute_stream" not in CudaSession.loads[0]


def test_the_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, model: Path, gpu: SharedGpu) -> None:
    monkeypatch.setenv(CUDA_SETTINGS, "tf32, no-graph search=default")
    assert CudaOptions.from_environment() == CudaOptions(graph=False, tf32=True, search="default")
    open_session(model, provider="cuda").close()
    (given,) = CudaSession.loads
    assert (given["use_tf32"], given["enable_cuda_graph"]) == ("1", "0")
    assert given["cudnn_conv_algo_search"] == "DEFAULT"
    for wrong in ("fp16", "search=fast", "tf32=1"):
        monkeypatch.setenv(CUDA_SETTINGS, wrong)
        with pytest.raises(UsageError, match="DEPLOYKIT_CUDA holds words of graph, tf32, nhwc, stages"):
            open_session(model, provider="cpu")


def test_a_session_that_is_dropped_gives_everything_back(model: Path, gpu: SharedGpu) -> None:
    session = open_session(model, provider="cuda")
    session.run({"images": NOISE})
    assert gpu.live
    del session
    gc.collect()
    assert gpu.live == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_neither_runs_a_session_on_a_gpu_nor_frees_it(model: Path, gpu: SharedGpu) -> None:
    session = open_session(model, provider="cuda")
    expected = session.run({"images": NOISE})["output"]

    def work() -> None:
        nonlocal session
        live = gpu.live
        with pytest.raises(BackendError, match=r"opened on CUDAExecutionProvider before this process was forked"):
            session.run({"images": NOISE})
        session.close()
        session.close()
        del session
        gc.collect()
        assert gpu.live == live

    forked(work)
    np.testing.assert_array_equal(session.run({"images": NOISE})["output"], expected)
    session.close()
