"""Variants in turn: what is recommended and what is said of int8. Times are a fake clock's, never measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.errors import BackendError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.bench import candidates as candidates_module
from deploykit.runtime.bench import runs as bench_runs
from deploykit.runtime.bench import variants as bench_variants
from deploykit.runtime.bench.candidates import Candidate, candidates, files_beside
from deploykit.runtime.bench.runs import AnyPredictor
from deploykit.runtime.bench.variants import Variant, VariantsReport, benchmark_variants
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import InputSpec, ModelSpec, RawDetections, Source
from tests.cell_model import RED, planted

SPEC = ModelSpec("detect", InputSpec(size=(64, 64)), RawDetections(), ("thing",), source=Source("fake", "a" * 64))
IMAGE = cv2.imencode(".png", planted((1, 2, RED), scale=2))[1].tobytes()


class _Clock:
    """Stands still but for ``tick`` and ``sleep``."""

    def __init__(self) -> None:
        self.now, self.slept = 0, 0.0

    def tick(self, ms: float) -> None:
        self.now += round(ms * 1e6)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def perf_counter(self) -> float:
        return self.now / 1e9

    def perf_counter_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    for module in (bench_variants, bench_runs):
        monkeypatch.setattr(module, "time", clock)
    return clock


def variant(clock: _Clock, name: str, ms: float, spec: ModelSpec = SPEC, noise: float = 0.01) -> Variant:
    """A network that takes about so long."""
    random = np.random.default_rng(abs(hash((ms, noise))) % 2**32)

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        clock.tick(ms * float(np.exp(noise * random.normal())))
        return {"output": np.zeros((len(inputs["images"]), 5, 6), np.float32)}

    def load() -> AnyPredictor:
        session = FakeSession(answer, spec=spec)
        session.providers, session.threads = ("CPUExecutionProvider",), 1
        return Predictor(session)

    return Variant(name, load, threads=1)


def measured(*variants: Variant, rounds: int = 30) -> VariantsReport:
    return benchmark_variants(variants, IMAGE, rounds=rounds)


def test_the_fastest_is_recommended_with_its_ratio(clock: _Clock) -> None:
    report = measured(variant(clock, "a", 10), variant(clock, "b", 5), variant(clock, "c", 20))
    assert report.recommended.name == "b"
    assert [one.ratio.value for one in report.variants] == pytest.approx([1.0, 0.5, 2.0], rel=0.02)
    assert report.rounds == 30
    assert next(report.sentences()).startswith("recommended: b: 0.50 (0.")
    assert all(len(one.end_to_end.samples) == 30 for one in report.variants)


@pytest.mark.parametrize("other", [10.0, 9.9, 11.0])
def test_what_is_not_surely_faster_changes_nothing(clock: _Clock, other: float) -> None:
    report = measured(variant(clock, "a", 10), variant(clock, "b", other))
    assert report.recommended.name == "a"
    assert next(report.sentences()) == "recommended: a: nothing here is faster by more than 3 % and by noise"


def test_of_two_that_cannot_be_told_apart_the_earlier_is_recommended(clock: _Clock) -> None:
    report = measured(
        variant(clock, "a", 10), variant(clock, "b", 5.01, noise=0.05), variant(clock, "c", 5.0, noise=0.05)
    )
    assert report.recommended.name == "b"


def test_few_rounds_recommend_nothing(clock: _Clock) -> None:
    report = measured(variant(clock, "a", 10), variant(clock, "b", 1), rounds=3)
    assert report.recommended.name == "a"
    assert next(report.sentences()) == "3 rounds are too few to recommend anything: at least 10 (--duration, --runs)"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(SPEC, source=Source("fake", "b" * 64)), "of another checkpoint"),
        (replace(SPEC, classes=("other",)), "of another task or other classes"),
        (replace(SPEC, input=InputSpec(size=(32, 32))), "at 32 x 32, not 64 x 64"),
    ],
)
def test_another_network_is_measured_but_not_recommended(clock: _Clock, spec: ModelSpec, reason: str) -> None:
    report = measured(variant(clock, "a", 10), variant(clock, "b", 1, spec))
    assert report.variants[1].unlike == reason
    assert report.recommended.name == "a"


@pytest.mark.parametrize(
    ("ms", "features", "said"),
    [
        (15, ("avx2",), "int8 brings nothing on this CPU (avx2; no avx512_vnni; no amx_int8): b takes 1.5"),
        (
            10.01,
            ("avx2", "avx512_vnni"),
            "int8 brings nothing on this CPU (avx2, avx512_vnni; no amx_int8): b takes 1.",
        ),
        (5, ("avx2", "avx512_vnni", "amx_int8"), "int8 pays on this CPU (avx2, avx512_vnni, amx_int8): b takes 0.50"),
        (5, (), "int8 pays on this CPU (no instructions for int8 that are known): b takes 0.50"),
    ],
)
def test_what_int8_brings_is_said_with_the_instructions(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch, ms: float, features: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(bench_variants, "cpu_features", lambda: features)
    report = measured(variant(clock, "a", 10), variant(clock, "b", ms, replace(SPEC, precision="int8")))
    (line,) = [line for line in report.sentences() if "int8" in line]
    assert line.startswith(said)
    assert line.endswith("--target cpu") is said.startswith("int8 brings nothing")


def test_without_int8_nothing_is_said_of_it(clock: _Clock) -> None:
    assert not any("int8" in line for line in measured(variant(clock, "a", 10)).sentences())


def test_what_does_not_run_is_left_out_and_the_first_must_run(clock: _Clock) -> None:
    def broken() -> AnyPredictor:
        raise BackendError("no such device")

    report = measured(variant(clock, "a", 10), Variant("b", broken))
    assert report.left_out == {"b": "no such device"}
    with pytest.raises(BackendError, match="no such device"):
        measured(Variant("b", broken), variant(clock, "a", 10))


def test_every_session_is_closed_whatever_happens(clock: _Clock) -> None:
    opened: list[FakeSession] = []
    runs: list[int] = []

    def failing(inputs: Mapping[str, Array]) -> dict[str, Array]:
        runs.append(1)
        if len(runs) > 8:
            raise BackendError("it broke")
        return {"output": np.zeros((1, 5, 6), np.float32)}

    def load() -> AnyPredictor:
        opened.append(FakeSession(failing, spec=SPEC))
        return Predictor(opened[-1])

    with pytest.raises(BackendError, match="it broke"):
        measured(Variant("a", load), Variant("b", load))
    for session in opened:
        with pytest.raises(BackendError, match="closed"):
            session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})


@pytest.mark.parametrize("words", [{"rounds": 0}, {"duration": 0.0}])
def test_numbers_out_of_range_are_refused(clock: _Clock, words: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="over 0"):
        benchmark_variants([variant(clock, "a", 1)], IMAGE, **words)  # type: ignore[arg-type]


def test_files_beside_differ_in_a_precision_alone(tmp_path: Path) -> None:
    names = (
        "m.onnx",
        "m-int8.onnx",
        "m_fp16.onnx",
        "m.trt",
        "m-int8-cpu.onnx",
        "m2.onnx",
        "m.json",
        "m.pt",
        "n-int8.onnx",
    )
    for name in names:
        (tmp_path / name).touch()
    found = [one.name for one in files_beside(tmp_path / "m.onnx")]
    assert found == ["m-int8-cpu.onnx", "m-int8.onnx", "m.trt", "m_fp16.onnx"]
    assert "m.onnx" in [one.name for one in files_beside(tmp_path / "m-int8.onnx")]
    assert files_beside(tmp_path / "gone" / "m.onnx") == []


@pytest.mark.parametrize(
    ("available", "cores", "expected"),
    [
        (["CPUExecutionProvider"], 1, [(None, None)]),
        (["AzureExecutionProvider", "CPUExecutionProvider"], 2, [(None, None), (None, 1)]),
        (["CPUExecutionProvider"], 8, [(None, None), (None, 1), (None, 4)]),
        (
            ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"],
            2,
            [(None, None), ("openvino", None), ("cpu", None), ("cpu", 1)],
        ),
    ],
)
def test_devices_and_threads_that_this_machine_has(
    monkeypatch: pytest.MonkeyPatch, available: list[str], cores: int, expected: list[tuple[str | None, int | None]]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: available)
    monkeypatch.setattr(candidates_module.os, "cpu_count", lambda: cores)
    file = Path("m.onnx")
    assert candidates([file]) == [Candidate(file, *one) for one in expected]
    assert candidates([file], device="cpu", threads=3) == [Candidate(file, "cpu", 3)]
    assert candidates([Path("m.trt")]) == [Candidate(Path("m.trt"))]
    assert Candidate(file, "cpu", 1).name == "m.onnx on cpu, 1 thread"
