"""What every request over HTTP passes: its number, who may ask, its deadline, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploykit.errors import UsageError
from deploykit.runtime.serve.core.calls import Call, call_of
from deploykit.runtime.serve.core.failures import Failure, RefusedError, failure_of
from deploykit.runtime.serve.core.observers import Observers
from deploykit.runtime.serve.core.options import is_loopback
from deploykit.runtime.serve.core.registry import Registry

__all__ = ["Access", "Guard"]

LOG = logging.getLogger(__name__)

HEADERS = [
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
            "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'"
        ),
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(self), microphone=(), geolocation=()",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }.items()
]
CLOSED = ("/v1", "/v2", "/metrics", "/openapi.json", "/docs")
"""What needs a token; the page asks for one, and health is for whoever starts and stops servers."""
HEALTH = "/v2/health/"
STREAMS = "/v1/stream/"
Hosts = Collection[str] | None

LIMIT = "x-request-timeout"
LINGER = 2.0  # seconds


class Access:
    """Who may use the server: everybody who reaches it, or whoever has one of the tokens of a file.

    Raises:
        UsageError: the file has no token, or one that is short.
    """

    def __init__(self, token_file: str | None) -> None:
        self._digests: list[bytes] | None = None
        if token_file is not None:
            tokens = [line.strip() for line in Path(token_file).read_text(encoding="utf-8").splitlines()]
            kept = [token for token in tokens if token and not token.startswith("#")]
            if not kept or min(map(len, kept)) < 16:
                raise UsageError(f"{token_file} must have a token of at least 16 characters on each line")
            self._digests = [hashlib.sha256(token.encode()).digest() for token in kept]

    def check(self, authorization: str) -> None:
        """Check the header ``Authorization``.

        Raises:
            RefusedError: it does not carry a token that is known.
        """
        if self._digests is None:
            return
        kind, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        known = [hmac.compare_digest(digest, each) for each in self._digests]
        if kind.lower() != "bearer" or not any(known):
            raise RefusedError(401, "this server wants a token: send the header Authorization: Bearer TOKEN")


class Guard:
    """The outermost layer of the app. What escapes from it is a fault of the server alone.

    Args:
        app: the layers within.
        registry: the models.
        access: who may ask.
        observers: what hears of requests that ended.
        hosts: the names under which the server may be asked; None: any. A page elsewhere whose name was made to lead
            here (DNS rebinding) would have another one.
    """

    def __init__(
        self, app: ASGIApp, registry: Registry, access: Access, observers: Observers, hosts: Hosts = None
    ) -> None:
        self._app, self._registry, self._access, self._observers = app, registry, access, observers
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call, status, cause = call_of(scope), 0, None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                headers = [*message["headers"], *(each for each in HEADERS if each[0] not in given)]
                headers.append((b"x-request-id", call.id.encode("latin-1")))
                if self._registry.draining:  # what its client asked next would find nobody
                    headers = [each for each in headers if each[0] != b"connection"]
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._within(scope, receive, sending, call)
        except Exception as e:
            failure = failure_of(e, self._registry.private)
            if failure.inside:
                cause = e
                LOG.debug("request %s failed", call.id, exc_info=e)
            if status:  # the answer has begun, so that all that is left is to break off
                raise
            await self._answer(failure, scope, receive, sending)
            status = failure.status
        finally:
            client = scope.get("client")
            self._observers.take(call, status, client[0] if client else "", cause)

    async def _within(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        path = scope["path"]
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._check_origin(scope["method"], headers)
        if path.startswith(CLOSED) and not path.startswith(HEALTH):
            self._access.check(headers.get(b"authorization", ""))
            if self._registry.draining:
                raise RefusedError(503, "the server is stopping", 1)
        seconds = None if path.startswith(STREAMS) else self._limit(headers)
        async with asyncio.timeout(seconds):
            await self._app(scope, receive, send)

    def _check_origin(self, method: str, headers: Mapping[bytes, str]) -> None:
        """Refuse what a browser was made to send by the page of somebody else.

        Raises:
            RefusedError: it is that.
        """
        if method not in ("GET", "HEAD") and headers.get(b"sec-fetch-site") == "cross-site":
            raise RefusedError(403, "pages of other servers may not ask this one")
        try:
            host = urlsplit(f"//{headers.get(b'host', '')}").hostname or ""
        except ValueError as e:  # brackets without an IPv6 address
            raise RefusedError(400, "the header Host is no name") from e
        if self._hosts is not None and not is_loopback(host) and host not in self._hosts:
            raise RefusedError(421, "this server is not asked under that name; --allow-host names others")

    def _limit(self, headers: Mapping[bytes, str]) -> float:
        """Return the seconds that a request may take: the server's, or fewer where the client says so."""
        most, asked = self._registry.options.timeout, headers.get(LIMIT.encode(), "")
        try:
            wanted = float(asked) if asked else most
        except ValueError:
            wanted = 0.0
        if not wanted > 0:
            raise UsageError(f"{LIMIT} must be a number of seconds over 0, got {asked[:20]!r}")
        return min(most, wanted)

    async def _answer(self, failure: Failure, scope: Scope, receive: Receive, send: Send) -> None:
        content: dict[str, Any] = failure.to_dict()
        if scope["path"].startswith("/v2"):
            content = {"error": failure.message}  # as the Open Inference Protocol has it
        headers = {} if failure.retry_after is None else {"retry-after": str(failure.retry_after)}
        if failure.status == 401:
            headers["www-authenticate"] = "Bearer"
        if failure.allow:
            headers["allow"] = failure.allow
        if failure.status in (413, 504):  # a body may be still on its way, however slowly
            headers["connection"] = "close"
        if failure.status == 413:
            await _discard(receive, self._registry.options.max_body)
        await JSONResponse(content, failure.status, headers)(scope, receive, send)


async def _discard(receive: Receive, most: int) -> None:
    """Take the rest of a body, within limits: a client that is still sending would see a reset and not the answer."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while more and size <= most:
                message = await receive()
                size += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


def refused(request: Any, error: Exception) -> JSONResponse:
    """Raise what Starlette refuses (an unknown path, another method) as a refusal of ours."""
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow", "GET, HEAD") if error.status_code == 405 else ""
    raise RefusedError(error.status_code, error.detail, allow=allow)
