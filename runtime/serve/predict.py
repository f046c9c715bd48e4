"""``/v1``: an image in, its result as JSON or drawn out; what the models are."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import cv2
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploykit.errors import UsageError
from deploykit.runtime.results.base import ImageResult, encode_image
from deploykit.runtime.serve.bodies import body_of
from deploykit.runtime.serve.core.asked import asked_options
from deploykit.runtime.serve.core.calls import call_of
from deploykit.runtime.serve.core.describing import colours, documented, model_facts
from deploykit.runtime.serve.core.model import ServedModel
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.receiving import while_connected
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.web import fetch_image

__all__ = ["Format", "predict_routes"]

UNNAMED = "image"  # what an image without a name is called

Format = Literal["json", "jpg", "png", "webp"]
MEDIA: dict[Format, str] = {"json": "application/json", "jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def predict_routes(registry: Registry) -> list[Route]:
    """Return the routes of images, below ``/v1``."""

    async def predict(request: Request) -> Response:
        call = call_of(request.scope)
        query = dict(request.query_params)
        name, version, form = (query.pop(key, None) for key in ("model", "version", "format"))
        pixels = _switch(query.pop("pixels", "0"))
        shape = _format_of(form, request.headers.get("accept", ""))
        registry.get(name, version or "")  # before the body is read
        body = await body_of(request, registry.options.max_body)
        fields = dict(body.options)
        name, version = fields.pop("model", name), fields.pop("version", version)
        data = await asyncio.to_thread(_fetched, body.url, registry.options) if body.url else body.data

        async def work() -> Response:
            model = registry.get(_text(name), _text(version) or "")
            call.model, call.version = model.source.name, model.source.version
            answer = await model.predict(data, body.name or UNNAMED, asked_options({**query, **fields}, model))
            call.stages.update(answer.timings)
            if shape == "json":
                found = await documented(answer, model, call)
                if pixels and (png := await asyncio.to_thread(answer.result.to_png)):
                    found["png"] = base64.b64encode(png).decode()
                return JSONResponse(found)
            drawn = await asyncio.to_thread(_drawn, answer.result, shape)
            return Response(drawn, media_type=MEDIA[shape])

        return await while_connected(request, work())

    async def models(request: Request) -> Response:
        found = [model_facts(model) for model in registry.models]
        return JSONResponse({"models": found, "ready": registry.ready, "colours": colours()})

    async def schema(request: Request) -> Response:
        model = registry.get(request.query_params.get("model"), request.query_params.get("version", ""))
        return JSONResponse(example_body(model))

    return [
        Route("/predict", predict, methods=["POST"]),
        Route("/models", models, methods=["GET"]),
        Route("/schema", schema, methods=["GET"]),
    ]


def example_body(model: ServedModel) -> dict[str, Any]:
    """Return a body for ``/v1/predict`` with a small grey image, which is answered as it is."""
    _, encoded = cv2.imencode(".png", np.full((32, 32, 3), 114, np.uint8))
    thresholds = model_facts(model)["options"]
    return {
        "model": model.source.name,
        "version": str(model.source.version),
        "image": base64.b64encode(encoded.tobytes()).decode(),
        **{name: facts["default"] for name, facts in thresholds.items()},
    }


def _format_of(asked: str | None, accept: str) -> Format:
    """Return the format of the answer: what the address asks for, else what the client accepts first.

    Raises:
        UsageError: it is none that is written.
    """
    if asked is None:
        wanted = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
        images = (kind for each in wanted for kind, media in MEDIA.items() if each == media)
        return next(images, "jpg" if "image/*" in wanted else "json")
    if asked == "image":
        return "jpg"
    if asked in MEDIA:
        return asked
    raise UsageError(f"format must be json, image, {', '.join(kind for kind in MEDIA if kind != 'json')}")


def _switch(asked: str) -> bool:
    """Return whether the JSON is asked to have pixels.

    Raises:
        UsageError: it is neither asked nor not asked.
    """
    if asked not in ("0", "1"):
        raise UsageError(f"pixels must be 1 or 0, got {asked[:20]!r}")
    return asked == "1"


def _text(value: Any) -> str | None:
    """Return the name or the version of a model, which JSON may hold as a number.

    Raises:
        UsageError: it is something else.
    """
    if value is None or isinstance(value, str):
        return value or None
    if type(value) is int:
        return str(value)
    raise UsageError("model and version must be text")


def _drawn(result: ImageResult, suffix: str) -> bytes:
    return encode_image(result.draw(), Path(f"drawn.{suffix}"))


def _fetched(url: str, options: ServeOptions) -> bytes:
    """Return the image at an address whose host is allowed, as must be those that it redirects to.

    Raises:
        UsageError: the host is not allowed, or it is no address.
        NotFoundError, FetchError, ImageError: see :func:`fetch_image`.
    """
    allowed = options.allow_url
    if not allowed:
        raise UsageError("this server fetches no addresses: send the image itself")
    address = Address(url)
    if address.scheme not in ("http", "https"):
        raise UsageError("an address must begin with http:// or https://")
    host = urlsplit(url).hostname or ""
    if host not in allowed:
        raise UsageError(f"this server fetches images from {', '.join(allowed)} only")
    return fetch_image(address, hosts=allowed, most=options.max_body)
