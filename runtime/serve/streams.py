"""``/v1/stream``: results of a video, a camera or a live stream as they come, as events or as drawn images.

A source is read while somebody listens, by one thread for all who listen to the same model with the same options.
Whoever is slow misses results, and holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from deploykit.errors import NotFoundError, UsageError
from deploykit.numerals import typed_number
from deploykit.runtime.results.base import encode_image
from deploykit.runtime.serve.core.asked import asked_options
from deploykit.runtime.serve.core.calls import Call, call_of
from deploykit.runtime.serve.core.describing import documented
from deploykit.runtime.serve.core.failures import RefusedError, failure_of
from deploykit.runtime.serve.core.model import Answer, ServedModel
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.sources.frames import Frame
from deploykit.runtime.sources.live import Live
from deploykit.runtime.sources.opening import open_sources
from deploykit.runtime.sources.video import Video

__all__ = ["Streams"]

LOG = logging.getLogger(__name__)

MOST_LISTENERS = 64
MOST_READERS = 8  # of one stream
BOUNDARY = "frame"
Shown = tuple[Answer, ServedModel]
_Key = tuple[str, str | None, tuple[tuple[str, Any], ...]]
"""A stream, a model, and options of the prediction."""
_Item = Shown | BaseException
_Listeners = set[asyncio.Queue[_Item | None]]


class _Channel:
    """One source with one model and one set of options: a task that reads and predicts, and those who listen.

    Each listener has a place for the newest answer, and for the end after it; None: there will be no more.
    """

    def __init__(self, registry: Registry, stream: str, model: str | None, asked: Mapping[str, Any]) -> None:
        self.listeners: _Listeners = set()
        self._registry, self._stream, self._model, self._asked = registry, stream, model, asked
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def over(self) -> bool:
        """Whether nobody listens, and nothing is left to close."""
        return self._task is None and not self._closing

    def join(self) -> asyncio.Queue[_Item | None]:
        """Begin to listen; the first listener starts the source."""
        place: asyncio.Queue[_Item | None] = asyncio.Queue(2)
        self.listeners.add(place)
        if self._task is None:
            self._task = asyncio.ensure_future(self._play(self.listeners))
        return place

    def leave(self, place: asyncio.Queue[_Item | None]) -> None:
        """Stop to listen; the last listener stops the source."""
        self.listeners.discard(place)
        if not self.listeners and self._task is not None:
            self._task.cancel()
            self._let_go(self.listeners)

    def _let_go(self, listeners: _Listeners) -> None:
        """Part from those who have heard all that there is: who joins from now on, while it is closed, starts anew."""
        if self.listeners is listeners and self._task is not None:
            self._closing.add(self._task)
            self._task.add_done_callback(self._closing.discard)
            self._task, self.listeners = None, set()

    async def _play(self, listeners: _Listeners) -> None:
        end: BaseException | None = None
        try:
            await self._frames(listeners)
        except Exception as e:
            LOG.warning("the stream %s ended: %s", self._stream, e)
            end = RefusedError(502, f"the stream {self._stream} cannot be read; the server's log has the reason")
        finally:
            self._let_go(listeners)
            _put(listeners, end)

    async def _frames(self, listeners: _Listeners) -> None:
        source = await asyncio.to_thread(_opened, self._registry.options.streams[self._stream])
        frames = source.frames(max_pixels=self._registry.options.max_pixels)
        pause, start = 0.0 if source.live else 1 / max(source.fps, 1.0), time.monotonic()
        reading: asyncio.Future[Frame | None] | None = None
        try:
            while listeners and not self._registry.draining:
                reading = asyncio.ensure_future(asyncio.to_thread(next, frames, None))
                frame = await asyncio.shield(reading)
                if frame is None:
                    return
                model = self._registry.get(self._model)
                with contextlib.suppress(RefusedError):  # its queue is full: this frame is left out
                    named = replace(frame, name=self._stream)
                    _put(listeners, (await model.predict_frame(named, self._asked), model))
                if frame.number is not None and pause:
                    await asyncio.sleep(start + (frame.number + 1) * pause - time.monotonic())
        finally:
            self._let_go(listeners)
            await asyncio.shield(asyncio.ensure_future(_closed(source, frames, reading)))


def _put(listeners: _Listeners, item: Shown | BaseException | None) -> None:
    is_end = not isinstance(item, tuple)
    for place in listeners:
        if place.full() or not (place.empty() or is_end):
            place.get_nowait()  # an answer that its listener has not taken yet; an end leaves it the last one
        place.put_nowait(item)


async def _closed(source: Video, frames: Iterator[Frame], reading: asyncio.Future[Frame | None] | None) -> None:
    """End a source, whose thread may still wait for a frame."""
    if isinstance(source, Live):
        source.close()
    if reading is not None:
        await asyncio.wait([reading])
    close: Any = getattr(frames, "close", None)
    if close is not None:
        await asyncio.to_thread(close)


def _opened(word: str) -> Video:
    """Open a source of frames.

    Raises:
        UsageError: it is none. NotFoundError, FetchError, ImageError: it cannot be opened.
    """
    camera = typed_number(word)
    sources = open_sources(word if camera is None else camera)
    if len(sources) != 1 or not isinstance(sources[0], Video):
        raise UsageError("a stream is a video, a camera or a live stream")
    return sources[0]


class Streams:
    """The streams of a server.

    Args:
        registry: the models.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._channels: dict[_Key, _Channel] = {}

    def routes(self) -> list[Route]:
        """Return the routes, below ``/v1``."""
        return [Route("/stream", self._listed, methods=["GET"]), Route("/stream/{name}", self._sent, methods=["GET"])]

    async def _listed(self, _: Request) -> Response:
        return JSONResponse({"streams": list(self._registry.options.streams)})

    async def _sent(self, request: Request) -> Response:
        query = dict(request.query_params)
        name, model, form = request.path_params["name"], query.pop("model", None), query.pop("format", "events")
        if name not in self._registry.options.streams:
            raise NotFoundError(f"there is no stream {name[:100]!r} here")
        if form not in ("events", "mjpeg"):
            raise UsageError("format must be events or mjpeg")
        served = self._registry.get(model)
        asked = asked_options(query, served)
        served.with_options(asked)  # which says what is out of range
        if sum(len(each.listeners) for each in self._channels.values()) >= MOST_LISTENERS:
            raise RefusedError(503, f"{MOST_LISTENERS} clients listen to streams, the most there may be", 10)
        key = (name, model, tuple(sorted(asked.items())))
        readers = [each for each, channel in self._channels.items() if each[0] == name and channel.listeners]
        if key not in readers and len(readers) >= MOST_READERS:
            raise RefusedError(503, f"the stream is read {MOST_READERS} times, with other options or models", 10)
        call, heard = call_of(request.scope), self._heard(key, asked)
        if form == "events":
            return StreamingResponse(
                self._events(heard, call), media_type="text/event-stream", headers={"cache-control": "no-store"}
            )
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        return StreamingResponse(self._images(heard), media_type=kind, headers={"cache-control": "no-store"})

    async def _events(self, heard: AsyncGenerator[_Item], call: Call) -> AsyncGenerator[str]:
        async for item in heard:
            if isinstance(item, BaseException):
                failure = failure_of(item, self._registry.private)
                yield f"event: failure\ndata: {json.dumps(failure.to_dict())}\n\n"
                continue
            answer, model = item
            text = json.dumps(await documented(answer, model, call))
            yield f"event: result\nid: {answer.result.frame}\ndata: {text}\n\n"
        yield "event: end\ndata: {}\n\n"

    async def _images(self, heard: AsyncGenerator[_Item]) -> AsyncGenerator[bytes]:
        async for item in heard:
            if isinstance(item, BaseException):
                return
            data = await asyncio.to_thread(lambda answer: encode_image(answer.result.draw(), Path("x.jpg")), item[0])
            head = f"--{BOUNDARY}\r\ncontent-type: image/jpeg\r\ncontent-length: {len(data)}\r\n\r\n"
            yield head.encode() + data + b"\r\n"

    async def _heard(self, key: _Key, asked: Mapping[str, Any]) -> AsyncGenerator[_Item]:
        """Yield what a channel sends, until it ends or the listener is gone."""
        self._channels = {other: channel for other, channel in self._channels.items() if not channel.over}
        channel = self._channels.setdefault(key, _Channel(self._registry, *key[:2], asked))
        place = channel.join()
        try:
            while (item := await place.get()) is not None:
                yield item
                if isinstance(item, BaseException):
                    return
        finally:
            channel.leave(place)
