"""The memory limit of ONNX Runtime's runs on the CPU; it holds for a process, so each test has one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.errors import OutOfMemoryError, UsageError
from deploykit.runtime.backends.memory_limit import MEMORY_LIMIT, limit_memory, memory_limit, size_of
from deploykit.runtime.serve.core.failures import failure_of

MIB = 1 << 20
SCRIPT = """
import json, sys
import numpy
from deploykit.errors import DeployError
from deploykit.runtime.backends.memory_limit import limit_memory
from deploykit.runtime.backends.ort_cpu import give_back
from deploykit.runtime.machine import resident_memory
from deploykit.runtime.session import open_session

def tried(session, mib):
    try:
        (found,) = session.run({"x": numpy.ones((mib, 1 << 18), numpy.float32)}).values()
        return float(found.sum()) / (1 << 18)
    except DeployError as e:
        return type(e).__name__

path, sizes = sys.argv[1], json.loads(sys.argv[2])
session = open_session(path, device="cpu", threads=1)
tried(session, 1)
before = resident_memory()
found, held = [], []
for size in sizes:
    found.append(tried(session, size))
    give_back()  # what numpy had
    held.append((resident_memory() - before) >> 20)
try:
    limit_memory(123)
    open_session(path, device="cpu")
    other = "opened"
except DeployError as e:
    other = str(e)
print(json.dumps([found, held, other]))
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network over float32 (mib, 2^18): x + sin(x) + cos(sin(x)), three tensors of as many MiB as there are rows."""
    nodes = [
        helper.make_node("Sin", ["x"], ["sine"]),
        helper.make_node("Cos", ["sine"], ["cosine"]),
        helper.make_node("Add", ["x", "sine"], ["half"]),
        helper.make_node("Add", ["half", "cosine"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["mib", 1 << 18]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    path = tmp_path_factory.mktemp("limit") / "m.onnx"
    onnx.save(model, path)
    return path


def ran(network: Path, sizes: list[int], **environment: str) -> tuple[list[Any], list[int], str]:
    """What a process finds for inputs of so many MiB, what it holds after each, and what it says of another limit."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DEPLOYKIT_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(network), json.dumps(sizes)],
        env={**own, **environment}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found, held, other = json.loads(done.stdout)
    return found, held, other


def test_runs_beyond_the_limit_are_refused_and_others_go_on(network: Path) -> None:
    sizes = [4, 6, 8, 60, 10, 12, 4]
    free, most, other = ran(network, sizes)
    assert all(isinstance(each, float) for each in free)
    assert max(most) > 60, "without a limit the largest stays"
    found, held, said = ran(network, sizes, DEPLOYKIT_MEMORY_LIMIT="48m")
    assert found == [*free[:3], "OutOfMemoryError", *free[4:]]
    assert max(held) < 56
    assert "is 50,331,648 bytes since the first model was opened: it cannot become 123" in said
    assert other == "opened", "without a limit one can still be set"


def test_pieces_of_other_runs_are_given_back_before_a_run_is_refused(network: Path) -> None:
    sizes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]  # pieces of all sizes, together more than the limit
    found, held, _ = ran(network, sizes, DEPLOYKIT_MEMORY_LIMIT="48m")
    assert all(isinstance(each, float) for each in found), found
    assert max(held) < 56


def test_low_memory_holds_no_more_than_outputs_between_runs_under_a_limit_too(network: Path) -> None:
    found, held, _ = ran(network, [12, 4, 60, 12], DEPLOYKIT_MEMORY_LIMIT="48m", DEPLOYKIT_LOW_MEMORY="1")
    assert found[2] == "OutOfMemoryError"
    assert isinstance(found[3], float)
    assert max(held) < 20


@pytest.mark.parametrize(("text", "size"), [("7", 7), ("2k", 2048), ("3M", 3 * MIB), ("1g", 1024 * MIB)])
def test_a_number_of_bytes(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_LIMIT, f" {text} ")
    assert size_of(text) == size == memory_limit()


@pytest.mark.parametrize("text", ["0", "-1", "2 g", "2t", "1.5g", "much", "0g"])
def test_what_is_no_limit_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_LIMIT, text)
    with pytest.raises(UsageError, match="DEPLOYKIT_MEMORY_LIMIT must be a number of bytes such as 500m or 2g"):
        memory_limit()


def test_an_option_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_LIMIT, "1g")
    try:
        limit_memory(5)
        assert memory_limit() == 5
        with pytest.raises(UsageError, match="must be over 0 bytes, got 0"):
            limit_memory(0)
    finally:
        limit_memory(None)
    assert memory_limit() == 1024 * MIB


def test_a_server_says_that_it_is_to_be_tried_again() -> None:
    failure = failure_of(OutOfMemoryError("a run of /srv/m.onnx needs more memory than the limit leaves it"))
    assert (failure.status, failure.retry_after, failure.inside) == (503, 1, True)
    assert "/srv" not in failure.message
