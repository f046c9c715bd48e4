"""A server's life: live before it is ready, models that are replaced, and an end without a dropped request."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deploykit.errors import BackendError, DeployError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.serve.connections import JoinedTransport
from deploykit.runtime.serve.core.calls import Call
from deploykit.runtime.serve.core.logs import RequestLog
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Registry, sources_of
from deploykit.runtime.serve.core.tracing import Tracing
from deploykit.runtime.serve.server import Server
from tests.runtime.serve.test_predict import cell_image
from tests.serving import MARKERS, CellNetwork, load_markers, running, wait_for


def test_names_and_versions_of_models() -> None:
    found = sources_of(["a/best.onnx", "other=b.onnx", "other:7=c=d.onnx"])
    assert [(each.name, each.version, each.path) for each in found] == [
        ("best", 1, "a/best.onnx"),
        ("other", 1, "b.onnx"),
        ("other", 7, "c=d.onnx"),
    ]
    for words, message in (
        (["a/x.onnx", "b/x.onnx"], "two models are called x, version 1"),
        (["my model.onnx"], "does not suit an address"),
        ([], "name a model"),
    ):
        with pytest.raises(UsageError, match=message):
            sources_of(words)


def test_a_server_is_live_and_says_so_before_its_models_are_open() -> None:
    network, go = CellNetwork(), threading.Event()

    def load(path: str) -> Any:
        assert go.wait(20)
        return network.load(path)

    with (
        running(["cells.onnx"], load, wait=False) as (server, registry),
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        answer = client.post("/v1/predict", content=cell_image())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/v2/models/cells/ready").status_code == 503
        assert client.post("/v2/repository/index").json()[0]["state"] == "LOADING"
        go.set()
        wait_for(lambda: registry.ready)
        assert client.get("/v2/health/ready").status_code == 200
        assert network.batches == [1], "it is warm before it is ready"
        assert client.post("/v1/predict", content=cell_image()).status_code == 200


def test_a_model_that_cannot_be_opened_ends_the_server_with_its_error() -> None:
    server = Server(Registry(sources_of(["missing.onnx"]), load_markers, ServeOptions(port=0, log_format="none")))
    with pytest.raises(NotFoundError, match=r"missing\.onnx"):
        asyncio.run(server.run())


def test_a_port_that_is_taken_is_refused() -> None:
    with running(["cells.onnx"], CellNetwork().load) as (server, _):
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(UsageError, match="cannot be listened on"):
            Server(Registry(sources_of([MARKERS]), load_markers, ServeOptions(port=port)))


def test_the_body_of_an_answer_does_not_wait_for_an_acknowledgement_of_its_headers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once: list[int] = []
    made = asyncio.selector_events._SelectorSocketTransport.__init__

    def seen(self: Any, loop: Any, sock: socket.socket, *args: Any, **options: Any) -> None:
        made(self, loop, sock, *args, **options)
        at_once.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.__init__", seen)
    with running(["cells.onnx"], CellNetwork().load) as (server, _):
        at_once.clear()
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    assert at_once
    assert all(at_once)


def test_a_model_is_replaced_while_it_is_asked_and_no_request_is_dropped(tmp_path: Path) -> None:
    file = Path(shutil.copy(MARKERS, tmp_path / "cells.onnx"))
    networks: list[CellNetwork] = []

    def load(path: str) -> Any:
        if Path(path).read_bytes() == b"damaged":
            raise BackendError(f"{path} is damaged")
        networks.append(CellNetwork())
        return networks[-1].load(path)

    with (
        running([str(file)], load, allow_reload=True) as (server, registry),
        ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        stop = threading.Event()

        def ask() -> set[int]:
            statuses = set()
            while not stop.is_set():
                statuses.add(client.post("/v1/predict", content=cell_image((1, 1))).status_code)
            return statuses

        asking = [pool.submit(ask) for _ in range(3)]
        for _ in range(3):
            assert client.post("/v2/repository/models/cells/load").status_code == 200
        assert client.post("/v2/repository/models/others/load").status_code == 404
        file.write_bytes(b"damaged")
        answer = client.post("/v2/repository/models/cells/load")
        assert answer.status_code == 500
        assert str(tmp_path) not in answer.text
        stop.set()
        assert set().union(*(each.result() for each in asking)) == {200}
        assert len(networks) == 4
        assert client.post("/v1/predict", content=cell_image()).status_code == 200
        assert len(registry.models) == 1


def test_only_changed_files_are_loaded_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(b"1")
    loaded: list[str] = []

    def load(path: str) -> Any:
        if Path(path).read_bytes() == b"bad":
            raise BackendError("bad")
        loaded.append(Path(path).stem)
        return CellNetwork().load(path)

    async def test() -> None:
        words = [str(tmp_path / f"{name}.onnx") for name in ("a", "b")]
        registry = Registry(sources_of(words), load, ServeOptions())
        await registry.start()
        await registry.reload_changed()
        assert loaded == ["a", "b"]
        (tmp_path / "b.onnx").write_bytes(b"22")
        await registry.reload_changed()
        await registry.reload_changed()
        assert loaded == ["a", "b", "b"]
        (tmp_path / "a.onnx").write_bytes(b"bad")
        before = registry.get("a")
        await registry.reload_changed()
        assert registry.get("a") is before
        await registry.stop()

    asyncio.run(test())


def test_a_model_that_is_held_stays_open() -> None:
    async def test() -> None:
        registry = Registry(sources_of(["a.onnx"]), CellNetwork().load, ServeOptions())
        await registry.start()
        model = registry.get("a")
        with model.held():
            closing = asyncio.ensure_future(model.close())
            await asyncio.sleep(0.05)
            images = np.zeros((1, 3, 64, 64), np.float32)
            outputs, stages = await model.infer({"images": images})
            assert outputs["output"].shape == (1, 64, 10)
            assert set(stages) == {"queue", "inference", "total"}
            assert not closing.done()
        await closing
        with pytest.raises((BackendError, RuntimeError)):
            await model.infer({"images": images})
        await registry.stop()

    asyncio.run(test())


def test_what_has_begun_ends_when_the_server_stops_and_the_rest_is_refused() -> None:
    network = CellNetwork()
    with (
        running(["cells.onnx"], network.load) as (server, registry),
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.get("/v2/health/live").status_code == 200  # a connection that is open
        network.go.clear()
        begun = pool.submit(httpx.post, f"{server.url}/v1/predict", content=cell_image(), timeout=30)
        wait_for(lambda: registry.models[0].active == 1)
        registry.draining = True
        late = client.post("/v1/predict", content=cell_image())
        assert (late.status_code, late.headers["retry-after"], late.headers["connection"]) == (503, "1", "close")
        server.stop()
        network.go.set()
        assert (begun.result().status_code, begun.result().headers["connection"]) == (200, "close")


def test_a_clock_that_jumps_disturbs_no_request() -> None:
    real, jumps = time.time, itertools.cycle((4e8, -4e8, 0.0))
    with (
        running(["cells.onnx"], CellNetwork().load, timeout=20, queue=1) as (server, registry),
        httpx.Client(base_url=server.url, timeout=30) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(time, "time", lambda: real() + next(jumps))
        patch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
        for x in range(6):
            answer = client.post("/v1/predict", content=cell_image((x, 0)), headers={"x-request-timeout": "15"})
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert [each["box"][0] for each in found["detections"]] == [8 * x]
            assert all(0 <= ms < 20_000 for ms in found["timings"].values())
        assert client.get("/v2/models/cells/stats").status_code == 200
        assert registry.models[0].active == 0


class Full:
    """A file on a full disk."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.full = True

    def write(self, text: str) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.lines.append(text)

    def flush(self) -> None:
        """Nothing waits."""


def test_a_log_on_a_full_disk_holds_nobody_up_and_counts_what_it_lost() -> None:
    file: Any = Full()
    log = RequestLog(file, "json")
    call = Call("7", "http", "GET /a\nb", model="m", version=1, stages={"inference": 1.26})
    for _ in range(3):
        log.take(call, 200, "127.0.0.1")
    wait_for(lambda: log._lost == 3)
    file.full = False
    log.take(call, 500, "127.0.0.1", ValueError("why\nit failed"))
    log.close()
    (line,) = (json.loads(text) for text in file.lines if text.strip())
    assert (line["request_id"], line["request"], line["status"]) == ("7", "GET /a b", 500)
    assert (line["lines_lost"], line["cause"], line["stages_ms"]) == (
        3,
        "ValueError: why it failed",
        {"inference": 1.3},
    )


def test_spans_are_those_of_the_stages_and_belong_to_the_clients_trace() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk (extra otel) is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    stages = {"queue": 2.0, "read": 5.0, "inference": 10.0, "total": 17.0}
    call = Call("7", "http", "POST /v1/predict", model="m", version=1, stages=stages, trace=trace)
    Tracing(provider).take(call, 200)
    spans = {span.name: span for span in kept.get_finished_spans()}
    root = spans.pop("POST /v1/predict")
    assert list(spans) == ["read", "queue", "inference"]
    assert f"{root.context.trace_id:032x}" == "a" * 32
    assert f"{root.parent.span_id:016x}" == "b" * 16
    assert root.attributes["deploykit.model"] == "m"
    for name, span in spans.items():
        assert span.parent.span_id == root.context.span_id
        np.testing.assert_allclose((span.end_time - span.start_time) / 1e6, stages[name], rtol=1e-3)
    assert root.start_time <= spans["read"].start_time
    assert spans["inference"].end_time <= root.end_time


@pytest.mark.parametrize("exporter", ["zipkin", "otlp"])
def test_an_exporter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, exporter: str) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk (extra otel) is not installed")

    if exporter == "otlp":
        monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    with pytest.raises(DeployError, match=r"opentelemetry-exporter-otlp|must be otlp, console or none"):
        Tracing()


def test_headers_and_body_are_sent_in_one_piece_and_before_the_connection_closes() -> None:
    class Transport(asyncio.Transport):
        """Keeps what is written."""

        def __init__(self) -> None:
            super().__init__()
            self.sent: list[bytes] = []

        def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
            self.sent.append(bytes(data))

        def close(self) -> None:
            self.sent.append(b"closed")

    async def test() -> None:
        transport = Transport()
        joined = JoinedTransport(transport, asyncio.get_running_loop())
        for data in (b"head ", b"body", b""):
            joined.write(data)
        assert transport.sent == []
        await asyncio.sleep(0)
        joined.write(b"last")
        joined.close()
        await asyncio.sleep(0)
        assert transport.sent == [b"head body", b"last", b"closed"]

    asyncio.run(test())


def test_each_worker_has_run_the_network_before_the_server_is_ready() -> None:
    threads = set[int]()

    class Network(CellNetwork):
        def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            threads.add(threading.get_ident())
            return super().__call__(inputs)

        def load(self, path: str) -> Predictor[Any]:
            predictor = super().load(path)
            predictor.workers = 3
            return predictor

    with running(["cells.onnx"], Network().load):
        assert len(threads) == 3
