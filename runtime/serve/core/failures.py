"""What a client is told when a request fails: a status, the error's name and code, and a sentence.

A sentence of an error that the client caused is the error's own, without the paths of this machine. What failed inside
is logged, and the client is told no more than that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from deploykit.errors import (
    DataError,
    DeployError,
    FetchError,
    ImageError,
    ImageSizeError,
    NotFoundError,
    OutOfMemoryError,
    UnexpectedError,
    UsageError,
)

__all__ = ["Failure", "RefusedError", "failure_of"]

STATUS: tuple[tuple[type[DeployError], int], ...] = (
    (UsageError, 400),
    (NotFoundError, 404),
    (ImageError, 400),
    (ImageSizeError, 400),
    (DataError, 400),
    (FetchError, 502),
)
"""Errors that the client's request is the reason of; all others are faults inside (500)."""

PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:[\\/]|/)[\w.@~+%-]+(?:[\\/][\w.@~+%-]+)+[\\/]?")
"""An absolute path of two parts at least, which is not part of an address."""


class RefusedError(Exception):
    """A request that is refused for another reason than what it asks for.

    Args:
        status: the status of HTTP.
        message: what the client is told.
        retry_after: seconds after which it may try again; None: that would not help.
        allow: the methods that there are instead of the one that was asked.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None, allow: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after, self.allow = status, message, retry_after, allow


@dataclass(frozen=True)
class Failure:
    """What a client is told.

    Attributes:
        status: the status of HTTP.
        error: the name of the error's class; of a refusal, what its status is called (``ServiceUnavailable``).
        code: the exit code of the command line for this error; that of a refusal is 1.
        message: one sentence.
        retry_after: seconds after which to try again.
        inside: whether it is a fault of the server, whose cause is logged.
        allow: the methods that there are, where the one that was asked is not among them; else empty.
    """

    status: int
    error: str
    code: int
    message: str
    retry_after: int | None = None
    inside: bool = False
    allow: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": self.error, "code": self.code, "message": self.message}


def failure_of(error: BaseException, private: Iterable[str] = ()) -> Failure:
    """Return what a client is told of an error.

    Args:
        error: what was raised.
        private: paths of the server's own, of which a message shows the last part alone.
    """
    if isinstance(error, RefusedError):
        return Failure(
            error.status, _phrase(error.status), DeployError.exit_code, error.message, error.retry_after,
            allow=error.allow,
        )  # fmt: skip
    if isinstance(error, TimeoutError):
        message = "the request was not answered within its time limit"
        return Failure(504, _phrase(504), DeployError.exit_code, message)
    if isinstance(error, (MemoryError, OutOfMemoryError)):
        error = OutOfMemoryError("there is not enough memory for this request: send a smaller one")
        return Failure(503, type(error).__name__, error.exit_code, str(error), retry_after=1, inside=True)
    if isinstance(error, DeployError):
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        if status != 500:
            return Failure(status, type(error).__name__, error.exit_code, _public(str(error), private))
        message = "the model could not be run on this request; the server's log has the reason"
        return Failure(status, type(error).__name__, error.exit_code, message, inside=True)
    return Failure(
        500, UnexpectedError.__name__, UnexpectedError.exit_code, "a fault in the server; its log has the reason",
        inside=True,
    )  # fmt: skip


def _phrase(status: int) -> str:
    """Return what a status is called, as one word."""
    with contextlib.suppress(ValueError):
        return "".join(word.capitalize() for word in re.split(r"[^A-Za-z]+", HTTPStatus(status).phrase))
    return "Refused"


def _public(message: str, private: Iterable[str]) -> str:
    """Return a message as one line, without folders of this machine."""
    for path in sorted(filter(None, private), key=len, reverse=True):
        message = message.replace(path, Path(path).name)
    return PATH.sub(
        lambda found: found[0].rstrip("/\\").replace("\\", "/").rpartition("/")[2], " ".join(message.split())
    )
