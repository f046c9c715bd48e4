"""Receiving a request: its body under a limit of size, and whether its client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from deploykit.runtime.serve.core.failures import RefusedError

__all__ = ["read_body", "while_connected"]

T = TypeVar("T")

GONE = 499  # the status, in the log, of a request whose client went away


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedError: it has, or declares, more than ``most`` bytes; or the client is gone, which nobody hears.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > most):
        raise _too_large(most)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise _too_large(most)
            parts.append(part)
    except ClientDisconnect as e:
        raise RefusedError(GONE, "the client went away") from e
    return b"".join(parts)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"a request may have {most:,} bytes, and this one has more")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` gives; where the client goes away before, it is cancelled.

    Raises:
        RefusedError: the client is gone, which nobody hears.
    """
    doing, gone = asyncio.current_task(), False
    assert doing is not None

    async def watch() -> None:
        nonlocal gone
        await _disconnected(request.receive)
        gone = True
        doing.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and not doing.uncancel():  # nobody else, such as its deadline, has cancelled it too
            raise RefusedError(GONE, "the client went away") from None
        raise
    finally:
        watching.cancel()


async def _disconnected(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
