"""The server as an ASGI app, which any server of such apps runs."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from deploykit.runtime.serve.access import Access, Guard, refused
from deploykit.runtime.serve.core.observers import Observers
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.oip.http import protocol_routes
from deploykit.runtime.serve.openapi import openapi_routes
from deploykit.runtime.serve.predict import predict_routes
from deploykit.runtime.serve.streams import Streams

__all__ = ["create_app"]

Failed = Callable[[BaseException], None]

PAGE = Path(__file__).with_name("page")


class PageFiles(StaticFiles):
    """The files of the page, which a browser asks for anew each time, so that those of two versions never mix."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        return response


def create_app(
    registry: Registry,
    *,
    observers: Observers | None = None,
    failed: Failed | None = None,
    hosts: Collection[str] | None = None,
) -> Starlette:
    """Return the app of the models of a registry, which it opens when it starts and closes when it stops.

    Args:
        registry: the models.
        observers: what hears of requests that ended; None: its own.
        failed: called with the error of a model that cannot be opened. With it the app starts at once and is live, and
            ready when the models are open; without it, it starts when they are.
        hosts: the names under which it may be asked, besides those of this machine's own addresses; None: any.

    Raises:
        UsageError: the token file has no token.
    """
    mimetypes.add_type("text/javascript", ".js")  # Windows may have registered another one, with which no module runs
    options = registry.options
    told = observers or Observers.of(registry)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        opening = asyncio.ensure_future(registry.start())
        if failed is None:
            await opening
        else:
            opening.add_done_callback(partial(_tell, failed))
        try:
            yield
        finally:
            opening.cancel()
            await registry.stop()
            told.close()

    async def numbers(_: Request) -> Response:
        return Response(told.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            *protocol_routes(registry),
            Mount("/v1", routes=[*predict_routes(registry), *Streams(registry).routes()]),
            *openapi_routes(registry),
            Route("/metrics", numbers, methods=["GET"]),
            Mount("/", PageFiles(directory=PAGE, html=True)),
        ],
        lifespan=lifespan,
        middleware=[Middleware(Guard, registry, Access(options.token_file), told, hosts)],
        exception_handlers={HTTPException: refused},
    )


def _tell(failed: Failed, opening: asyncio.Future[None]) -> None:
    error = None if opening.cancelled() else opening.exception()
    if error is not None:
        failed(error)
