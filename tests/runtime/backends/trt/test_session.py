"""Sessions of engines, with stand-ins for TensorRT and CUDA; on a GPU, tests/gpu runs the real ones."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import (
    ArtefactError,
    BackendError,
    DeployError,
    DeviceError,
    MissingDependencyError,
    ParityError,
    SpecError,
    UsageError,
)
from deploykit.facade import load
from deploykit.runtime import cuda
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.trt import session as trt
from deploykit.runtime.engine_record import EngineRecord, Profile, read_record, record_path, reference_values_path
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs
from deploykit.runtime.session import Session, open_session
from deploykit.runtime.verified import sha256
from deploykit.spec import PoseObjectRows, RawDetections
from tests import cpu_tensorrt
from tests.cell_model import RED, cell_spec, planted, write_cell_model
from tests.cpu_tensorrt import CpuGpu, write_engine
from tests.forked import forked

ONES = np.ones((1, 3, 64, 64), np.float32)
DYNAMIC = [[[1, 3, 64, 64], [2, 3, 64, 64], [4, 3, 64, 64]]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuGpu]:
    """A machine with a GPU and TensorRT, both stand-ins; a test must free whatever it allocates."""
    device = CpuGpu()
    monkeypatch.setattr(trt, "open_gpu", lambda index=0: device)
    monkeypatch.setitem(sys.modules, "tensorrt", cpu_tensorrt)
    monkeypatch.setattr(trt, "installed", lambda: ("tensorrt",))
    monkeypatch.setattr(cpu_tensorrt.Runtime, "says", "")
    yield device
    assert device.live == 0


def record(engine: Path, **changes: object) -> EngineRecord:
    """Write the record of an engine of the cell model."""
    made = EngineRecord("tensorrt", "10.16.0.1", cell_spec(), "cells.onnx", "00", size=engine.stat().st_size)
    made = replace(made, **{"verified": True, **changes})  # type: ignore[arg-type]
    made.write(engine)
    return made


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = write_engine(tmp_path / "cells.trt", write_cell_model(tmp_path / "cells.onnx", spec=cell_spec()))
    record(path)
    return path


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    onnx = write_cell_model(tmp_path / "cells.onnx", batch="batch")
    path = write_engine(tmp_path / "cells.trt", onnx, DYNAMIC)
    record(path, spec=cell_spec(batch=2, dynamic=True), profiles=(Profile(*map(tuple, DYNAMIC[0])),))
    return path


def test_an_engine_describes_and_runs_its_network(engine: Path, gpu: CpuGpu) -> None:
    with open_session(engine) as session, open_session(engine.with_suffix(".onnx")) as onnx:
        assert (session.inputs, session.outputs) == (onnx.inputs, onnx.outputs)
        assert session_spec(session, "cells") == cell_spec()
        assert session.providers[0].startswith("TensorRT 10.16.0.1 on CPU stand-in (cuda:0, ")
        for images in (ONES, np.random.default_rng(0).random(ONES.shape, np.float32)):
            np.testing.assert_array_equal(
                session.run({"images": images})["output"], onnx.run({"images": images})["output"]
            )
        assert session.device_memory is not None
        assert session.device_memory >= ONES.nbytes


def test_a_predictor_runs_on_an_engine(engine: Path, gpu: CpuGpu) -> None:
    with load(engine) as predictor:
        result = predictor(planted((2, 3, RED)))
    assert result.counts() == {"red": 1}
    assert result.boxes.tolist() == [[16, 24, 24, 32]]


def test_the_suffix_engine_means_the_same(engine: Path, gpu: CpuGpu) -> None:
    other = engine.rename(engine.with_suffix(".engine"))
    engine.with_name("cells.trt.json").rename(engine.with_name("cells.engine.json"))
    with open_session(other) as session:
        assert session.run({"images": ONES})["output"].shape == (1, 64, 10)


def test_buffers_are_reused_and_grow(dynamic: Path, gpu: CpuGpu) -> None:
    with open_session(dynamic) as session:
        session.run({"images": np.repeat(ONES, 2, 0)})
        after_first = gpu.allocations
        for batch in (1, 2, 1):
            assert session.run({"images": np.repeat(ONES, batch, 0)})["output"].shape == (batch, 64, 10)
        assert gpu.allocations == after_first
        session.run({"images": np.repeat(ONES, 4, 0)})
        assert gpu.allocations == after_first + 4  # input and output, on the device and on the host


def test_outputs_survive_the_next_run(engine: Path, gpu: CpuGpu) -> None:
    with open_session(engine) as session:
        first = session.run({"images": ONES})["output"]
        kept = first.copy()
        session.run({"images": ONES * 0.5})
    np.testing.assert_array_equal(first, kept)


def test_an_output_of_data_dependent_shape_gets_its_memory_during_the_run(tmp_path: Path, gpu: CpuGpu) -> None:
    onnx = write_cell_model(tmp_path / "cells.onnx", batch="batch")
    path = write_engine(tmp_path / "cells.trt", onnx, DYNAMIC, data_dependent=True)
    record(path)
    with open_session(path) as session, open_session(onnx) as reference:
        for batch in (1, 3, 2):
            images = np.random.default_rng(batch).random((batch, 3, 64, 64), np.float32)
            found, expected = (s.run({"images": images})["output"] for s in (session, reference))
            np.testing.assert_array_equal(found, expected)


def test_a_full_device_is_reported_for_an_output_of_data_dependent_shape(
    tmp_path: Path, gpu: CpuGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = write_cell_model(tmp_path / "cells.onnx", batch="batch")
    path = write_engine(tmp_path / "cells.trt", onnx, DYNAMIC, data_dependent=True)
    record(path)
    allocate = gpu.allocate

    def full(size: int) -> int:
        if size < ONES.nbytes:  # the output is smaller than the input
            raise BackendError("cudaMalloc failed with code 2: out of memory")
        return allocate(size)

    monkeypatch.setattr(gpu, "allocate", full)
    with open_session(path) as session, pytest.raises(BackendError, match="out of memory"):
        session.run({"images": ONES})


def test_half_precision_inputs_and_outputs(tmp_path: Path, gpu: CpuGpu) -> None:
    path = write_engine(tmp_path / "cells.trt", write_cell_model(tmp_path / "cells.onnx", half=True))
    record(path)
    with open_session(path) as session:
        assert session.inputs[0].dtype == "float16"
        assert session.run({"images": ONES.astype(np.float16)})["output"].dtype == np.float16


def test_several_threads_share_a_session(dynamic: Path, gpu: CpuGpu) -> None:
    found: dict[int, Array] = {}
    with trt.open_session(dynamic, contexts=3) as session:

        def work(number: int) -> None:
            for _ in range(20):
                images = np.full((1 + number % 4, 3, 64, 64), number / 10, np.float32)
                found[number] = session.run({"images": images})["output"]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= gpu.streams <= 3
    for number, output in found.items():
        assert output.shape[0] == 1 + number % 4
        np.testing.assert_allclose(output[..., 4], number / 10, rtol=1e-5)


def test_contexts_are_created_when_they_are_needed(engine: Path, gpu: CpuGpu) -> None:
    with trt.open_session(engine, contexts=5) as session:
        for _ in range(6):
            session.run({"images": ONES})
        assert gpu.streams == 1


def test_the_matching_profile_is_used(tmp_path: Path, gpu: CpuGpu) -> None:
    shape = [3, 64, 64]
    profiles = [[[1, *shape], [1, *shape], [1, *shape]], [[1, *shape], [3, *shape], [4, *shape]]]
    onnx = write_cell_model(tmp_path / "cells.onnx", batch="batch")
    path = write_engine(tmp_path / "cells.trt", onnx, profiles)
    record(path, spec=cell_spec(dynamic=True))
    with trt.open_session(path) as session:
        for batch, profile in ((1, 0), (3, 1), (2, 1), (1, 0)):
            assert session.run({"images": np.repeat(ONES, batch, 0)})["output"].shape[0] == batch
            assert session._contexts[0]._context.profile == profile  # type: ignore[attr-defined]
        assert session.accepts_shape((4, 3, 64, 64))
        assert not session.accepts_shape((5, 3, 64, 64))
        with pytest.raises(BackendError, match=r"takes shapes of 1x3x64x64 .. 1x3x64x64 .* or 1x3x64x64 .. 3x3x64x64"):
            session.run({"images": np.repeat(ONES, 5, 0)})


def test_the_stages_on_the_gpu_are_timed(engine: Path, gpu: CpuGpu) -> None:
    with trt.open_session(engine) as session:
        session.run({"images": ONES})
        assert list(session.stage_ms) == ["copy in", "compute", "copy out"]
        assert all(ms >= 0 for ms in session.stage_ms.values())


def test_a_closed_session_refuses_to_run_and_closes_once(engine: Path, gpu: CpuGpu) -> None:
    session = trt.open_session(engine)
    session.close()
    session.close()
    with pytest.raises(BackendError, match=r"cells\.trt is closed"):
        session.run({"images": ONES})


def test_an_engine_that_is_dropped_gives_everything_back(dynamic: Path, gpu: CpuGpu) -> None:
    session = open_session(dynamic)
    session.run({"images": ONES})
    assert gpu.live
    del session
    gc.collect()
    assert gpu.live == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_neither_runs_an_engine_nor_frees_it(engine: Path, gpu: CpuGpu) -> None:
    model = load(engine)
    session, image = model.session, planted((0, 0, RED))
    assert model(image).counts() == {"red": 1}

    def work() -> None:
        nonlocal model, session
        live = gpu.live
        with pytest.raises(BackendError, match="opened on a GPU before this process was forked"):
            model(image)
        with pytest.raises(BackendError, match="open it in this process"):
            _ = session.runs  # type: ignore[attr-defined]  # of engines
        model.close()
        model.close()
        del model, session
        gc.collect()
        assert gpu.live == live
        with load(engine) as own:
            assert own(image).counts() == {"red": 1}

    forked(work)
    assert model(image).counts() == {"red": 1}
    model.close()


def test_a_predictor_of_an_engine_is_pickled_by_its_path(engine: Path, gpu: CpuGpu) -> None:
    with load(engine, conf=0.2) as model:
        data = pickle.dumps(model)
    with pickle.loads(data) as again:
        assert again.options.conf == 0.2
        assert again(planted((0, 0, RED))).counts() == {"red": 1}


def test_closing_while_others_run_gives_results_or_says_closed(dynamic: Path, gpu: CpuGpu) -> None:
    for turn in (0, 2, 5):
        session, done, wrong = open_session(dynamic), list[int](), list[BaseException]()
        expected = session.run({"images": ONES})["output"]

        def run(session: Session = session, done: list[int] = done, wrong: list[BaseException] = wrong,
                expected: Array = expected) -> None:  # fmt: skip
            try:
                while True:
                    np.testing.assert_array_equal(session.run({"images": ONES})["output"], expected)
                    done.append(1)
            except BaseException as e:
                if "closed" not in str(e):
                    wrong.append(e)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not done:
            time.sleep(0.001)
        time.sleep(0.001 * turn)
        closers = [threading.Thread(target=session.close) for _ in range(2)]
        for thread in closers:
            thread.start()
        for thread in (*closers, *threads):
            thread.join(30)
            assert not thread.is_alive()
        assert wrong == []
        assert gpu.live == 0


def test_inputs_are_checked_before_they_reach_the_gpu(engine: Path, gpu: CpuGpu) -> None:
    with open_session(engine) as session:
        for wrong in (ONES[:, :, :32], ONES.astype(np.float64)):
            with pytest.raises(BackendError, match=r"input 'images' must be float32 \(1, 3, 64, 64\)"):
                session.run({"images": wrong})


# Built without a GPU: compared with the reference values when it first runs.


def write_expected(engine: Path, *, wrong: float = 0.0) -> None:
    with open_session(engine.with_suffix(".onnx")) as session:
        rows = session.run({"images": ONES})["output"][0]
    rows[:, 0] += wrong
    feeds = ParityInputs({"ones": ONES}, (Batch("ones", ("ones",)),))
    layout = cell_spec().output
    assert isinstance(layout, RawDetections)
    given = ReferenceOutputs(feeds, {"the checkpoint": {"ones": rows}}, {"the checkpoint": "by hand"}, layout)
    given.save(reference_values_path(engine))


def test_the_first_run_compares_and_records_it(engine: Path, gpu: CpuGpu) -> None:
    record(engine, verified=False, unverified="built, not run: no GPU")
    write_expected(engine)
    with open_session(engine) as session:
        assert session.notes == ()
    after = read_record(engine)
    assert after is not None
    assert (after.verified, after.unverified) == (True, "")


def test_reference_values_that_are_not_those_of_the_build_are_refused(engine: Path, gpu: CpuGpu) -> None:
    write_expected(engine)
    reports = {".parity.npz": sha256(reference_values_path(engine))}
    before = record(engine, verified=False, unverified="built, not run: no GPU", reports=reports)
    write_expected(engine, wrong=0.01)
    with pytest.raises(
        ArtefactError, match=r"cells\.trt\.parity\.npz is not the file that was written with cells\.trt"
    ):
        open_session(engine)
    assert read_record(engine) == before
    write_expected(engine)
    open_session(engine).close()


def test_an_engine_that_differs_is_not_loaded(engine: Path, gpu: CpuGpu) -> None:
    before = record(engine, verified=False, unverified="built, not run: no GPU")
    write_expected(engine, wrong=0.01)
    with pytest.raises(ParityError, match=r"cells\.trt ran for the first time .* boxes of cells\.trt differ"):
        open_session(engine)
    assert read_record(engine) == before


def test_pose_objects_are_compared_as_rows(engine: Path, gpu: CpuGpu) -> None:
    poses = PoseObjectRows(cls=(5, 7), coords=(7, 9))
    spec = replace(cell_spec(), output=poses, classes=("person",))
    before = record(engine, verified=False, unverified="built, not run: no GPU", spec=spec)
    write_expected(engine, wrong=0.01)
    with pytest.raises(ParityError, match=r"cells\.trt ran for the first time .* boxes of cells\.trt differ"):
        open_session(engine)
    assert read_record(engine) == before
    write_expected(engine)
    open_session(engine).close()
    after = read_record(engine)
    assert after is not None
    assert after.verified


def test_a_verified_engine_is_not_compared_again(engine: Path, gpu: CpuGpu) -> None:
    write_expected(engine, wrong=1.0)
    open_session(engine).close()


def test_without_reference_values_a_note_says_that_the_engine_is_not_verified(engine: Path, gpu: CpuGpu) -> None:
    record(engine, verified=False, unverified="not checked, as asked for")
    with open_session(engine) as session:
        assert session.notes == ("the outputs of this engine are not verified: not checked, as asked for",)


def test_compare_accepts_the_reference_values(engine: Path, gpu: CpuGpu) -> None:
    from deploykit.export.parity.compare import compare

    write_expected(engine)
    assert compare(reference_values_path(engine), engine).ok
    write_expected(engine, wrong=0.01)
    report = compare(reference_values_path(engine), engine)
    assert not report.ok
    assert report.references == {"the checkpoint": "by hand"}


# Files and options that are refused.


@pytest.mark.parametrize(
    ("logged", "kind", "words"),
    [
        (
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible "
            "with this version of TensorRT, expecting library version 10.16.0.1 got 8.6.1.6, please rebuild.)",
            ArtefactError,
            "was built by TensorRT 8.6.1.6, but this is 10.16.0.1: build it again",
        ),
        (
            "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: "
            "Current Version: 237, Serialized Engine Version: 239",
            ArtefactError,
            "this is 10.16.0.1: build it again with 10.16.0.1 from cells.onnx",
        ),
        (
            "The engine plan file is generated on an incompatible device, expecting compute 8.9 got compute 8.6, "
            "please rebuild.",
            DeviceError,
            "was built for compute capability 8.6, but CPU stand-in has 8.9: build it on this GPU, or with --hardware-",
        ),
        (
            "IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: NmsKpt, version: 1, "
            "namespace:deploykit.)",
            BackendError,
            "needs the plugin NmsKpt version 1, but no loaded library has it: deploykit plugins build makes it for "
            "this TensorRT, or build the engine from an ONNX file with --nms graph",
        ),
        (
            "getPluginCreator could not find plugin: EfficientNMS_TRT version: 1",
            BackendError,
            "needs the plugin EfficientNMS_TRT version 1, .*: load the library that has it before the engine, or build",
        ),
        (
            "Serialization assertion magicTagRead == kMAGIC_TAG failed.",
            ArtefactError,
            "not an engine of this flavour .*: deploykit inspect --verify .* tells which; build it again",
        ),
        (
            "Target GPU SM 70 is not supported by this TensorRT release.",
            DeviceError,
            "not run on CPU stand-in .*: build it again",
        ),
        (
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine cannot run on this GPU, which "
            "has compute capability 9.0. Supported compute capabilities: 8.0 8.6 8.9 12.0 12.1 >12.0. TensorRT-RTX "
            "does not support this compute capability, so the engine cannot be rebuilt for it.",
            DeviceError,
            r"does not support CPU stand-in .*; it runs on 8\.0 8\.6 8\.9 12\.0 12\.1 >12\.0\), so ",
        ),
        (
            "API Usage Error (The engine cannot run on this GPU, which has compute capability 9.0. Supported compute "
            "capabilities: None. TensorRT-RTX does not support this compute capability",
            DeviceError,
            r"does not support CPU stand-in \(compute capability [0-9.]+\), so ",
        ),
        (
            "Requested amount of GPU memory could not be allocated: out of memory",
            DeviceError,
            "GB free, too little .*: end other programs",
        ),
        ("something new", BackendError, "TensorRT cannot load .*: something new"),
    ],
)
def test_a_load_error_says_what_to_do(
    engine: Path, gpu: CpuGpu, monkeypatch: pytest.MonkeyPatch, logged: str, kind: type[DeployError], words: str
) -> None:
    monkeypatch.setattr(cpu_tensorrt.Runtime, "says", logged)
    with pytest.raises(kind, match=words) as refused:
        open_session(engine)
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)


def test_a_file_that_does_not_match_its_record_is_refused(engine: Path, gpu: CpuGpu) -> None:
    engine.write_bytes(engine.read_bytes()[:-10])
    with pytest.raises(ArtefactError, match=r"but its record says .*: copy both again"):
        open_session(engine)


def test_an_engine_of_the_same_size_that_is_another_one_is_refused(engine: Path, gpu: CpuGpu) -> None:
    record = read_record(engine)
    assert record is not None
    replace(record, sha256=sha256(engine)).write(engine)
    with open_session(engine):
        pass
    data = bytearray(engine.read_bytes())
    data[-1] ^= 1
    engine.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"has the SHA-256 [0-9a-f]{64}, but its record says [0-9a-f]{64}: copy"):
        open_session(engine)


def test_an_empty_file_is_refused(engine: Path, gpu: CpuGpu) -> None:
    engine.write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"is empty \(0 bytes\)"):
        open_session(engine)


def test_a_damaged_record_is_named(engine: Path, gpu: CpuGpu) -> None:
    engine.with_name("cells.trt.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"cannot read the engine record \S+cells\.trt\.json \(Expecting"):
        open_session(engine)


def test_an_engine_without_a_record_needs_only_a_spec(engine: Path, gpu: CpuGpu) -> None:
    engine.with_name("cells.trt.json").unlink()
    with pytest.raises(SpecError, match="carries no deploykit spec, and the file does not tell"):
        load(engine)
    with load(engine, spec=cell_spec()) as predictor:
        assert predictor(planted((0, 0, RED))).counts() == {"red": 1}


def test_an_engine_without_a_record_is_ambiguous_where_both_flavours_are_installed(
    engine: Path, gpu: CpuGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.with_name("cells.trt.json").unlink()
    monkeypatch.setattr(trt, "installed", lambda: ("tensorrt", "tensorrt-rtx"))
    with pytest.raises(UsageError, match="pass the device tensorrt or tensorrt-rtx"):
        open_session(engine)
    open_session(engine, provider="tensorrt").close()


def test_a_flavour_that_is_not_installed_is_named(engine: Path, gpu: CpuGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit-vision\[tensorrt\]'"):
        open_session(engine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 2}, "threads are for the CPU"),
        ({"provider": "cpu"}, r"runs on an NVIDIA GPU only"),
        ({"provider": "cuda:x"}, r"got 'cuda:x'"),
        ({"provider": "cuda:"}, r"got 'cuda:'"),
        ({"backend": "onnxruntime"}, r"backend of a \.trt file must be auto or tensorrt"),
    ],
)
def test_options_that_engines_do_not_have_are_refused(
    engine: Path, gpu: CpuGpu, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        open_session(engine, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(cuda.gpu_unavailable_reason() is None, reason="this machine has a GPU")
def test_without_a_gpu_the_error_names_what_runs_here(engine: Path) -> None:
    record(engine, onnx_sha256=sha256(engine.with_suffix(".onnx")))
    with pytest.raises(DeviceError) as refused:
        open_session(engine)
    message = str(refused.value)
    assert message.startswith(f"{engine} is a TensorRT engine: an NVIDIA GPU is required, but ")
    assert message.endswith(f"; {engine.with_suffix('.onnx')} is the same network and runs here")
    engine.with_suffix(".onnx").write_bytes(engine.with_suffix(".onnx").read_bytes() + b"\0")
    with pytest.raises(DeviceError, match=r"; \S+\.onnx lies beside it and runs here$"):
        open_session(engine)
    record_path(engine).unlink()
    with pytest.raises(DeviceError, match=r"; \S+\.onnx lies beside it and runs here$"):
        open_session(engine)
    engine.with_suffix(".onnx").unlink()
    with pytest.raises(DeviceError) as refused:
        open_session(engine)
    assert "runs here" not in str(refused.value)
