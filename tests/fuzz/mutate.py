"""Changes of bytes, numbers, texts and JSON by a seeded generator."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

__all__ = ["INTEGERS", "STRANGE", "changed_bytes", "changed_json", "json_text", "places", "put"]

INTEGERS = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512, 1023, 1024, 4095, 4096, 32767, 32768,
    65535, 65536, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**47, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
    -1, -2, -128, -32768, -(2**31), -(2**63),
)  # fmt: skip
STRANGE: tuple[Any, ...] = (
    None, True, False, *INTEGERS, 10**30, 10**400, 0.0, -0.0, 0.5, -0.5, 1e-12, 1e-320, 1e12, 1e308, float("nan"),
    float("inf"), float("-inf"), "", " ", "x", "images", "output", "0", "-1", "nan", "\x00", "\ud800", "\x1b[2J",
    "a\nb", "..", "../../etc/passwd", "/dev/zero", "a/b", ".", "x" * 5000, "%s%n", "{0}", "\u202e", "é", [], {}, [1],
    [0, 8], [8, 5], [-4, 0], [5, 5], [0, 10**9], [0.0, 0.0, 0.0], [[0, 1]], [[0, 9]], ["a"], ["a", "a"], [None],
    {"kind": "rows"}, {"kind": "tensor"}, {"a": 1}, {"": None}, [[[[[1]]]]], [{}] * 300,
)  # fmt: skip


def changed_bytes(random: Random, data: bytes, *, most: int = 8) -> bytes:
    """Return data with up to ``most`` changes: bits, bytes, numbers of any width, parts moved, doubled and left out."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, random.randint(1, most)))):
        _change(random, found)
    return bytes(found)


def _change(random: Random, data: bytearray) -> None:
    if not data:
        data += random.randbytes(random.randint(0, 16))
        return
    # Headers are at the beginning, and say more than the rest.
    start = random.randrange(min(len(data), 64) if random.random() < 0.3 else len(data))
    length = min(random.choice((1, 2, 4, 8, random.randint(1, 64), random.randint(1, len(data)))), len(data) - start)
    kind = random.randrange(10)
    if kind == 0:
        data[start] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[start] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)))
    elif kind in (2, 3):
        width = random.choice((2, 4, 8))
        number = random.choice(INTEGERS) % (1 << 8 * width)
        data[start : start + width] = number.to_bytes(width, random.choice(("little", "big")))
    elif kind == 4:
        del data[start : start + length]
    elif kind == 5:
        data[start:start] = data[start : start + length] * random.choice((1, 1, 2, 20))
    elif kind == 6:
        data[start:start] = random.randbytes(min(length, 32))
    elif kind == 7:
        del data[start:]
    elif kind == 8:
        other = random.randrange(len(data))
        data[start : start + length] = data[other : other + length]
    else:
        data[start : start + length] = bytes([random.choice((0, 0xFF, data[start]))]) * length


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in parsed JSON, the whole first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a value with the one at ``path`` replaced, in place but for the whole."""
    if not path:
        return new
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return value


def changed_json(random: Random, value: Any, strange: Sequence[Any] = STRANGE) -> Any:
    """Return parsed JSON with one to four values replaced, left out, doubled, renamed, exchanged or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        paths = list(places(value))
        path = random.choice(paths[1:] or paths)
        at = value
        for key in path:
            at = at[key]
        kind = random.randrange(9)
        if kind < 4 or not path:
            new = copy.deepcopy(random.choice(strange)) if kind else _near(random, at)
            value = put(value, path, new)
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if kind == 4:
            del parent[path[-1]]
        elif kind == 5 and isinstance(parent, dict):
            parent[str(random.choice(("", "x", "format", "kind", f"{path[-1]}s", "\x00")))] = parent.pop(path[-1])
        elif kind == 5:
            parent[path[-1] : path[-1]] = [at] * random.choice((1, 2, 100))
        elif kind == 6:
            parent[path[-1]] = random.choice(([at], {"a": at}, str(at)))
        elif kind == 7:
            other = random.choice(paths)
            there = value
            for key in other:
                there = there[key]
            parent[path[-1]] = copy.deepcopy(there)
        elif isinstance(at, str):
            parent[path[-1]] = at[: random.randint(0, len(at))] + random.choice(("", "\x00", "..", "x" * 2000, "\n"))
        else:
            parent[path[-1]] = _near(random, at)
    return value


def _near(random: Random, value: Any) -> Any:
    """Return a value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + random.choice((-1, 1, 2, value, -value, -2 * value, 10**6))
    if isinstance(value, float):
        return value * random.choice((-1.0, 0.0, 2.0, 1e9, 1e-9)) + random.choice((0.0, 1.0))
    if isinstance(value, str):
        return value[::-1] or "a"
    return copy.deepcopy(random.choice(STRANGE))


def json_text(random: Random, value: Any) -> bytes:
    """Return the text of a value; now and then it is broken, deep, long, or in another encoding."""
    text = json.dumps(value)
    kind = random.randrange(40)
    if kind == 0:
        return changed_bytes(random, text.encode())
    if kind == 1:
        depth = random.choice((60, 70, 1000, 20_000))
        return (f"{'[' * depth}{text}{']' * depth}").encode()
    if kind == 2:
        return text.encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1")), "replace")
    if kind == 3:
        return text.encode() + random.choice((b"", b"\n", b"}", b"\x00", text.encode()))
    if kind == 4 and text.startswith("{") and text != "{}":
        inside = text[1:-1]
        return f"{{{inside}, {inside}}}".encode()
    return text.encode("utf-8", "surrogatepass")
