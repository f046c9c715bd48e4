"""Changes of protocol buffers at the level of the wire: fields with other numbers, types, lengths and values.

No schema is needed: a field of bytes is tried as a message, and taken for one where it parses to its end.
"""

from __future__ import annotations

from random import Random

from tests.fuzz.mutate import INTEGERS, changed_bytes

__all__ = ["changed_message", "parsed", "written"]

Field = tuple[int, int, "int | bytes | list[Field]"]
"""Number, wire type (0: varint, 1: 8 bytes, 2: bytes or a message, 5: 4 bytes), value."""

DEEPEST = 12


def varint(value: int) -> bytes:
    """Return an unsigned number of up to 64 bits as the wire has it."""
    value %= 1 << 64
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def parsed(data: bytes, depth: int = 0) -> list[Field]:
    """Return the fields of a message.

    Raises:
        ValueError: it is none.
    """
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            number, kind = tag >> 3, tag & 7
            if not 1 <= number < 1 << 12:
                raise ValueError("no number of a field")
            if kind == 0:
                value, at = _read_varint(data, at)
                fields.append((number, kind, value))
                continue
            if kind not in (1, 2, 5):
                raise ValueError("no type of a field")
            length = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                length, at = _read_varint(data, at)
            raw = data[at : at + length]
            if len(raw) != length:
                raise ValueError("cut off")
            at += length
            fields.append((number, kind, _inner(raw, depth) if kind == 2 else raw))
    except IndexError as e:
        raise ValueError("cut off") from e
    return fields


def _inner(raw: bytes, depth: int) -> bytes | list[Field]:
    if not raw or depth >= DEEPEST or (raw.isascii() and raw.decode().isprintable()):
        return raw
    try:
        return parsed(raw, depth + 1)
    except ValueError:
        return raw


def written(fields: list[Field]) -> bytes:
    """Return the bytes of fields."""
    parts = []
    for number, kind, value in fields:
        tag = varint(number << 3 | kind)
        if isinstance(value, int):
            parts.append(tag + varint(value))
        else:
            raw = written(value) if isinstance(value, list) else value
            parts.append(tag + (varint(len(raw)) if kind == 2 else b"") + raw)
    return b"".join(parts)


def changed_message(random: Random, data: bytes) -> bytes:
    """Return a message with one to three fields changed, at any depth; of what is none, changed bytes."""
    try:
        fields = parsed(data)
    except ValueError:
        return changed_bytes(random, data)
    for _ in range(random.choice((1, 1, 2, 3))):
        lists: list[list[Field]] = []
        _lists(fields, lists)
        _change(random, random.choice(lists))
    return written(fields)


def _lists(fields: list[Field], found: list[list[Field]]) -> None:
    found.append(fields)
    for _, _, value in fields:
        if isinstance(value, list):
            _lists(value, found)


def _change(random: Random, fields: list[Field]) -> None:
    if not fields:
        fields.append((random.randint(1, 30), 0, random.choice(INTEGERS)))
        return
    place = random.randrange(len(fields))
    number, kind, value = fields[place]
    what = random.randrange(7)
    if what == 0:
        del fields[place]
    elif what == 1:
        fields[place:place] = [fields[place]] * random.choice((1, 1, 3, 50))
    elif what == 2:
        other = random.randrange(len(fields))
        fields[place], fields[other] = fields[other], fields[place]
    elif what == 3:
        fields[place] = (random.randint(1, 30), kind, value)
    elif what == 4:
        fields[place] = (number, 0, random.choice(INTEGERS))
    elif isinstance(value, int):
        fields[place] = (number, kind, random.choice((*INTEGERS, value + 1, value - 1, value * 2)))
    elif isinstance(value, bytes):
        fields[place] = (number, kind, changed_bytes(random, value) if kind == 2 else random.randbytes(len(value)))
    else:
        fields[place] = (number, 2, changed_bytes(random, written(value)))
