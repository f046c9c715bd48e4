"""Engines on a real GPU: built, run, and held against the ONNX file that they were built from."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from deploykit.errors import ArtefactError, DeviceError, ExportError
from deploykit.export.engine.build import build_engine
from deploykit.export.engine.report import EngineReport
from deploykit.export.options import EngineOptions
from deploykit.export.parity.compare import compare
from deploykit.export.parity.inputs import sample_image
from deploykit.export.to_onnx import onnx_from_model
from deploykit.facade import load, open_session
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.trt import session as trt
from deploykit.runtime.cuda import open_gpu
from deploykit.runtime.engine_record import FLAVOURS, Profile, parity_report_path, read_record, reference_values_path
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.spec import RawDetections
from tests.narrow import model_of

pytestmark = pytest.mark.gpu

SHAPES = {
    "none": (),
    "batch": (),
    "shape": (
        Profile((1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64)),
        Profile((1, 3, 16, 16), (2, 3, 64, 64), (4, 3, 128, 128)),
    ),
}


@cache
def why_rtx_does_not_run() -> str:
    """What TensorRT for RTX says of this GPU, after a first engine; empty: it runs."""
    with TemporaryDirectory() as folder:
        report = small_engine(Path(folder), "tensorrt-rtx")
    unverified = report.record.unverified
    return unverified if "TensorRT for RTX does not support" in unverified else ""


def small_engine(folder: Path, flavour: str) -> EngineReport:
    """An engine of a small pose network."""
    onnx_from_model(model_of("few", num_keypoints=3, objectness=3.0), out=folder / "few.onnx", img=64)
    return build_engine(folder / "few.onnx", flavour=flavour)  # type: ignore[arg-type]  # a str


def test_a_gpu_that_rtx_does_not_support_is_named(tmp_path: Path) -> None:
    """The engine is built and kept, and says why it did not run."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    if not why_rtx_does_not_run():
        pytest.skip("TensorRT for RTX supports this GPU")
    report = small_engine(tmp_path, "tensorrt-rtx")
    assert report.record.unverified.startswith("built, not run: TensorRT for RTX does not support")
    assert ".partial" not in report.record.unverified
    assert reference_values_path(report.path).exists()
    with pytest.raises(
        DeviceError, match=r"so few\.trt cannot run here: build an engine with --format tensorrt"
    ) as refused:
        open_session(report.path)
    assert "\n" not in str(refused.value)


@pytest.fixture(
    scope="module",
    params=[pytest.param("tensorrt", marks=pytest.mark.tensorrt), "tensorrt-rtx"],
)
def flavour(request: pytest.FixtureRequest) -> str:
    """Each flavour that is installed and runs on this GPU."""
    if find_spec(FLAVOURS[request.param]) is None:
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorrt-rtx" and (reason := why_rtx_does_not_run()):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module", params=list(SHAPES))
def engine(flavour: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineReport:
    """An engine of a small pose network with each kind of shape; the build itself runs the parity gate."""
    folder = tmp_path_factory.mktemp(f"{flavour}-{request.param}")
    model = model_of("few", num_keypoints=3, objectness=3.0)
    onnx = folder / "few.onnx"
    onnx_from_model(model, out=onnx, img=64, dynamic=request.param)
    return build_engine(onnx, flavour=flavour, options=EngineOptions(profiles=tuple(SHAPES[request.param])))  # type: ignore[arg-type]


def noise(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).random(shape, np.float32)


def test_the_build_ran_the_engine_and_verified_it(engine: EngineReport) -> None:
    assert engine.record.verified, engine.record.unverified
    assert engine.record.gpu == open_gpu().name
    assert engine.parity is not None
    assert engine.parity.ok
    assert parity_report_path(engine.path).exists()
    assert not reference_values_path(engine.path).exists()


def test_it_agrees_with_the_onnx_file(engine: EngineReport) -> None:
    report = compare(engine.path.with_suffix(".onnx"), engine.path, images=[sample_image()])
    assert report.ok, report.worst


def test_every_slot_of_a_batch_gives_what_the_image_gives_alone(engine: EngineReport) -> None:
    with open_session(engine.path) as session:
        if session.inputs[0].shape[0] is not None:
            pytest.skip("this engine takes one image at a time")
        images = noise(3, 3, 64, 64)
        together = session.run({"images": images})["output"]
        for i in range(3):
            alone = session.run({"images": images[i : i + 1]})["output"][0]
            np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-3)


def test_a_predictor_finds_what_the_onnx_file_finds(engine: EngineReport) -> None:
    with load(engine.path) as ours, load(engine.path.with_suffix(".onnx")) as theirs:
        found, expected = ours(sample_image()), theirs(sample_image())
    assert abs(len(found) - len(expected)) <= 1  # rounding decides about a pair at a threshold
    assert found.scores[0] == pytest.approx(expected.scores[0], abs=1e-4)


def test_contexts_run_side_by_side(engine: EngineReport) -> None:
    images = [noise(1, 3, 64, 64, seed=n) for n in range(4)]
    with trt.open_session(engine.path, contexts=4) as session:
        alone = [session.run({"images": image})["output"] for image in images]
        wrong: list[int] = []

        def work(n: int) -> None:
            for _ in range(50):
                if not np.array_equal(session.run({"images": images[n]})["output"], alone[n]):
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_running_takes_no_more_memory_than_the_first_run(engine: EngineReport) -> None:
    gpu = open_gpu()
    with open_session(engine.path) as session:
        image = noise(1, 3, 64, 64)
        session.run({"images": image})
        held = session.device_memory
        with gpu.current():
            before = gpu.memory()[0]
        for _ in range(200):
            session.run({"images": image})
        with gpu.current():
            after = gpu.memory()[0]
        assert session.device_memory == held
        assert held is not None
        assert held > 0
        assert before - after < 32 << 20


def test_an_engine_from_a_machine_without_a_gpu_is_compared_when_it_first_runs(
    engine: EngineReport, tmp_path: Path
) -> None:
    path = tmp_path / "few.trt"
    path.write_bytes(engine.path.read_bytes())
    replace(engine.record, verified=False, unverified="built, not run: no GPU").write(path)
    with open_session(engine.path) as session:
        rows = session.run({"images": noise(1, 3, 64, 64)})["output"][0]
    from deploykit.runtime.parity.expected import Batch, ParityInputs

    feeds = ParityInputs({"noise": noise(1, 3, 64, 64)}, (Batch("noise", ("noise",)),))
    layout = engine.record.spec.output
    assert isinstance(layout, RawDetections)
    ReferenceOutputs(feeds, {"itself": {"noise": rows}}, {"itself": "this GPU"}, layout).save(
        reference_values_path(path)
    )
    open_session(path).close()
    record = read_record(path)
    assert record is not None
    assert record.verified


def test_a_damaged_engine_is_refused_in_one_line(engine: EngineReport, tmp_path: Path) -> None:
    path = tmp_path / "few.trt"
    data = bytearray(engine.path.read_bytes())
    data[:64] = b"\0" * 64
    path.write_bytes(data)
    engine.record.write(path)
    with pytest.raises(ArtefactError) as refused:
        open_session(path)
    assert "\n" not in str(refused.value)


def test_a_gpu_that_is_not_there_is_named(engine: EngineReport) -> None:
    with pytest.raises(DeviceError, match="cuda:99 was requested"):
        open_session(engine.path, provider="cuda:99")


@pytest.mark.tensorrt
def test_the_timing_cache_is_filled_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: EngineReport
) -> None:
    if engine.record.flavour != "tensorrt":
        pytest.skip("TensorRT for RTX measures nothing during a build")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    onnx = engine.path.with_suffix(".onnx")
    build_engine(
        onnx,
        flavour="tensorrt",
        out=tmp_path / "a.trt",
        check=False,
        options=EngineOptions(profiles=engine.record.profiles),
    )
    (cache,) = (tmp_path / "cache").rglob("*.cache")
    first = cache.stat().st_size
    build_engine(
        onnx,
        flavour="tensorrt",
        out=tmp_path / "b.trt",
        check=False,
        options=EngineOptions(profiles=engine.record.profiles),
    )
    assert cache.stat().st_size == first > 0


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(version_compatible=True),
        EngineOptions(hardware_compatible="ampere+"),
        EngineOptions(tf32=True),
        EngineOptions(workspace=2**30, optimization_level=1),
    ],
)
def test_options_of_tensorrt_build_engines_that_run(
    tmp_path: Path, engine: EngineReport, options: EngineOptions
) -> None:
    if engine.record.flavour != "tensorrt":
        pytest.skip("TensorRT for RTX does not have these options")
    try:
        report = build_engine(
            engine.path.with_suffix(".onnx"),
            flavour="tensorrt",
            out=tmp_path / "o.trt",
            options=replace(options, profiles=engine.record.profiles),
            check=not options.tf32,  # TF32 is not fp32, which is why it is off by default
        )
    except ExportError as e:
        if "lean" not in str(e):
            raise
        pytest.skip(f"this installation lacks the lean runtime, which version-compatible engines carry: {e}")
    with open_session(report.path) as session:
        session.run({"images": noise(1, 3, 64, 64)})
