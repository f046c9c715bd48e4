"""JSON from outside, read under limits: spec, engine record, annotations, records of downloads, reference values.

What Python's own reader lets through and this one refuses: text over a size, lists and objects nested deeper than
:data:`DEEPEST` (a few kilobytes of ``[`` otherwise end in a RecursionError, here or in whoever walks the value), NaN
and Infinity, which JSON does not have, a name that occurs twice in an object, and half a surrogate pair, which no file
or terminal can be given. Numbers are as Python reads them: whoever needs a range checks it.

Standard library only, like :mod:`deploykit.errors`.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["DEEPEST", "JsonError", "parse_json", "read_json"]

MOST = 16 << 20
"""Bytes of a text that describes something: the spec of 20,000 classes has less than one million."""

DEEPEST = 64
"""Levels of lists and objects; a spec has six, COCO's annotations five."""

HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, perhaps with its other half


class JsonError(ValueError):
    """Text that is not JSON or breaks a limit; the message says what is wrong, and leaves the file to the caller."""


def read_json(path: Path, *, most: int = MOST, constants: bool = False) -> Any:
    """Parse a regular file of at most ``most`` bytes; see :func:`parse_json`.

    Raises:
        OSError: the file cannot be read.
        JsonError: see :func:`parse_json`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise JsonError("it is not a regular file")
    if status.st_size > most:
        raise _too_long(most)
    return parse_json(path.read_bytes(), most=most, constants=constants)


def parse_json(text: str | bytes, *, most: int = MOST, constants: bool = False) -> Any:
    """Parse JSON of at most ``most`` bytes; bytes may be UTF-8 with or without a byte order mark, UTF-16 or UTF-32.

    ``constants``: let NaN and Infinity through, for a caller that says where in the file they are.

    Raises:
        JsonError: the text is too long, not Unicode, not JSON, nested too deeply, or has a value that JSON lacks.
    """
    if len(text) > most:
        raise _too_long(most)
    try:
        decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=float if constants else _no_number)
    except RecursionError:  # Python's reader calls itself for each level
        raise _too_deep() from None
    except UnicodeDecodeError as e:
        raise JsonError(f"byte {e.start:,} is not text in {e.encoding.upper()}") from e
    except JsonError:
        raise
    except ValueError as e:
        raise JsonError(str(e)) from e
    _check(value, strings=HALF_PAIR.search(decoded) is not None or not _is_unicode(decoded))
    return value


def _check(value: Any, *, strings: bool) -> None:
    """Check the depth, level by level, because a recursion is what is to be avoided; and the strings, where asked."""
    level = [value]
    for _ in range(DEEPEST + 1):
        if strings and not all(_is_unicode(text) for one in level for text in _strings(one)):
            raise JsonError("a string has half a surrogate pair, which is no character")
        containers = [one for one in level if type(one) in (dict, list)]
        if not containers:
            return
        level = [item for one in containers for item in (one.values() if type(one) is dict else one)]
    raise _too_deep()


def _strings(value: Any) -> Iterable[str]:
    """The value if it is a string, the names in it if it is an object."""
    return (value,) if type(value) is str else value if type(value) is dict else ()


def _too_long(most: int) -> JsonError:
    return JsonError(f"it is longer than {most:,} bytes, the limit for such a text")


def _too_deep() -> JsonError:
    return JsonError(f"its lists and objects are nested deeper than {DEEPEST} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise JsonError(f"an object has the name {twice[:80]!r} twice")
    return found


def _no_number(word: str) -> Any:
    raise JsonError(f"{word} is no number of JSON")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
