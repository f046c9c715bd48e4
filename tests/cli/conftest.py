"""What the tests of several commands share."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks of a few layers are faster so, and much faster where the cores are busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def size_limit() -> Iterator[None]:
    """No file may grow beyond 100 kB, so that the system itself refuses to write on, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network of a few layers, with two classes and three keypoints, whose stride is 16."""
    from tests.narrow import few_layers, write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "few.pt", few_layers(num_keypoints=3))
