"""Markers that need something of the machine skip with the reason where it is missing."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from deploykit.runtime.cuda import gpu_unavailable_reason
from tests.once import made_once

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

os.environ["DEPLOYKIT_REFERENCE_CACHE"] = "0"  # tests replace parts of networks, and write nothing into a user's cache

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine takes as long as it takes
hypothesis.settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell sets it for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start inherits it, too

gc.set_threshold(50_000, 20, 20)  # the default of 700 takes a third of collection and a tenth of the tests

MISSING = {
    "data": None if SHARED.is_dir() else f"no shared folder with trained checkpoints at {SHARED}",
    "gpu": gpu_unavailable_reason(),
    "slow": None if os.environ.get("SLOW") else "it takes long: SLOW=1 make test runs it",
    "tensorrt": None if importlib.util.find_spec("tensorrt") else "TensorRT is not installed",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, reason in MISSING.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave the objects of imports and of collected tests out of garbage collections."""
    leave_out()


def leave_out() -> None:
    """Collect, and leave what is there out of later collections."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """What is there when a module of tests is done stays: imports and caches, millions of objects in the end.

    Engines are built and loaded after a collection, which would look at all of them each time.
    """
    done = yield
    if (nextitem is None or nextitem.path != item.path) and any(gc.get_count()[1:]):  # it made enough to look at
        leave_out()
    return done


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with trained checkpoints and real images; only for tests marked ``data``."""
    return SHARED


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the native library for the CPU, built once from the sources as they are."""
    from deploykit.errors import MissingDependencyError
    from deploykit.runtime.native.build import build_libraries

    try:
        return made_once(tmp_path_factory, "plugins", lambda folder: build_libraries(folder, only=["cpu"]))
    except MissingDependencyError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def native(cpu_library: Path) -> Iterator[Path]:
    """That library in use, in this module's tests."""
    from deploykit.runtime.native.library import FOLDER, SWITCH

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(cpu_library))
        patch.delenv(SWITCH, raising=False)
        yield cpu_library
