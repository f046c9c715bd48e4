"""Hostile checkpoints: nothing runs, memory and time stay bounded, and only our own errors come out."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import CheckpointError, DeployError
from deploykit.models.checkpoint.pickle_opcodes import Interpreter
from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.checkpoint.tensors import BUILDERS
from tests.models.checkpoint.hostile import (
    CANARY,
    GOOD_LEGACY,
    GOOD_SAFETENSORS,
    GOOD_ZIP,
    Case,
    mapping,
    module,
    tensor,
    torch_legacy,
    torch_zip,
)
from tests.models.checkpoint.hostile_files import files
from tests.models.checkpoint.hostile_pickles import pickles

ROOT = Path(__file__).resolve().parents[3]
CASES = (*pickles(), *files())
SECONDS = 10


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each case, read in a process of its own."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells how much memory a process had at its peak")
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.models.checkpoint.hostile_run", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert not list(ROOT.glob(f"{CANARY}*"))
    return {result["name"]: result for result in map(json.loads, run.stdout.splitlines())}


def test_the_names_of_the_cases_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_is_refused_or_harmless(case: Case, results: dict[str, dict[str, Any]]) -> None:
    result = results[case.name]

    assert result["outcome"] == ("refused" if case.expects else "loaded"), result
    assert re.search(case.expects or "", result["error"]), result["error"]
    assert result["watched"] == []
    assert result["seconds"] < SECONDS
    assert result["peak"] <= result["limit"]


def test_an_error_is_one_short_line_that_names_the_file(results: dict[str, dict[str, Any]]) -> None:
    for result in results.values():
        if result["outcome"] == "refused":
            path, _, message = result["error"].partition(": ")
            assert Path(path).name[0].isdigit()
            assert message.isprintable()
            assert 20 < len(message) < 400


@pytest.mark.parametrize(
    ("good", "suffix"),
    [(GOOD_ZIP, ".pt"), (GOOD_LEGACY, ".pt"), (GOOD_SAFETENSORS, ".safetensors")],
    ids=["zip", "legacy", "safetensors"],
)
def test_a_truncated_file_gives_one_clear_error(good: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    for part in range(64):
        path.write_bytes(good[: len(good) * part // 64])
        with pytest.raises(CheckpointError, match=r"truncated|empty|which no checkpoint does|it is text"):
            read_checkpoint(path)
    path.write_bytes(good)
    assert read_checkpoint(path).state_dict["w"].tolist() == [1.0, 2.0, 3.0, 4.0]


def _saved(**options: Any) -> bytes:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.SiLU())
    network.__dict__.update(names=["a", "b"], yaml={"nc": 2})
    stream = io.BytesIO()
    torch.serialization.set_crc32_options(False)  # or the checksum alone would stop every change
    try:
        torch.save({"epoch": 1, "model": network.half()}, stream, **options)
    finally:
        torch.serialization.set_crc32_options(True)
    return stream.getvalue()


SEEDS = {
    "zip": _saved(),
    "protocol 4": _saved(pickle_protocol=4),
    "legacy": _saved(_use_new_zipfile_serialization=False),
    "safetensors": GOOD_SAFETENSORS,
    "assembled zip": torch_zip(b"\x80\x02" + mapping(ema=module(), epoch=b"K\x01") + b"."),
    "assembled legacy": torch_legacy(b"\x80\x02" + mapping(w=tensor()) + b"."),
}
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 6), st.binary(min_size=0, max_size=9)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("seed", SEEDS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_a_changed_file_gives_only_our_own_errors(
    seed: str, changes: list[tuple[float, int, bytes]], tmp_path: Path
) -> None:
    data = bytearray(SEEDS[seed])
    for place, removed, inserted in changes:
        start = int(place * len(data))
        data[start : start + removed] = inserted
    path = tmp_path / "changed"
    path.write_bytes(data)
    try:
        checkpoint = read_checkpoint(path)
    except DeployError:
        return
    checkpoint.float32()
    json.dumps(dict(checkpoint.metadata))


OPCODES = st.sampled_from(
    [
        *(bytes([code]) for code in b"(012N)]}aestub.R\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94\x92Q"),
        *(b"K\x00", b"K\x03", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"X\x01\0\0\0a", b"C\x04abcd", b"\x8a\x01\x05"),
        *(f"c{name.replace('.', chr(10), 1)}\n".encode() for name in ("a.B", "collections.OrderedDict", "torch.Size")),
        *(b"c" + b"\n".join(name.rsplit(".", 1)[i].encode() for i in (0, 1)) + b"\n" for name in BUILDERS),
    ]
)


@settings(max_examples=600)
@given(program=st.lists(OPCODES, max_size=60))
def test_any_program_of_opcodes_ends_in_a_value_or_our_own_error(program: list[bytes]) -> None:
    with contextlib.suppress(DeployError):
        Interpreter(b"".join(program) + b".", BUILDERS, lambda reference: reference).run()
