"""The server as an ASGI app, which any server of such apps runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from deploykit.runtime.serve.access import Access, Guard, refused
from deploykit.runtime.serve.core.logs import RequestLog
from deploykit.runtime.serve.core.metrics import Metrics
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.openapi import openapi_routes
from deploykit.runtime.serve.predict import predict_routes

__all__ = ["create_app"]

PAGE = Path(__file__).with_name("page")


def create_app(registry: Registry) -> Starlette:
    """Return the app of the models of a registry, which it opens when it starts and closes when it stops.

    Raises:
        UsageError: the token file has no token.
    """
    options = registry.options
    metrics, log = Metrics(registry), RequestLog(sys.stderr, options.log_format)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        if not registry.ready:
            await registry.start()
        try:
            yield
        finally:
            await registry.stop()
            log.close()

    async def numbers(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            Mount("/v1", routes=predict_routes(registry)),
            *openapi_routes(registry),
            Route("/metrics", numbers, methods=["GET"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        lifespan=lifespan,
        middleware=[Middleware(Guard, registry, Access(options.token_file), metrics, log)],
        exception_handlers={HTTPException: refused},
    )
