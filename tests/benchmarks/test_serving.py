"""The scripts that load the server run, and hear of faults. No test judges a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def ran(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
def test_every_table_of_the_server_has_its_numbers(tmp_path: Path) -> None:
    done = ran("serving.py", "--quick", "--json", str(tmp_path / "serving.json"))
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "serving.json").read_text())["tables"]
    assert len(tables) == 6
    for table in tables:
        assert table["rows"]
        assert all(set(row["values"]) == set(table["columns"]) for row in table["rows"])
    rates = tables[4]["rows"]
    assert all(0 < row["values"]["p50, ms"] <= row["values"]["p99, ms"] for row in rates)


@pytest.mark.slow
def test_the_server_bears_a_mixture_of_good_and_malformed_requests() -> None:
    done = ran("serving_soak.py", "--count", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 requests by 16 clients" in done.stdout
    assert done.stdout.endswith("0 faults\n")


@pytest.mark.slow
def test_the_server_bears_faults() -> None:
    done = ran("serving_faults.py", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 9


def test_an_answer_that_is_not_its_own_is_a_fault_of_the_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serving_soak

    box = [1.0, 2.0, 3.0, 4.0]
    one = [(0, 0.5, box)]
    assert serving_soak.alike(one, [(0, 0.5005, [1.04, 2.0, 3.0, 4.0])])
    for other in ([], [(1, 0.5, box)], [(0, 0.6, box)], [(0, 0.5, [1.1, 2.0, 3.0, 4.0])]):
        assert not serving_soak.alike(one, other)
