"""A short run of every target, and that a long run finds what it is for: crashes, hangs, memory, code that runs."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.cell_model import write_cell_model
from tests.fuzz.campaign import Limits, fuzzed, shares, table
from tests.fuzz.planted import KINDS, Planted
from tests.fuzz.protobuf import changed_message, parsed, written
from tests.fuzz.target import TARGETS, input_of, named, outcome_of
from tests.fuzz.worker import limit_memory

FEW = {
    "checkpoints": 200,
    "http_requests": 200,
    "onnx_files": 40,
    "raw_files": 50,
    "videos": 50,
    "records": 60,
    "command_lines": 200,
    "specs": 200,
    "configuration": 150,
}
NEEDS = {"raw_files": "rawpy", "http_requests": "starlette", "grpc_requests": "grpc", "images": "PIL"}
SEED = 245  # whose first planted inputs are one of each kind

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="targets make pipes, and processes are watched through /proc"
)


@linux
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_has_no_finding(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    (tmp_path / "target").mkdir()
    logging.disable(logging.CRITICAL)
    target = named(name)(tmp_path / "target")
    counts: Counter[str] = Counter()
    before = limit_memory(target)
    try:
        for number in range(FEW.get(name, 300)):
            files = input_of(target, 0, number)
            began = time.process_time()
            outcome, error = outcome_of(target, files)
            assert outcome in ("accepted", "refused"), (number, error)
            assert time.process_time() - began < Limits.seconds, number
            counts[outcome] += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        target.close()
        logging.disable(logging.NOTSET)
    assert counts["refused"] >= 10, "inputs are changed enough to be refused"
    assert counts["accepted"] >= 1, "inputs are near enough to good ones to come further than the first check"


@linux
def test_a_long_run_finds_and_keeps_every_kind_of_fault(tmp_path: Path) -> None:
    name, count = Planted.name, len(KINDS)
    made = [input_of(Planted(tmp_path), SEED, number)["kind"].decode() for number in range(count)]
    assert sorted(made) == sorted(KINDS)

    for inputs in (count - 2, count):  # the second launch goes on where the first ended
        done = fuzzed({name: inputs}, SEED, tmp_path / "out", limits=Limits(0.3, 20))
    tally = done[name]

    expected = {"inputs": count, "accepted": 1, "refused": 1, "crash": 3, "hang": 1, "memory": 1}
    assert {each: tally.counts[each] for each in expected} == expected
    assert (tally.next, tally.findings) == (count, 5)
    kept = {folder.name: (folder / "kind").read_text() for folder in (tmp_path / "out" / f"{name}-{SEED}").glob("*-*")}
    what = {"aborts": "crash", "raises": "crash", "executes": "crash", "hangs": "hang", "swells": "memory"}
    assert kept == {f"{what[kind]}-{made.index(kind)}": kind for kind in what}
    stack = (tmp_path / "out" / f"{name}-{SEED}" / f"hang-{made.index('hangs')}" / "stack.txt").read_text()
    assert "planted.py" in stack, "where it hung"
    said = json.loads(
        (tmp_path / "out" / f"{name}-{SEED}" / f"crash-{made.index('executes')}" / "finding.json").read_text()
    )
    assert "exec" in said["told"]
    assert table({"specs": tally}).splitlines()[-1].split()[:7] == ["all", "7", "1", "1", "3", "1", "1"]


def test_an_input_follows_from_seed_and_number_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = named("specs")(tmp_path / "a"), named("specs")(tmp_path / "b")
    try:
        assert [input_of(one, 3, n) for n in (5, 6)] == [input_of(other, 3, n) for n in (5, 6)]
        assert len({input_of(one, seed, n)["spec.json"] for seed in (0, 1) for n in range(20)}) > 30
    finally:
        other.close()
        one.close()


def test_every_target_gets_its_share() -> None:
    found = shares(list(TARGETS), 200_000)
    assert sum(found.values()) == pytest.approx(200_000, abs=len(TARGETS))
    assert found["checkpoints"] / found["specs"] == pytest.approx(TARGETS["checkpoints"] / TARGETS["specs"], rel=1e-3)
    assert {path.stem for path in Path(__file__).with_name("targets").glob("*.py")} == set(TARGETS)


def test_the_wire_format_is_written_as_it_was_read(tmp_path: Path) -> None:
    data = write_cell_model(tmp_path / "m.onnx").read_bytes()
    assert written(parsed(data)) == data
    changed = {changed_message(Random(seed), data) for seed in range(50)}
    assert len(changed - {data}) > 40
