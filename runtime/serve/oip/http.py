"""The Open Inference Protocol over HTTP: JSON, the extension of binary tensors, and gzip both ways."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from deploykit.errors import DeployError, UsageError
from deploykit.runtime.serve.core.calls import call_of
from deploykit.runtime.serve.core.failures import RefusedError
from deploykit.runtime.serve.core.model import ServedModel
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.receiving import read_body, while_connected
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.oip.facts import index, model_config, model_metadata, model_statistics, server_metadata
from deploykit.runtime.serve.oip.http_bodies import HEADER, Read, body_of, read_inference
from deploykit.runtime.serve.oip.inference import infer
from deploykit.strict_json import JsonError, parse_json

__all__ = ["protocol_routes"]

Handler = Callable[[Request], Awaitable[Response]]


def protocol_routes(registry: Registry) -> list[BaseRoute]:
    """Return the routes of the protocol."""

    async def server(_: Request) -> Response:
        return JSONResponse(server_metadata())

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": registry.ready}, 200 if registry.ready else 503)

    async def statistics(_: Request) -> Response:
        return JSONResponse({"model_stats": [model_statistics(model) for model in registry.models]})

    return [
        Route("/v2", server),
        Mount(
            "/v2",
            routes=[
                Route("/health/live", live),
                Route("/health/ready", ready),
                Route("/models/stats", statistics),
                *_model_routes(registry),
                *_repository_routes(registry),
            ],
        ),
    ]


def _model_routes(registry: Registry) -> list[Route]:
    """Return what a model answers, with and without its version."""

    def of_model(answer: Callable[[ServedModel], dict[str, Any]]) -> Handler:
        async def handler(request: Request) -> Response:
            return JSONResponse(answer(_model(registry, request)))

        return handler

    async def inference(request: Request) -> Response:
        return await _inference(registry, request)

    handlers: dict[str, tuple[Handler, str]] = {
        "": (of_model(lambda model: model_metadata(registry, model)), "GET"),
        "/ready": (of_model(lambda model: {"name": model.source.name, "ready": True}), "GET"),
        "/config": (of_model(model_config), "GET"),
        "/stats": (of_model(lambda model: {"model_stats": [model_statistics(model)]}), "GET"),
        "/infer": (inference, "POST"),
    }
    return [
        Route(f"{place}{end}", handler, methods=[method])
        for place in ("/models/{name}", "/models/{name}/versions/{version}")
        for end, (handler, method) in handlers.items()
    ]


def _repository_routes(registry: Registry) -> list[Route]:
    """Return what lists models and loads them again."""

    async def listed(request: Request) -> Response:
        body = await read_body(request, registry.options.max_body)
        try:
            asked = parse_json(body) if body else {}
        except JsonError as e:
            raise UsageError(f"the body is not JSON: {e}") from e
        only = isinstance(asked, dict) and asked.get("ready") is True
        return JSONResponse(index(registry, ready=only))

    async def load(request: Request) -> Response:
        check_reload(registry)
        await read_body(request, registry.options.max_body)
        try:
            await registry.reload(request.path_params["name"])
        except DeployError as e:
            raise _unloaded(e) from e
        return JSONResponse({})

    async def unload(_: Request) -> Response:
        raise RefusedError(400, "models stay loaded here; they can be loaded again")

    return [
        Route("/repository/index", listed, methods=["POST", "GET"]),
        Route("/repository/models/{name}/load", load, methods=["POST"]),
        Route("/repository/models/{name}/unload", unload, methods=["POST"]),
    ]


def check_reload(registry: Registry) -> None:
    """Check that clients may load models again.

    Raises:
        RefusedError: they may not.
    """
    if not registry.options.allow_reload:
        raise RefusedError(403, "this server does not let clients load models again")


def _unloaded(error: DeployError) -> Exception:
    return error if error.exit_code == 4 else RefusedError(500, "the model cannot be loaded; it stays as it was")


def _model(registry: Registry, request: Request) -> ServedModel:
    return registry.get(request.path_params["name"], request.path_params.get("version", ""))


async def _inference(registry: Registry, request: Request) -> Response:
    call, options, path = call_of(request.scope), registry.options, request.path_params
    _model(registry, request)  # before the body is read
    body = _plain(request.headers.get("content-encoding", ""), await read_body(request, options.max_body), options)
    read: Read = await asyncio.to_thread(
        read_inference, body, request.headers.get(HEADER, ""), path["name"], path.get("version", "")
    )

    async def work() -> Response:
        model, outputs = await infer(registry, read.inference, call)
        content, length = await asyncio.to_thread(body_of, read, model, outputs)
        headers = {} if length is None else {HEADER: str(length)}
        if "gzip" in request.headers.get("accept-encoding", ""):
            compress = zlib.compressobj(1, wbits=31)
            content = await asyncio.to_thread(lambda: compress.compress(content) + compress.flush())
            headers["content-encoding"] = "gzip"
        kind = "application/json" if length is None else "application/octet-stream"
        return Response(content, media_type=kind, headers=headers)

    return await while_connected(request, work())


def _plain(encoding: str, body: bytes, options: ServeOptions) -> bytes:
    """Return a body that may be compressed.

    Raises:
        UsageError: it is compressed in another way, or damaged. RefusedError: it unpacks to too much.
    """
    if encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() not in ("gzip", "deflate"):
        raise RefusedError(415, "a body may be compressed by gzip or deflate")
    unpack = zlib.decompressobj(wbits=47)
    try:
        found = unpack.decompress(body, options.max_body + 1)
    except zlib.error as e:
        raise UsageError(f"the compressed body is damaged: {e}") from e
    if len(found) > options.max_body:
        raise RefusedError(413, f"the body unpacks to more than the {options.max_body:,} bytes that it may have")
    if not unpack.eof:
        raise UsageError("the compressed body ends early")
    return found
