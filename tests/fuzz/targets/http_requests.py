"""Requests over HTTP, given to the app of the server as a server of ASGI gives them."""

from __future__ import annotations

import asyncio
import base64
import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np

from deploykit.errors import UsageError
from deploykit.runtime.serve.app import create_app
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Registry, sources_of
from tests.fuzz.mutate import INTEGERS, changed_bytes, changed_json, json_text
from tests.fuzz.target import Failed, Files, Target
from tests.serving import CellNetwork

FORM = "multipart/form-data; boundary=x"
PATHS = (
    "/v1/predict", "/v1/predict", "/v1/models", "/v1/schema", "/v1/stream/x", "/v2", "/v2/health/live",
    "/v2/models/cells", "/v2/models/cells/infer", "/v2/models/cells/infer", "/v2/models/cells/versions/1/infer",
    "/v2/models/cells/config", "/v2/models/cells/stats", "/v2/models/stats", "/v2/repository/index",
    "/v2/repository/models/cells/load", "/v2/repository/models/cells/unload", "/metrics", "/openapi.json", "/docs",
    "/", "/main.js", "/../etc/passwd", "/v2/models/\ud800", "//",
    "/v2/models/cells/versions/99999999999999999999/infer", "/%2e%2e/%2e%2e/etc/passwd", "",
)  # fmt: skip
HEADERS = (
    ("content-type", ("application/json", FORM, "multipart/form-data", "image/png", "", "text/plain")),
    ("content-length", ("0", "10", "-1", "9" * 30, "x", "١", "200001")),
    ("content-encoding", ("gzip", "deflate", "identity", "br", "gzip, gzip")),
    ("accept", ("image/png", "image/*", "*/*", "application/json", "," * 500)),
    ("accept-encoding", ("gzip", "identity")),
    ("inference-header-content-length", ("0", "10", "-1", "9" * 30, "x", "²")),
    ("x-request-timeout", ("1", "0", "-1", "nan", "1e400", "x", "0.001")),
    ("x-request-id", ("a", "a" * 500, "\x1b[2J", "é")),
    ("traceparent", ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x")),
    ("origin", ("http://evil.example", "null", "http://localhost", "http://[")),
    ("host", ("localhost", "evil.example", "[::1", "", "localhost:99999", "a@b")),
    ("authorization", ("Bearer x", "Basic x", "é")),
    ("range", ("bytes=0-1", "bytes=-1", "bytes=5-1", "bytes=0-1,3-4", "x")),
    ("if-modified-since", ("x", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Jan 9999999 00:00:00 GMT")),
)  # fmt: skip
QUERIES = ("model", "version", "format", "pixels", "conf", "iou", "max_det", "tile", "classes", "x", "top", "overlap")
QUERY_VALUES = (
    "",
    "cells",
    "1",
    "0",
    "-1",
    "0.5",
    "nan",
    "1e400",
    "9" * 5000,
    "png",
    "webp",
    "jpg",
    "%00",
    "%ff",
    "red",
    "é",
)


class HttpRequests(Target):
    """A request is answered, and never with the news of a fault in the server."""

    name, memory = "http_requests", 192 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        png = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        self.image = png
        options = ServeOptions(
            log_format="none", max_body=200_000, max_pixels=100_000, timeout=5, allow_reload=True, batch_window=0
        )
        self.registry = Registry(sources_of(["cells=x.onnx", "cells:3=y.onnx"]), CellNetwork().load, options)
        self.app = create_app(self.registry, hosts=())
        self.loop = asyncio.new_event_loop()
        self.ending = self.loop.create_future()
        started: asyncio.Future[None] = self.loop.create_future()
        self.lifespan = self.loop.create_task(self._live(started))
        self.loop.run_until_complete(started)

    async def _live(self, started: asyncio.Future[None]) -> None:
        began = False

        async def receive() -> dict[str, str]:
            nonlocal began
            if began:
                await self.ending
                return {"type": "lifespan.shutdown"}
            began = True
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            if message["type"].startswith("lifespan.startup") and not started.done():
                started.set_result(None)

        await self.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    def make(self, random: Random) -> Files:
        path = random.choice(PATHS)
        method = random.choice(("POST", "POST", "POST", "GET", "GET", "HEAD", "PUT", "OPTIONS", "DELETE", "x"))
        body, kind, headers = self._body(random, path)
        for name, values in random.sample(HEADERS, random.choice((0, 0, 1, 2, 4))):
            headers[name] = random.choice(values)
        headers.setdefault("host", "localhost")
        if kind and random.random() < 0.95:
            headers.setdefault("content-type", kind)
        asked = [f"{random.choice(QUERIES)}={random.choice(QUERY_VALUES)}" for _ in range(random.choice((0, 0, 1, 2)))]
        cut = [random.randrange(len(body) + 1) for _ in range(random.choice((0, 0, 1, 3)))]
        about = [method, path, "&".join(asked), headers, sorted(cut), random.random() < 0.03]
        return {"request.json": json.dumps(about).encode(), "body": body}

    def _body(self, random: Random, path: str) -> tuple[bytes, str, dict[str, str]]:
        """Return a body for a path, its type, and further headers."""
        image = self.image if random.random() < 0.6 else changed_bytes(random, self.image)
        if "infer" in path:
            return _inference(random)
        kind = random.randrange(4)
        if kind == 0:
            return image, "image/png", {}
        if kind == 1:
            fields = {"image": base64.b64encode(image).decode(), "name": "a.png", "conf": 0.5, "model": "cells"}
            if random.random() < 0.2:
                fields = {"url": "http://127.0.0.1:9/x.png", "conf": 0.5}
            return json_text(random, changed_json(random, fields)), "application/json", {}
        if kind == 2:
            part = b"--x\r\nContent-Disposition: form-data; name="
            form = (
                part + b'"conf"\r\n\r\n0.5\r\n' + part + b'"file"; filename="a.png"\r\n\r\n' + image + b"\r\n--x--\r\n"
            )
            return changed_bytes(random, form) if random.random() < 0.7 else form, FORM, {}
        return random.randbytes(random.choice((0, 1, 100, 250_000))), "", {}

    def take(self, files: Files) -> None:
        status, body = self.loop.run_until_complete(self._ask(files))
        if status in (500, 502, 504):
            raise Failed(f"answered with {status}: {body[:300]!r}")
        if status >= 400:
            raise UsageError(str(status))

    async def _ask(self, files: Files) -> tuple[int, bytes]:
        method, path, query, headers, cut, gone = json.loads(files["request.json"])
        body, answer, status = files["body"], [], 0
        edges = [0, *cut, len(body)]
        parts = [body[start:end] for start, end in pairwise(edges)]
        done = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not parts or gone:
                if not gone:
                    await done.wait()
                return {"type": "http.disconnect"}
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer.append(message.get("body", b""))

        raw = path.encode("utf-8", "replace")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": raw, "root_path": "", "query_string": query.encode("utf-8", "replace"),
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {},
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
        }  # fmt: skip
        try:
            await asyncio.wait_for(self.app(scope, receive, send), 9)
        except TimeoutError:
            if "x-request-timeout" not in headers:
                raise
            status = 408  # its time was over when the answer had begun
        finally:
            done.set()
        if status == 504 and "x-request-timeout" in headers:
            status = 408
        return status, b"".join(answer)

    def close(self) -> None:
        self.ending.set_result(None)
        self.loop.run_until_complete(asyncio.wait_for(self.lifespan, 10))
        self.loop.close()


def _inference(random: Random) -> tuple[bytes, str, dict[str, str]]:
    """Return the body of an inference: values as JSON, or bytes after it."""
    values = np.zeros((1, 3, 64, 64), np.float32)
    binary = random.random() < 0.6
    one: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": [1, 3, 64, 64]}
    one |= {"parameters": {"binary_data_size": values.nbytes}} if binary else {"shape": [1, 1], "data": [0.5]}
    asked = {
        "id": "a",
        "inputs": [one],
        "outputs": [{"name": "output", "parameters": {"binary_data": binary}}],
        "parameters": {},
    }
    strange: tuple[Any, ...] = (
        *INTEGERS,
        None,
        "FP16",
        "BYTES",
        "INT64",
        "x",
        [],
        [[]],
        {},
        [2**40, 2**40],
        [-1, 3],
        [0],
        1e308,
        True,
        "\x00",
        [[1], 2],
    )
    text = (
        json_text(random, changed_json(random, asked, strange)) if random.random() < 0.9 else json.dumps(asked).encode()
    )
    if not binary:
        return text, "application/json", {}
    length = len(text) if random.random() < 0.95 else random.choice(INTEGERS)
    rest = values.tobytes() if random.random() < 0.8 else changed_bytes(random, values.tobytes())
    return text + rest, "application/octet-stream", {"inference-header-content-length": str(length)}


TARGET = HttpRequests
