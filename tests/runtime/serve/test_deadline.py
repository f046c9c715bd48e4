"""A run that nobody waits for any more is ended: at a request's deadline, when its client leaves, and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

import deploykit
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Registry, sources_of
from deploykit.runtime.serve.server import Server
from tests.runtime.test_run_limit import write_endless_model
from tests.serving import MARKERS, running, wait_for

Load = Callable[[str], Predictor[Any]]


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((64, 64, 3), value, np.uint8))[1].tobytes()


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A network that never ends for an image that is not black."""
    return str(write_endless_model(tmp_path / "m.onnx", 2**50, if_bright=True))


def load(path: str) -> Predictor[Any]:
    return deploykit.load(path, threads=1, workers=1)


def busy(seconds: float = 0.5) -> float:
    """The share of a core that this process takes while nobody asks."""
    before, start = sum(os.times()[:2]), time.monotonic()
    time.sleep(seconds)
    return (sum(os.times()[:2]) - before) / (time.monotonic() - start)


def test_a_deadline_ends_the_run_and_frees_its_worker(model: str) -> None:
    with (
        running([model], load, timeout=0.5) as (server, registry),
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        served = registry.get()
        for _ in range(2):
            assert client.post("/v1/predict", content=png(255)).status_code == 504
            wait_for(lambda: served.batcher._running == 0)
        assert busy() < 0.5
        assert client.post("/v1/predict", content=png(0)).status_code == 200


def test_a_client_that_leaves_ends_its_run_and_one_that_waits_keeps_its_own(model: str) -> None:
    with running([model], load) as (server, registry):
        served = registry.get()
        with httpx.Client(base_url=server.url) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/predict", content=png(255), timeout=0.5)
        wait_for(lambda: served.batcher._running == 0)
        answer = httpx.post(f"{server.url}/v1/predict", content=png(0), headers={"x-request-timeout": "20"}, timeout=30)
        assert answer.status_code == 200


def test_a_server_that_stops_waits_for_no_run_longer_than_it_drains(model: str) -> None:
    with ThreadPoolExecutor(1) as pool, running([model], load, drain=1) as (server, registry):
        served = registry.get()
        asked = pool.submit(httpx.post, f"{server.url}/v1/predict", content=png(255), timeout=30)
        wait_for(lambda: served.batcher._running)
        start = time.monotonic()
        server.stop()
        wait_for(lambda: served.predictor.session._session is None)
        assert time.monotonic() - start < 10
        with contextlib.suppress(httpx.HTTPError):  # the connection was ended before the answer was written
            assert asked.result(10).status_code == 500


def test_a_network_that_never_warms_up_can_be_stopped(tmp_path: Path) -> None:
    endless = str(write_endless_model(tmp_path / "endless.onnx"))
    registry = Registry(sources_of([endless]), load, ServeOptions(port=0, log_format="none", drain=1))
    server = Server(registry)
    thread = threading.Thread(target=lambda: asyncio.run(server.run()))
    thread.start()
    wait_for(lambda: server.started)
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
    time.sleep(0.3)
    server.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert busy() < 0.5


def test_a_deadline_over_grpc_ends_the_run(model: str) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] (extra dev) is not installed")
    with (
        running([model], load, grpc_port=0) as (server, registry),
        triton.InferenceServerClient(server.grpc_address) as client,
    ):
        bright = triton.InferInput("images", [1, 3, 64, 64], "FP32")
        bright.set_data_from_numpy(np.ones((1, 3, 64, 64), np.float32))
        with pytest.raises(Exception, match="Deadline"):
            client.infer("m", [bright], client_timeout=0.4)
        wait_for(lambda: registry.get().batcher._running == 0)


@contextlib.contextmanager
def command(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as its own process, once it is ready, and its address."""
    words = [sys.executable, "-m", "deploykit", "serve", str(path), "--port", "0", "--log-format", "none"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        said = ""
        while "ready: " not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        yield process, said.split("listening on ")[1].split(";")[0]
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_a_run_end_that_is_on_its_way(tmp_path: Path) -> None:
    trips = 50_000
    with load(str(write_endless_model(tmp_path / "first.onnx", trips, if_bright=True))) as one:
        start = time.perf_counter()
        one(np.full((64, 64, 3), 255, np.uint8))
        took = time.perf_counter() - start
    model = write_endless_model(tmp_path / "m.onnx", round(trips * 1.5 / took), if_bright=True)  # of 1.5 s
    with command(model) as (process, url), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/predict", content=png(255), timeout=60)
        time.sleep(0.3)
        assert not asked.done()
        process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 200
        assert process.wait(30) == 0


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_run_that_never_ends(tmp_path: Path) -> None:
    model = write_endless_model(tmp_path / "m.onnx", 2**50, if_bright=True)
    with command(model) as (process, url), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/predict", content=png(255), timeout=60)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) is not None
        with contextlib.suppress(httpx.HTTPError):  # the connection was ended before the answer was written
            assert asked.result(20).status_code == 500


def test_an_idle_predictor_and_an_idle_server_take_no_time_of_the_processor() -> None:
    with running([MARKERS], lambda path: deploykit.load(path, threads=2, workers=2)) as (server, registry):
        answer = httpx.post(f"{server.url}/v1/predict", content=png(7), timeout=30)
        assert answer.status_code == 200
        model = registry.get().predictor
        assert len(list(model.stream([np.zeros((64, 64, 3), np.uint8)] * 4))) == 4
        assert busy(1.0) < 0.25
