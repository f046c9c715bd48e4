"""Streams: results of a video as events and as images, for several listeners, and what ends them."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Registry, sources_of
from deploykit.runtime.serve.openapi import openapi_document
from tests.cell_model import RED
from tests.serving import CellNetwork, running, wait_for

FRAMES = 12


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video whose frame i has a red cell in column i modulo 8."""
    file = tmp_path_factory.mktemp("film") / "film.mp4"
    with Mp4Writer(file, 100) as writer:
        for i in range(FRAMES):
            image = np.zeros((64, 64, 3), np.uint8)
            image[16:24, 8 * (i % 8) : 8 * (i % 8) + 8] = RED
            writer.write(image)
    return file


@pytest.fixture
def url(film: Path) -> Iterator[str]:
    streams = {"film": str(film), "none": str(film.with_name("none.mp4"))}
    with running(["cells.onnx"], CellNetwork().load, streams=streams) as (server, _):
        yield server.url


def events(address: str) -> list[tuple[str, Any]]:
    found, kind = [], ""
    with httpx.stream("GET", address, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append((kind, json.loads(value)))
    return found


def test_a_video_is_sent_as_events_in_order_to_its_end(url: str) -> None:
    assert httpx.get(f"{url}/v1/stream").json() == {"streams": ["film", "none"]}
    found = events(f"{url}/v1/stream/film")
    assert found[-1] == ("end", {})
    results = [content for kind, content in found[:-1] if kind == "result"]
    frames = [each["frame"] for each in results]
    assert frames == sorted(frames)
    assert frames[-1] == FRAMES - 1, "the newest is not missed"
    for each in results:
        assert each["name"] == "film"
        assert round(each["detections"][0]["box"][0] / 8) == each["frame"] % 8
        assert each["model"]["name"] == "cells"
    assert events(f"{url}/v1/stream/film")[-1] == ("end", {}), "it can be played again"


def test_options_are_those_of_an_image(url: str) -> None:
    results = [content for kind, content in events(f"{url}/v1/stream/film?conf=1&max_det=3") if kind == "result"]
    assert results
    assert not any(each["detections"] for each in results), "no score is higher than 1"
    assert any(content["detections"] for kind, content in events(f"{url}/v1/stream/film") if kind == "result")
    for query, words in (("conf=2", "conf must lie in 0..1"), ("top=3", "'top' is no option"), ("conf=x", "number")):
        answer = httpx.get(f"{url}/v1/stream/film?{query}")
        assert answer.status_code == 400
        assert words in answer.json()["message"]


def test_a_source_is_read_with_so_many_sets_of_options_at_the_same_time(film: Path) -> None:
    network = CellNetwork()
    with running(["cells.onnx"], network.load, streams={"film": str(film)}) as (server, _):
        network.go.clear()
        with contextlib.ExitStack() as stack:
            for number in range(8):
                address = f"{server.url}/v1/stream/film?conf=0.{number}"
                stack.enter_context(httpx.stream("GET", address, timeout=20))

            def refused() -> bool:
                with httpx.stream("GET", f"{server.url}/v1/stream/film", timeout=20) as answer:
                    return answer.status_code == 503 and "is read 8 times" in answer.read().decode()

            wait_for(refused)
            again = stack.enter_context(httpx.stream("GET", f"{server.url}/v1/stream/film?conf=0.3", timeout=20))
            assert again.status_code == 200
            network.go.set()
        assert events(f"{server.url}/v1/stream/film")[-1] == ("end", {})


def test_drawn_images_follow_each_other(url: str) -> None:
    with httpx.stream("GET", f"{url}/v1/stream/film?format=mjpeg", timeout=20) as answer:
        assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        data = answer.read()
    parts = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"--frame\r\n")[1:]]
    assert parts
    for part in parts:
        assert cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)


def test_a_source_that_is_not_there_is_a_failure_without_its_path(url: str, film: Path) -> None:
    found = events(f"{url}/v1/stream/none")
    assert [kind for kind, _ in found] == ["failure", "end"]
    assert "the stream none cannot be read" in found[0][1]["message"]
    assert str(film.parent) not in json.dumps(found)
    assert httpx.get(f"{url}/v1/stream/other").status_code == 404
    assert httpx.get(f"{url}/v1/stream/film?format=gif").status_code == 400


def test_listeners_share_a_reader_which_ends_when_they_leave(film: Path) -> None:
    network = CellNetwork()
    with running(["cells.onnx"], network.load, streams={"film": str(film)}) as (server, registry):
        network.batches.clear()
        network.go.clear()
        seen: list[int] = []

        def listen() -> None:
            with httpx.stream("GET", f"{server.url}/v1/stream/film", timeout=20) as answer:
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        seen.append(int(line[4:]))
                        return

        threads = [threading.Thread(target=listen) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: network.batches == [1])
        network.go.set()
        for thread in threads:
            thread.join(20)
        assert len(seen) == 3
        wait_for(lambda: registry.models[0].active == 0)
        count = len(network.batches)
        assert count < 2 * FRAMES


def test_a_stream_ends_when_the_server_stops(tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "slow.mp4", 2) as writer:
        for _ in range(60):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    with running(["cells.onnx"], CellNetwork().load, streams={"slow": str(tmp_path / "slow.mp4")}) as (server, _):
        with httpx.stream("GET", f"{server.url}/v1/stream/slow", timeout=20) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: result"
            server.stop()
            assert list(lines)[-3:] == ["event: end", "data: {}", ""]
        assert "/v1/stream/{stream}" in openapi_document(_registry(["slow"]))["paths"]
        assert "/v1/stream/{stream}" not in openapi_document(_registry([]))["paths"]


def _registry(streams: list[str]) -> Registry:
    options = ServeOptions(streams=dict.fromkeys(streams, "0"))
    return Registry(sources_of(["x.onnx"]), CellNetwork().load, options)
