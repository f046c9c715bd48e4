"""A server in this process: a real uvicorn on a free port of this machine, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import deploykit
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Loader, Registry, sources_of
from deploykit.runtime.serve.server import Server
from deploykit.spec import ModelSpec
from tests.cell_model import cell_spec

ASSETS = Path(deploykit.__file__).with_name("assets")
MARKERS = str(ASSETS / "markers.onnx")


def load_markers(path: str) -> Predictor[Any]:
    """Open a model with one thread."""
    return deploykit.load(path, threads=1)


@contextlib.contextmanager
def served(
    models: Sequence[str] = (MARKERS,), load: Loader = load_markers, **options: Any
) -> Iterator[tuple[str, Registry]]:
    """Serve models while the context lasts, and give the server's address and its registry."""
    with running(models, load, **options) as (server, registry):
        yield server.url, registry


@contextlib.contextmanager
def running(
    models: Sequence[str] = (MARKERS,), load: Loader = load_markers, *, wait: bool = True, **options: Any
) -> Iterator[tuple[Server, Registry]]:
    """The same, and give the server; without ``wait`` its models may not be open yet."""
    registry = Registry(
        sources_of(models), load, ServeOptions(**{"log_format": "none", "port": 0, "drain": 5, **options})
    )
    server = Server(registry)
    thread = threading.Thread(target=lambda: asyncio.run(server.run()))
    thread.start()
    try:
        wait_for(lambda: (registry.ready if wait else server.started) or not thread.is_alive())
        assert thread.is_alive(), "the server did not start"
        yield server, registry
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


class CellNetwork:
    """What the network of ``tests.cell_model`` answers, without ONNX Runtime: it can be held up and made to fail.

    Attributes:
        batches: the number of images of each run, in order.
        go: while it is cleared, runs wait.
    """

    def __init__(self, fails: Callable[[Array], bool] = lambda images: False) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self._fails = fails

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the network."""
        (images,) = inputs.values()
        self.batches.append(len(images))
        assert self.go.wait(20)
        if self._fails(images):
            raise deploykit.DeployError("this image ends the run")
        means = images.reshape(len(images), 3, 8, 8, 8, 8).mean((3, 5)).reshape(len(images), 3, 64).transpose(0, 2, 1)
        y, x = np.mgrid[4:64:8, 4:64:8].reshape(2, 64).astype(np.float32)
        fixed = np.stack([x, y, np.full_like(x, 8), np.full_like(x, 8)], -1)
        rows = [
            np.concatenate(
                [fixed, each.max(1, keepdims=True), each[:, [0, 2]], fixed[:, :2], np.ones((64, 1), np.float32)], 1
            )
            for each in means
        ]
        return {"output": np.stack(rows).astype(np.float32)}

    def load(self, path: str) -> Predictor[Any]:
        """Open the network as a predictor, whatever the path is."""
        spec: ModelSpec = cell_spec(batch=1, dynamic=True)
        session = FakeSession(self, spec=spec)
        session.concurrent = True
        return Predictor(session, options=deploykit.PredictOptions(workers=1), name=path)
