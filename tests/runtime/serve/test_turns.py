"""A body that takes long to read holds no other request up."""

from __future__ import annotations

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from starlette.requests import Request

from deploykit.runtime.serve.bodies import body_of
from deploykit.runtime.serve.core import model as serve_model
from tests.serving import CellNetwork, served


def test_a_header_that_takes_long_holds_no_other_request_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go, size = threading.Event(), threading.Event(), serve_model.declared_size

    def slow(data: bytes) -> tuple[int, int] | None:
        reading.set()
        assert go.wait(30)
        return size(data)

    monkeypatch.setattr(serve_model, "declared_size", slow)
    network, png = CellNetwork(), cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    with served(["cells.onnx"], network.load) as (address, _), ThreadPoolExecutor(1) as pool:
        held = pool.submit(httpx.post, f"{address}/v1/predict", content=png, timeout=30)
        try:
            assert reading.wait(30)
            assert httpx.get(f"{address}/v2/health/live", timeout=10).status_code == 200
            assert not held.done()
        finally:
            go.set()
        assert held.result().status_code == 200


@pytest.mark.parametrize("form", [True, False], ids=["form", "json"])
def test_other_requests_have_their_turns_while_a_large_body_is_read(form: bool) -> None:
    image, turns = bytes(6 << 20), 0
    if form:
        request = httpx.Request("POST", "http://localhost", files={"file": ("x.png", image)})
    else:
        request = httpx.Request("POST", "http://localhost", json={"image": base64.b64encode(image).decode()})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request.read()}

    async def read() -> bytes:
        scope = {"type": "http", "headers": [(b"content-type", request.headers["content-type"].encode())]}
        reading = asyncio.ensure_future(body_of(Request(scope, receive), 1 << 24))
        nonlocal turns
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        return (await reading).data

    assert asyncio.run(read()) == image
    assert turns > 6
