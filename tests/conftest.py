"""Markers that need something of the machine skip with the reason where it is missing."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

MISSING = {
    "data": None if SHARED.is_dir() else f"no shared folder with trained checkpoints at {SHARED}",
    "gpu": None if shutil.which("nvidia-smi") else "no NVIDIA GPU on this machine",
    "tensorrt": None if importlib.util.find_spec("tensorrt") else "TensorRT is not installed",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, reason in MISSING.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with trained checkpoints and real pictures; only for tests marked ``data``."""
    return SHARED


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
