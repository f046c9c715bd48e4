"""The body of a request: read under limits of size, and what it is: an image, a form or JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import urllib.parse
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from python_multipart.exceptions import ParseError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deploykit.errors import UsageError
from deploykit.runtime.serve.core.receiving import read_body
from deploykit.strict_json import JsonError, parse_json

__all__ = ["Body", "body_of"]

LONGEST_NAME = 200
FIELD = 1 << 16  # bytes of a field of a form that is no file
AT_ONCE = 1 << 20  # bytes of a body that are read without a turn for other requests
VALUES, MOST_VALUES = (b",", b"[", b"{"), 10_000  # beginnings of values of JSON: no thread may run while they are read


@dataclass(frozen=True)
class Body:
    """What a request to predict brings.

    Attributes:
        data: the bytes of the image; empty: there are none.
        name: the name that the client gives the image; may be empty.
        url: the address of the image instead.
        options: further fields, as text or as JSON has them.
    """

    data: bytes = b""
    name: str = ""
    url: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


async def body_of(request: Request, most: int) -> Body:
    """Read what a request to predict brings.

    Raises:
        UsageError: it is neither an image nor a form with one nor JSON. RefusedError: it is too large.
    """
    data = await read_body(request, most)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _of_form(request, data)
    if kind == "application/json":
        return _of_json(data) if len(data) <= AT_ONCE else await asyncio.to_thread(_of_json, data)
    if not data:
        raise UsageError(
            "expected an image: its bytes as the body, a form (multipart/form-data) with the field file, or JSON"
        )
    return Body(data)


class _Parser(MultiPartParser):
    """Keeps files in memory, where the whole body is already."""

    spool_max_size = 1 << 62


async def _of_form(request: Request, data: bytes) -> Body:
    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), AT_ONCE):
            yield data[start : start + AT_ONCE]
            await asyncio.sleep(0)  # the turn of other requests

    try:
        form = await _Parser(request.headers, stream(), max_files=1, max_fields=20, max_part_size=FIELD).parse()
    except (MultiPartException, ParseError, KeyError, ValueError) as e:
        raise UsageError(f"the form cannot be read: {getattr(e, 'message', None) or e}") from e
    options = {name: value for name, value in form.items() if isinstance(value, str)}
    try:
        file = form.get("file")
        if isinstance(file, UploadFile):
            return Body(await file.read(), _shown(file.filename or ""), options=options)
    finally:
        await form.close()
    if "url" in options:
        url = options.pop("url")
        return Body(url=str(url), options=options)
    raise UsageError("the form has no file in its field file")


def _of_json(data: bytes) -> Body:
    if sum(map(data.count, VALUES)) > MOST_VALUES:
        raise UsageError(f"the JSON has more than {MOST_VALUES:,} values, and the image is one of them, in Base64")
    try:
        found = parse_json(data, most=len(data))
    except JsonError as e:
        raise UsageError(f"the body is not JSON: {e}") from e
    if not isinstance(found, dict):
        raise UsageError("the body must be a JSON object with the image (Base64) or its url")
    options = {name: value for name, value in found.items() if name not in ("image", "url", "name")}
    image, url, name = found.get("image"), found.get("url"), found.get("name", "")
    if not isinstance(name, str) or (image is None) == (url is None):
        raise UsageError("the JSON must have either image (Base64) or url, and its name is text")
    if url is not None:
        if not isinstance(url, str):
            raise UsageError("url must be text")
        return Body(url=url, options=options)
    try:
        decoded = base64.b64decode(image if isinstance(image, str) else b"?", validate=True)
    except (binascii.Error, ValueError) as e:
        raise UsageError("image must be the bytes of an image in Base64") from e
    return Body(decoded, _shown(name), options=options)


def _shown(name: str) -> str:
    """Return the last part of a name, without what is not shown."""
    last = PurePath(urllib.parse.unquote(name).replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable())[:LONGEST_NAME]
