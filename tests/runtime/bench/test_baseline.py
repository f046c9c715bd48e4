"""Baselines: what is read, what is refused, and what is said. Times are made up, never measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DataError, NotFoundError, SlowerError
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.bench.baseline import check_not_slower, compare_with_baseline, read_baseline
from deploykit.runtime.bench.benchmark import benchmark
from deploykit.runtime.bench.report import Benchmark, Statistics
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import InputSpec, ModelSpec, RawDetections, Source

SPEC = ModelSpec("detect", InputSpec(size=(64, 64)), RawDetections(), ("thing",), source=Source(model="fake"))


def timed(factor: float = 1.0, count: int = 60) -> Benchmark:
    """A real report of a fake network, with times of our own."""
    session = FakeSession(lambda inputs: {"output": np.zeros((1, 5, 6), np.float32)}, spec=SPEC)
    report = benchmark(lambda: Predictor(session), runs=2, warmup=0)
    random = np.random.default_rng(round(100 * factor))
    alone = factor * random.normal(10.0, 0.2, count)
    machine = replace(report.machine, load=0.1)
    parts = {"model_only": alone, "end_to_end": alone + 2.0 * factor}
    changed = {n: replace(getattr(report, n), total=Statistics.of(values.tolist())) for n, values in parts.items()}
    return replace(report, runs=count, machine=machine, **changed)


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    def write(report: Benchmark, change: Callable[[dict[str, Any]], object] = lambda facts: None) -> Path:
        facts = json.loads(json.dumps(report.to_dict(samples=True), default=str))
        change(facts)
        file = tmp_path / "old.json"
        file.write_text(json.dumps(facts))
        return file

    return write


@pytest.mark.parametrize(
    ("factor", "verdict", "said"),
    [
        (1.3, "slower", "slower than the baseline"),
        (0.7, "faster", "faster than the baseline"),
        (1.001, "same", "as fast as the baseline"),
        (1.05, "unsure", "no difference that so many runs can show"),
    ],
)
def test_the_verdict_follows_the_interval(keep: Callable[..., Path], factor: float, verdict: str, said: str) -> None:
    file = keep(timed())
    found = compare_with_baseline(timed(factor), read_baseline(file), file=file)
    assert found.verdicts == {"model_only": verdict, "end_to_end": verdict}
    assert all(line.endswith(said) for line in found.lines())
    assert found.notes == ()
    assert found.to_dict()["parts"]["model_only"]["verdict"] == verdict
    if verdict == "slower":
        with pytest.raises(SlowerError, match=r"model only takes 1\.3\d \(.* to .*\) times as long"):
            check_not_slower(found)
    else:
        check_not_slower(found)


def test_the_margin_is_the_callers(keep: Callable[..., Path]) -> None:
    file = keep(timed())
    kept = read_baseline(file)
    check_not_slower(compare_with_baseline(timed(1.3), kept, file=file, margin=0.5))
    with pytest.raises(SlowerError, match="1 % are allowed"):
        check_not_slower(compare_with_baseline(timed(1.05), kept, file=file, margin=0.01))


def test_few_runs_are_no_verdict(keep: Callable[..., Path]) -> None:
    file = keep(timed(count=5))
    found = compare_with_baseline(timed(3.0), read_baseline(file), file=file)
    assert set(found.verdicts.values()) == {"unsure"}
    assert found.notes == ("5 runs are too few for a verdict: at least 10 on both sides (--runs, --duration)",)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("machine", "processor"), "another", "the processor was another, now "),
        (("machine", "cores"), 4096, "the number of cores was 4096, now "),
        (("batch",), 8, "the batch was 8, now 1"),
        (("images", "bytes"), 1, "the bytes of the images was 1, now "),
    ],
)
def test_what_cannot_be_compared_is_refused(
    keep: Callable[..., Path], place: tuple[str, ...], value: object, said: str
) -> None:
    def change(facts: dict[str, Any]) -> None:
        for key in place[:-1]:
            facts = facts[key]
        facts[place[-1]] = value

    report = timed()
    file = keep(report, change)
    with pytest.raises(DataError, match=said):
        compare_with_baseline(report, read_baseline(file), file=file)


def test_a_busy_machine_says_nothing_about_the_model(keep: Callable[..., Path]) -> None:
    file = keep(timed(), lambda facts: facts["machine"].update(load=1e6))
    found = compare_with_baseline(timed(3.0), read_baseline(file), file=file)
    assert set(found.verdicts.values()) == {"unsure"}
    assert all(line.endswith("no verdict, because the machine was busy") for line in found.lines())
    assert found.to_dict()["busy"] is True
    check_not_slower(found)


def test_what_else_changed_is_said(keep: Callable[..., Path]) -> None:
    def change(facts: dict[str, Any]) -> None:
        facts["network"]["precision"] = "int8"
        facts["versions"]["numpy"] = "0.1"
        facts["machine"]["load"] = 1e6

    report = timed()
    file = keep(report, change)
    notes = compare_with_baseline(report, read_baseline(file), file=file).notes
    assert notes[0] == "the precision: int8 in the baseline, fp32 now"
    assert notes[1].startswith("versions: numpy 0.1 to ")
    assert notes[2].startswith("the machine was busy (load 1000000.0 on ")
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot read the baseline"),
        ("[]", "is something else"),
        ('{"schema": 1}', "is something else"),
        ('{"schema": 99, "model_only": {}, "end_to_end": {}}', "has version 99 of the format"),
        ('{"schema": 1, "model_only": {}, "end_to_end": {}}', "lacks the time of every run"),
        (
            '{"schema": 1, "model_only": {"total_ms": {"samples": [0]}}, "end_to_end": {}}',
            "lacks the time of every run",
        ),
        ('{"schema": 1, "model_only": {"total_ms": {"samples": [true]}}, "end_to_end": {}}', "lacks the time"),
    ],
)
def test_other_files_are_no_baselines(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        read_baseline(file)


def test_a_baseline_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="--json --samples"):
        read_baseline(tmp_path / "gone.json")
