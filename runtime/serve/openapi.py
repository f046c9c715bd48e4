"""What the server can be asked, as OpenAPI 3.1 and as a plain page."""

from __future__ import annotations

import html
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deploykit.runtime.serve.core.asked import PARAMETERS
from deploykit.runtime.serve.core.registry import Registry
from deploykit.version import __version__

__all__ = ["openapi_document", "openapi_routes"]

RESULT = {
    "type": "object",
    "description": "The result for one image as a line of deploykit predict --json, and what the server adds.",
    "required": ["schema", "name", "size", "timings_ms", "model", "timings", "request_id"],
    "properties": {
        "schema": {"const": 1},
        "name": {"type": "string"},
        "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "timings_ms": {"type": "object", "additionalProperties": {"type": "number"}},
        "model": {
            "type": "object",
            "required": ["name", "version"],
            "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
        },
        "timings": {
            "type": "object",
            "description": "Milliseconds of each stage of the request.",
            "additionalProperties": {"type": "number"},
        },
        "request_id": {"type": "string"},
        "png": {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "image/png",
            "description": "With pixels=1: the numbers of the classes of a label map (8 bits, or 16 where one is over "
            "255), or the restored image.",
        },
    },
}
FAILURE = {
    "type": "object",
    "required": ["error", "code", "message"],
    "properties": {
        "error": {"type": "string", "description": "The name of the error."},
        "code": {"type": "integer", "description": "The exit code of the command line for it."},
        "message": {"type": "string"},
    },
}
REFUSAL = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
"""A failure as the Open Inference Protocol has it."""
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
INFERENCE = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": TENSOR, "minItems": 1},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    },
}
FAILURES = {
    "400": "The request or its image cannot be read, or asks for what the model does not have.",
    "401": "A token is missing.",
    "404": "There is no such model.",
    "413": "The request is too large, or its image declares too many pixels.",
    "500": "The model could not be run.",
    "502": "The image's address does not give it.",
    "503": "The queue is full, or the server is starting or stopping: Retry-After says when to try again.",
    "504": "The request was not answered in its time limit.",
}
PIXELS = "give a label map or a restored image as PNG within the JSON"
BINARY = {"type": "string", "format": "binary"}
WRITTEN = {"type": "string", "enum": ["true", "false", "yes", "no", "1", "0", ""]}
"""A boolean in an address or a form; empty: left out."""
JSON, OCTETS = "application/json", "application/octet-stream"


def openapi_document(registry: Registry) -> dict[str, Any]:
    """Return the document. It names the options that at least one of the models that are open has."""
    names, taken = registry.names, set[str]().union(*(model.takes for model in registry.models))
    parameters = {name: each for name, each in PARAMETERS.items() if name in taken or not taken}
    model = {"name": "model", "in": "query", "schema": {"type": "string", "enum": names}}
    version = {"name": "version", "in": "query", "schema": {"type": "string"}}
    options = {name: {**schema, "description": text} for name, (_, schema, text) in parameters.items()}
    texts = {name: WRITTEN if each.get("type") == "boolean" else each for name, each in options.items()}
    queries = [
        {"name": name, "in": "query", "schema": texts[name], "description": text}
        for name, (_, _, text) in parameters.items()
    ]
    body = {
        "image/*": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY, **texts}}
        },
        JSON: {
            "schema": {
                "type": "object",
                "oneOf": [{"required": ["image"]}, {"required": ["url"]}],
                "properties": {
                    "image": {"type": "string", "contentEncoding": "base64"},
                    "url": {
                        "type": "string",
                        "minLength": 1,
                        "description": "Instead of image, where the server allows its host.",
                    },
                    "name": {"type": "string"},
                    "model": {"type": "string"},
                    "version": {"type": "string"},
                    **options,
                },
            }
        },
    }
    drawn = {"name": "format", "in": "query", "schema": {"enum": ["json", "image", "jpg", "png", "webp"]}}
    pixels = {"name": "pixels", "in": "query", "schema": {"enum": ["0", "1"]}, "description": PIXELS}
    answered = {
        JSON: {"schema": {"$ref": "#/components/schemas/Result"}},
        **{f"image/{kind}": {"schema": BINARY} for kind in ("jpeg", "png", "webp")},
    }
    predict = _operation("Predict on one image", [model, version, drawn, pixels, *queries], answered)
    predict["requestBody"] = {"required": True, "content": body}
    return {
        "openapi": "3.1.0",
        "info": {"title": "deploykit serve", "version": __version__},
        "paths": {
            "/v1/predict": {"post": predict},
            "/v1/models": {"get": _operation("What the models are", [], _object())},
            "/v1/schema": {"get": _operation("A body for /v1/predict, to post as it is", [model, version], _object())},
            **_streams(list(registry.options.streams), [model, *queries]) | _protocol(names),
            "/metrics": {"get": _operation("Numbers for Prometheus", [], {"text/plain": {}})},
        },
        "components": {
            "schemas": {"Result": RESULT, "Failure": FAILURE, "Refusal": REFUSAL},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _streams(names: list[str], asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the paths of streams, where there are any; ``asked``: the model and the options of a prediction."""
    listed = {"/v1/stream": {"get": _operation("The names of the streams", [], _object())}}
    if not names:
        return listed
    name = {"name": "stream", "in": "path", "required": True, "schema": {"enum": names}}
    form = {"name": "format", "in": "query", "schema": {"enum": ["events", "mjpeg"]}}
    sent: dict[str, Any] = {"text/event-stream": {}, "multipart/x-mixed-replace": {}}
    return {
        **listed,
        "/v1/stream/{stream}": {"get": _operation("Results of a stream as they come", [name, form, *asked], sent)},
    }


def _protocol(names: list[str]) -> dict[str, Any]:
    """Return the paths of the Open Inference Protocol."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": names}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}

    def asked(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
        return _operation(summary, list(parameters), _object(), "Refusal")

    ready = asked("Whether requests are taken")
    ready["responses"]["503"] = {"description": "They are not.", "content": _object()}
    found: dict[str, Any] = {
        "/v2": {"get": asked("What the server is")},
        "/v2/health/live": {"get": asked("Whether the server runs")},
        "/v2/health/ready": {"get": ready},
        "/v2/models/stats": {"get": asked("Counts and times of all models")},
    }
    for place, parameters in (("", (name,)), ("/versions/{version}", (name, version))):
        path = f"/v2/models/{{name}}{place}"
        infer = asked("Run the network on tensors, or a model on encoded images", *parameters)
        infer["requestBody"] = {"required": True, "content": {JSON: {"schema": INFERENCE}, OCTETS: {"schema": BINARY}}}
        infer["responses"]["200"]["content"][OCTETS] = {"schema": BINARY}
        found |= {
            path: {"get": asked("Inputs and outputs of a model", *parameters)},
            f"{path}/ready": {"get": asked("Whether a model is open", *parameters)},
            f"{path}/config": {"get": asked("The configuration of a model", *parameters)},
            f"{path}/stats": {"get": asked("Counts and times of a model", *parameters)},
            f"{path}/infer": {"post": infer},
        }
    index = asked("The models, and whether each is open")
    index["responses"]["200"]["content"] = {JSON: {"schema": {"type": "array", "items": {"type": "object"}}}}
    found["/v2/repository/index"] = {"get": index, "post": index}
    for what, summary in (("load", "Load a model again"), ("unload", "Is refused: models stay loaded")):
        operation = asked(summary, name)
        operation["responses"]["403"] = {**operation["responses"]["400"], "description": "Clients may not do that."}
        found[f"/v2/repository/models/{{name}}/{what}"] = {"post": operation}
    return found


def _object() -> dict[str, Any]:
    return {JSON: {"schema": {"type": "object"}}}


def _operation(summary: str, parameters: list[Any], content: dict[str, Any], failed: str = "Failure") -> dict[str, Any]:
    failure = {JSON: {"schema": {"$ref": f"#/components/schemas/{failed}"}}}
    failures = {status: {"description": text, "content": failure} for status, text in FAILURES.items()}
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": content}, **failures}
    return {"summary": summary, "parameters": parameters, "responses": answers}


def openapi_routes(registry: Registry) -> list[Route]:
    """Return the routes of the document and of its page."""

    async def document(_: Request) -> Response:
        return JSONResponse(openapi_document(registry))

    async def page(_: Request) -> Response:
        return HTMLResponse(_page(openapi_document(registry)))

    return [Route("/openapi.json", document, methods=["GET"]), Route("/docs", page, methods=["GET"])]


def _page(document: dict[str, Any]) -> str:
    """Return the document as a page without scripts, in the style of the server's page."""
    parts = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>deploykit serve: requests</title>']
    parts.append('<meta name="viewport" content="width=device-width, initial-scale=1">')
    parts.append('<link rel="icon" href="icon.svg"><link rel="stylesheet" href="style.css"><body class="text">')
    parts.append('<h1>Requests</h1><p>The same as <a href="openapi.json">OpenAPI</a>.</p>')
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{operation['summary']}.</p>")
            rows = "".join(
                f"<tr><th scope=row><code>{each['name']}</code><td>{each['in']}"
                f"<td>{html.escape(each.get('description', ''))}"
                for each in operation["parameters"]
            )
            if rows:
                parts.append(f"<table><thead><tr><th>Parameter<th>In<th>Meaning<tbody>{rows}</table>")
            if "requestBody" in operation:
                kinds = ", ".join(f"<code>{html.escape(kind)}</code>" for kind in operation["requestBody"]["content"])
                parts.append(f"<p>Body: {kinds}.</p>")
            answers = "".join(
                f"<tr><th scope=row>{status}<td>{html.escape(each['description'])}"
                for status, each in operation["responses"].items()
            )
            parts.append(f"<table><thead><tr><th>Status<th>Meaning<tbody>{answers}</table>")
    return "".join(parts)
