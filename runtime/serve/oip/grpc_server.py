"""The Open Inference Protocol over gRPC, in the event loop of the server over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from deploykit.errors import DeployError, NotFoundError, UsageError
from deploykit.runtime.serve.core.calls import Call, request_id
from deploykit.runtime.serve.core.failures import Failure, RefusedError, failure_of
from deploykit.runtime.serve.core.observers import Observers
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.oip.facts import index, model_config, model_metadata, model_statistics, server_metadata
from deploykit.runtime.serve.oip.http import check_reload
from deploykit.runtime.serve.oip.inference import Inference, check_parameters, infer
from deploykit.runtime.serve.oip.messages import METHODS, SERVICE, message
from deploykit.runtime.serve.oip.tensors import BYTES, Tensor, from_bytes, from_values, to_bytes

__all__ = ["GrpcServer"]

LOG = logging.getLogger(__name__)

Check = Callable[[str], None]
"""Checks the header ``authorization``, and raises what it refuses."""

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
OPEN = ("ServerLive", "ServerReady")
"""Methods that need no token."""
HEADROOM = 1 << 16  # bytes of a message besides its tensors

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip
"""Datatype -> the field of its values where they are not raw bytes; FP16 has none."""


class GrpcServer:
    """A server of the protocol over gRPC.

    Args:
        registry: the models.
        check: who may ask.
        observers: what hears of requests that ended.
        credentials: the server's certificate and what it asks of clients; None: no TLS.
    """

    def __init__(
        self,
        registry: Registry,
        check: Check,
        observers: Observers,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._registry, self._check, self._observers = registry, check, observers
        options = registry.options
        most = options.max_body + HEADROOM
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=options.connections,
        )
        answers = {name: getattr(self, f"_{name}") for name in METHODS}
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                partial(self._answer, name, answer),
                None,  # read where errors have answers
                message(f"{name}Response").SerializeToString,
            )
            for name, answer in answers.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream, None, message("ModelStreamInferResponse").SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = f"[{options.host}]" if ":" in options.host else options.host
        place = f"{host}:{options.grpc_port or 0}"
        try:
            self.port: int = (
                self._server.add_insecure_port(place)
                if credentials is None
                else self._server.add_secure_port(place, credentials)
            )
        except RuntimeError as e:
            raise UsageError(f"port {options.grpc_port} of {options.host} cannot be listened on: choose another") from e

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Refuse further requests, and give those that there are so many seconds."""
        await self._server.stop(seconds)

    async def _answer(self, name: str, answer: Callable[..., Awaitable[Any]], request: bytes, context: Any) -> Any:
        """Answer one request, and turn what it raises into a status of gRPC."""
        call = _call(name, context)
        failure = await self._failure(name, call, context, answer, request)
        if isinstance(failure, Failure):
            trailing = () if failure.retry_after is None else (("retry-after", str(failure.retry_after)),)
            await context.abort(CODES.get(failure.status, grpc.StatusCode.UNKNOWN), failure.message, trailing)
        return failure

    async def _failure(self, name: str, call: Call, context: Any, answer: Callable[..., Any], request: bytes) -> Any:
        """Return the answer to a request, or why there is none."""
        status, cause = 499, None  # of a client that goes away
        try:
            if name not in OPEN:
                self._check(_metadata(context).get("authorization", ""))
                if self._registry.draining:
                    raise RefusedError(503, "the server is stopping", 1)
            async with asyncio.timeout(self._registry.options.timeout):
                found = await answer(_read(name, request), call)
            status = 200
            return found
        except Exception as e:
            failure = failure_of(e, self._registry.private)
            status, cause = failure.status, e if failure.inside else None
            LOG.debug("request %s failed", call.id, exc_info=e)
            return failure
        finally:
            self._observers.take(call, status, _client(context), cause)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """Answer requests of one stream one by one, in order; an error is an answer too."""
        async for request in requests:
            call = _call("ModelStreamInfer", context)
            found = await self._failure("ModelStreamInfer", call, context, self._ModelInfer, request)
            if isinstance(found, Failure):
                answer = message("ModelStreamInferResponse")(error_message=found.message)
                with contextlib.suppress(UsageError):
                    answer.infer_response.id = _read("ModelStreamInfer", request).id
                yield answer
            else:
                yield message("ModelStreamInferResponse")(infer_response=found)

    async def _ServerLive(self, _: Any, call: Call) -> Any:  # noqa: N802  # called as the method is
        return message("ServerLiveResponse")(live=True)

    async def _ServerReady(self, _: Any, call: Call) -> Any:  # noqa: N802
        return message("ServerReadyResponse")(ready=self._registry.ready)

    async def _ModelReady(self, request: Any, call: Call) -> Any:  # noqa: N802
        try:
            self._registry.get(request.name, request.version)
        except (NotFoundError, RefusedError):
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=True)

    async def _ServerMetadata(self, _: Any, call: Call) -> Any:  # noqa: N802
        return _filled("ServerMetadataResponse", server_metadata())

    async def _ModelMetadata(self, request: Any, call: Call) -> Any:  # noqa: N802
        model = self._registry.get(request.name, request.version)
        return _filled("ModelMetadataResponse", model_metadata(self._registry, model))

    async def _ModelConfig(self, request: Any, call: Call) -> Any:  # noqa: N802
        config = model_config(self._registry.get(request.name, request.version))
        return _filled("ModelConfigResponse", {"config": config})

    async def _ModelStatistics(self, request: Any, call: Call) -> Any:  # noqa: N802
        one = [self._registry.get(request.name, request.version)] if request.name else self._registry.models
        return _filled("ModelStatisticsResponse", {"model_stats": [model_statistics(model) for model in one]})

    async def _RepositoryIndex(self, request: Any, call: Call) -> Any:  # noqa: N802
        return _filled("RepositoryIndexResponse", {"models": index(self._registry, ready=request.ready)})

    async def _RepositoryModelLoad(self, request: Any, call: Call) -> Any:  # noqa: N802
        check_reload(self._registry)
        self._registry.versions(request.model_name)
        try:
            await self._registry.reload(request.model_name)
        except DeployError as e:
            raise RefusedError(500, "the model cannot be loaded; it stays as it was") from e
        return message("RepositoryModelLoadResponse")()

    async def _RepositoryModelUnload(self, request: Any, call: Call) -> Any:  # noqa: N802
        raise RefusedError(400, "models stay loaded here; they can be loaded again")

    async def _ModelInfer(self, request: Any, call: Call) -> Any:  # noqa: N802
        asked = Inference(
            request.model_name, request.model_version, _inputs(request), [each.name for each in request.outputs],
            _parameters(request.parameters),
        )  # fmt: skip
        for each in request.outputs:
            check_parameters(_parameters(each.parameters))
        model, outputs = await infer(self._registry, asked, call)
        answer = message("ModelInferResponse")(
            model_name=model.source.name, model_version=str(model.source.version), id=request.id
        )
        for tensor in outputs:
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
            answer.raw_output_contents.append(to_bytes(tensor))
        return answer


def _read(name: str, data: bytes) -> Any:
    """Read the message of a method's request.

    Raises:
        UsageError: it is none.
    """
    kind = message("ModelInferRequest" if name == "ModelStreamInfer" else f"{name}Request")
    try:
        return kind.FromString(data)
    except DecodeError as e:
        raise UsageError(f"the request is no message of {name}") from e


def _inputs(request: Any) -> list[Tensor]:
    """Read the tensors of a request, whose values are raw bytes or lists.

    Raises:
        UsageError: they are not what their shapes and types say.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise UsageError(f"raw_input_contents must be one for each of the {len(request.inputs)} inputs, got {len(raw)}")
    tensors = []
    for i, each in enumerate(request.inputs):
        check_parameters(_parameters(each.parameters))
        if raw:
            tensors.append(from_bytes(each.name, each.datatype, list(each.shape), raw[i]))
            continue
        field = CONTENTS.get(each.datatype)
        if field is None:
            raise UsageError(f"values of type {each.datatype[:20]!r} must come as raw_input_contents")
        values = list(getattr(each.contents, field))
        tensors.append(from_values(each.name, each.datatype, list(each.shape), values))
    return tensors


def _parameters(given: Any) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice:
            found[name] = getattr(value, choice)
    return found


def _filled(name: str, content: Mapping[str, Any]) -> Any:
    return json_format.ParseDict(content, message(name)())


def _metadata(context: Any) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _call(name: str, context: Any) -> Call:
    known = _metadata(context)
    trace: dict[str, str] = {key: known[key] for key in ("traceparent", "tracestate") if key in known}
    return Call(request_id(known.get("x-request-id", "")), "grpc", name, trace=trace)


def _client(context: Any) -> str:
    """Return the address of the peer without its port: ``ipv4:127.0.0.1:5000`` gives ``127.0.0.1``."""
    kind, _, place = str(context.peer()).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind
