"""The simulation of benchmarks/cluster_scaling.py: bounds that no schedule can beat, and the tables of the guide."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "cluster_scaling.py"


def loaded() -> ModuleType:
    found = importlib.util.spec_from_file_location("cluster_scaling", FILE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["cluster_scaling"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


SCALING: Any = loaded()

SETTINGS = st.builds(
    SCALING.Setting,
    images=st.integers(1, 3000),
    per_part=st.integers(1, 300),
    batch=st.integers(1, 30),
    compute=st.floats(1e-4, 0.2),
    latency=st.floats(0, 0.05),
    bytes=st.floats(1, 1e6),
    store=st.floats(1e6, 1e10),
    hand_out=st.floats(1e-5, 0.1),
    write=st.floats(0, 0.1),
    row=st.floats(10, 1e5),
    memory=st.floats(1e3, 1e9),
    start=st.floats(0, 30),
    spread=st.just(0.0),
)


@settings(max_examples=60)
@given(setting=SETTINGS, workers=st.integers(1, 40))
def test_each_image_is_computed_once_and_no_bound_is_beaten(setting: Any, workers: int) -> None:
    found = SCALING.simulate(setting, workers)
    assert found.images == setting.images
    assert found.seconds >= SCALING.bound(setting, workers) * (1 - 1e-9)
    assert 0 <= found.store <= 1 + 1e-9
    assert 0 <= found.command <= 1 + 1e-9


@settings(max_examples=30)
@given(setting=SETTINGS)
def test_one_worker_takes_the_sum_of_its_steps(setting: Any) -> None:
    """With one worker nothing waits for anything else but the last part for its write."""
    setting = replace(setting, latency=0.0, memory=1e12)
    found = SCALING.simulate(setting, 1)
    each = setting.start + setting.images * (setting.bytes / setting.store + setting.compute)
    parts = -(-setting.images // setting.per_part)
    assert each <= found.seconds <= (each + parts * (setting.hand_out + setting.write)) * (1 + 1e-9)


def test_the_same_seed_gives_the_same_run() -> None:
    setting = replace(SCALING.Setting(), images=5000)
    assert SCALING.simulate(setting, 7, seed=1) == SCALING.simulate(setting, 7, seed=1)
    assert SCALING.simulate(setting, 7, seed=1) != SCALING.simulate(setting, 7, seed=2)


@pytest.mark.parametrize(
    ("changed", "limit"),
    [
        ({"store": 1e7}, "store"),
        ({"write": 1.0}, "command"),
        ({"store": 1e12, "write": 0.0, "hand_out": 1e-6, "start": 0.0}, "workers"),
    ],
)
def test_what_limits_a_run_is_named(changed: dict[str, float], limit: str) -> None:
    setting = replace(SCALING.Setting(), images=200_000, **changed)
    row = SCALING.table(setting, [16]).splitlines()[-1]
    assert f"| {limit} |" in row


def test_little_memory_makes_workers_wait_for_the_command() -> None:
    setting = replace(SCALING.Setting(), images=50_000, write=0.5)
    little = replace(setting, memory=setting.per_part * setting.row)
    assert little.room == 1
    assert SCALING.simulate(little, 64).seconds >= SCALING.simulate(setting, 64).seconds


FIRST = next(iter(SCALING.SETTINGS))


@pytest.mark.parametrize(
    "name", [name if name == FIRST else pytest.param(name, marks=pytest.mark.slow) for name in SCALING.SETTINGS]
)
def test_the_guide_has_the_tables_that_the_script_prints(name: str, root: Path) -> None:
    page = (root / "docs/guides/cluster.md").read_text()
    assert f"{name[0].upper()}{name[1:]}:\n\n{SCALING.table(SCALING.SETTINGS[name])}\n" in page
