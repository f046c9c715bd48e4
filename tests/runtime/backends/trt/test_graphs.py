"""CUDA graphs, several contexts and several GPUs of engines, with stand-ins for TensorRT and CUDA."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import BackendError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.ort_providers import CUDA_SETTINGS
from deploykit.runtime.backends.trt import session as trt
from deploykit.runtime.session import open_session
from tests import cpu_tensorrt
from tests.cell_model import write_cell_model
from tests.cpu_tensorrt import CpuGpu, write_engine

DYNAMIC = [[[1, 3, 64, 64], [2, 3, 64, 64], [4, 3, 64, 64]]]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, CpuGpu]]:
    """GPUs by number, made when they are asked for; what a test allocates on them has to be freed."""
    made: dict[int, CpuGpu] = {}
    monkeypatch.setattr(trt, "open_gpu", lambda index=0: made.setdefault(index, CpuGpu(index)))
    monkeypatch.setitem(sys.modules, "tensorrt", cpu_tensorrt)
    monkeypatch.setattr(trt, "installed", lambda: ("tensorrt",))
    yield made
    assert not any(gpu.live for gpu in made.values())


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "cells.trt", write_cell_model(tmp_path / "cells.onnx"))


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "cells.trt", write_cell_model(tmp_path / "cells.onnx", batch="batch"), DYNAMIC)


def images(seed: int, batch: int = 1) -> Array:
    return np.random.default_rng(seed).random((batch, 3, 64, 64), np.float32)


def check_runs(path: Path, batches: list[int], **options: Any) -> Any:
    """Run an engine on images of its own each time, compare each output with the network's, and return the session."""
    with open_session(path.with_suffix(".onnx"), device="cpu") as onnx, trt.open_session(path, **options) as session:
        for seed, batch in enumerate(batches):
            feed = {"images": images(seed, batch)}
            np.testing.assert_array_equal(session.run(feed)["output"], onnx.run(feed)["output"])
            assert list(session.stage_ms) == ["copy in", "compute", "copy out"]
        return session


def test_from_the_third_run_on_only_the_graph_is_launched(engine: Path, gpus: dict[int, CpuGpu]) -> None:
    with trt.open_session(engine) as session, open_session(engine.with_suffix(".onnx"), device="cpu") as onnx:
        for seed, (ran, launched) in enumerate([(1, 0), (2, 1), (2, 2), (2, 3), (2, 4)]):  # one launch is the check
            feed = {"images": images(seed)}
            np.testing.assert_array_equal(session.run(feed)["output"], onnx.run(feed)["output"])
            (context,) = session._contexts  # type: ignore[attr-defined]
            assert (context._context.runs, gpus[0].launches) == (ran, launched)
        assert not session.notes


def test_other_shapes_are_run_as_they_come_and_captured_when_they_repeat(
    dynamic: Path, gpus: dict[int, CpuGpu]
) -> None:
    """Batches that grow move the buffers, so that a graph of the old ones would read memory that was freed."""
    check_runs(dynamic, [2, 2, 2, 4, 2, 2, 2, 1, 2, 1, 4, 4, 4, 3, 3, 3])
    # 2: a check and a replay; 4, then 2 again: the same; 4 and 3 likewise; those between come once.
    assert gpus[0].launches == 8


@pytest.mark.parametrize("words", ["no-graph", "no-graph,contexts=3"])
def test_graphs_can_be_switched_off(
    engine: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv(CUDA_SETTINGS, words)
    check_runs(engine, [1] * 5)
    assert gpus[0].launches == 0


def test_a_library_without_graphs_does_without(
    engine: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuGpu, "graphs", False)
    assert check_runs(engine, [1] * 5).notes == ()
    assert gpus[0].launches == 0


def test_an_engine_that_cannot_be_captured_runs_without_a_graph_and_says_so_once(
    engine: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu_tensorrt.Context, "refuses_capture", True)
    session = check_runs(engine, [1] * 6)
    (note,) = [note for note in session.notes if "graph" in note]
    assert note == f"{engine} runs without a CUDA graph: {engine} failed to run: TensorRT gives no reason"
    assert caplog.text.count("runs without a CUDA graph") == 1


def test_a_graph_whose_replay_gives_nothing_is_not_used(
    engine: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its output would still lie there from the run before: the check wipes it."""
    monkeypatch.setattr(CpuGpu, "replays", False)
    check_runs(engine, [1] * 5)
    assert gpus[0].launches == 1
    assert "the replay of its graph gave another output 'output' than an ordinary run" in caplog.text


def test_an_output_of_data_dependent_shape_is_never_captured(tmp_path: Path, gpus: dict[int, CpuGpu]) -> None:
    onnx = write_cell_model(tmp_path / "cells.onnx", batch="batch")
    check_runs(write_engine(tmp_path / "cells.trt", onnx, DYNAMIC, data_dependent=True), [2] * 5)
    assert gpus[0].launches == 0


def write_three_outputs(path: Path) -> Path:
    """A network of a dynamic batch with outputs of several types and sizes; the last one is empty."""
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["mean"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Slice", ["mean", "zero", "zero", "one"], ["none"]),
        helper.make_node("Add", ["images", "images"], ["twice"]),
    ]
    given = {"axes": [2, 3], "zero": [0], "one": [1]}
    weights = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in given.items()]
    shapes = {"whole": (TensorProto.INT64, ["batch", 3]), "none": (TensorProto.FLOAT, ["batch", 0])}
    shapes |= {
        name: (TensorProto.FLOAT, ["batch", 3, *sides]) for name, sides in {"mean": [], "twice": [64, 64]}.items()
    }
    outputs = [helper.make_tensor_value_info(name, *about) for name, about in shapes.items()]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])
    graph = helper.make_graph(nodes, "three", [image], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


def test_all_outputs_come_with_one_copy_of_no_more_than_they_hold(
    tmp_path: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_three_outputs(tmp_path / "three.onnx")
    path, copies = write_engine(tmp_path / "three.trt", model, DYNAMIC), []
    original = CpuGpu.to_host

    def watched(self: CpuGpu, memory: Array, pointer: int, stream: Any) -> None:
        copies.append(memory.nbytes)
        original(self, memory, pointer, stream)

    monkeypatch.setattr(CpuGpu, "to_host", watched)
    with open_session(model, device="cpu") as onnx_session, trt.open_session(path) as session:
        for seed, batch in enumerate((4, 1, 1, 1, 2)):
            copies.clear()
            feed = {"images": 9 * images(seed, batch)}
            found, expected = session.run(feed), onnx_session.run(feed)
            assert list(map(str, sorted(found))) == sorted(expected)
            for name, values in expected.items():
                assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
                np.testing.assert_array_equal(found[name], values, err_msg=name)
            held = sum(values.nbytes for values in expected.values())
            assert copies
            assert all(held <= copied < held + 4 * 256 for copied in copies)
            assert len(copies) == (2 if seed == 2 else 1)  # the second run of a batch of 1 is captured, and checked


def test_two_threads_are_on_the_gpu_at_once_each_with_its_own_stream_and_graph(
    engine: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits inside its run until the other is there too: with one context neither would come back."""
    meeting, found = threading.Barrier(2, timeout=30), {}
    compute = cpu_tensorrt.Context.compute

    def together(self: Any, *given: Any) -> bool:
        meeting.wait()
        return compute(self, *given)

    monkeypatch.setattr(cpu_tensorrt.Context, "compute", together)
    with trt.open_session(engine) as session:

        def work(seed: int) -> None:
            for _ in range(4):
                found[seed] = session.run({"images": images(seed)})["output"]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gpus[0].streams == 2
        assert len(gpus[0].graphs_made) == 2
    monkeypatch.setattr(cpu_tensorrt.Context, "compute", compute)
    with open_session(engine.with_suffix(".onnx"), device="cpu") as onnx:
        for seed, output in found.items():
            np.testing.assert_array_equal(output, onnx.run({"images": images(seed)})["output"])


def test_engines_run_on_the_gpu_that_is_named(engine: Path, gpus: dict[int, CpuGpu]) -> None:
    for device, index in (("cuda:1", 1), ("cuda", 0), ("cuda:3", 3)):
        with open_session(engine, device=device) as session:
            session.run({"images": images(0)})
            assert f"(cuda:{index}, " in session.providers[0]
            assert [number for number, gpu in gpus.items() if gpu.streams] == [index]


def test_runs_around_the_network_are_captured_at_once_and_end_with_the_session(
    engine: Path, gpus: dict[int, CpuGpu]
) -> None:
    with trt.open_session(engine) as session, open_session(engine.with_suffix(".onnx"), device="cpu") as onnx:
        runs: Any = session.runs  # type: ignore[attr-defined]
        assert runs is session.runs  # type: ignore[attr-defined]
        before, feed = gpus[0].launches, images(3)
        with runs.hold({"images": feed.shape}) as network:
            gpus[0].to_device(network.inputs["images"].pointer, feed, runs.stream)
            network.enqueue()
            place, out = network.outputs()["output"], np.empty((1, 64, 10), np.float32)
            assert (place.shape, place.dtype) == (out.shape, out.dtype)
            gpus[0].to_host(out, place.pointer, runs.stream)
        np.testing.assert_array_equal(out, onnx.run({"images": feed})["output"])
        assert gpus[0].launches == before + 1
        assert session.device_memory is not None
    with pytest.raises(BackendError, match="closed"), runs.hold({"images": feed.shape}):
        pass
    with pytest.raises(BackendError, match="closed"):
        session.runs  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("words", ["contexts=0", "contexts=x", "contexts", "no-contexts", f"contexts={9:05000}"])
def test_a_wrong_number_of_contexts_is_named(
    engine: Path, gpus: dict[int, CpuGpu], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv(CUDA_SETTINGS, words)
    with pytest.raises(UsageError, match="contexts=N and memory=BYTES; got"):
        open_session(engine)
