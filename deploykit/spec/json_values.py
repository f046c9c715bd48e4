"""From parsed JSON to values of annotated types: dataclasses, tuples, dictionaries, unions, plain ones; and what JSON
cannot say, as words.

Standard library only, as :mod:`deploykit.spec`, which is what is read with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from deploykit.errors import SpecError

__all__ = ["KINDS", "LATER", "json_safe", "json_value", "read_value"]

KINDS: dict[Any, Mapping[str, Any]] = {}
"""A base class -> its subclasses by the value of their field ``kind``."""

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
"""How a value is shown in a message, which a file of megabytes must not fill."""

WHOLE = 1 << 63  # whole numbers reach from -WHOLE to WHOLE - 1, as in the shapes of tensors

LATER = {"later": True}
"""Marks a field that came after the first release: written only where it is not its default, for older readers."""


def read_value(kind: Any, value: Any, where: str) -> Any:
    """Build a value of the annotated type ``kind`` (dataclasses, tuples, dicts, unions, plain) from parsed JSON.

    Raises:
        SpecError: it does not fit; ``where`` is how the message calls the value.
    """
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            raise SpecError(
                f"{where} must be one of {', '.join(map(str, typing.get_args(kind)))}, got {SHORT.repr(value)}"
            )
        return value
    if origin in (types.UnionType, typing.Union):
        return _read_union(typing.get_args(kind), value, where)
    if origin is tuple:
        return _read_tuple(typing.get_args(kind), value, where)
    if origin is dict:
        return _read_dict(typing.get_args(kind)[1], value, where)
    if (kinds := KINDS.get(kind)) is not None:
        return _read_kind(kinds, value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    return _read_plain(kind, value, where)


def _read_plain(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, int) and not -WHOLE <= value < WHOLE:
        raise SpecError(f"{where} must be a number of at most 64 bits, got one of {value.bit_length():,} bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise SpecError(f"{where} must be of type {kind.__name__}, got {SHORT.repr(value)}")
    if isinstance(value, float) and math.isnan(value):
        raise SpecError(f"{where} must be a number, got nan")
    return value


@functools.cache  # evaluating them is most of the time of reading a spec
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be an object, got {SHORT.repr(value)}")
    known = _hints(kind)
    hints = {field.name: known[field.name] for field in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise SpecError(f"{where} has no field {SHORT.repr(unknown[0])}; it has {', '.join(hints)}")
    try:
        return kind(**{name: read_value(hints[name], v, f"{where}.{name}") for name, v in value.items()})
    except TypeError as e:  # a field without a default is missing
        raise SpecError(f"{where}: {str(e).partition('__init__() ')[2] or e}") from e


def _read_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(o for o in options if o is not type(None))
    if len(options) == 1:
        return read_value(options[0], value, where)
    return _read_kind({o.__dataclass_fields__["kind"].default: o for o in options}, value, where)


def _read_kind(kinds: Mapping[str, Any], value: Any, where: str) -> Any:
    """A dataclass that is told apart by its field ``kind``."""
    found = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(found, str) or found not in kinds:
        raise SpecError(f"{where}.kind must be one of {', '.join(kinds)}, got {SHORT.repr(found)}")
    return read_value(kinds[found], value, where)


def _read_tuple(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{where} must be a list, got {SHORT.repr(value)}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(read_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise SpecError(f"{where} must have {len(args)} entries, got {len(value)}")
    return tuple(read_value(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _read_dict(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise SpecError(f"{where} must be an object, got {SHORT.repr(value)}")
    return {key: read_value(kind, v, f"{where}.{key[:80]}") for key, v in value.items()}


def json_value(value: Any) -> Any:
    """Return a value as JSON has it, dataclasses as objects: what :func:`read_value` reads, without the fields that
    came later and have their defaults."""
    if isinstance(value, tuple):
        return [json_value(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {f.name: json_value(v) for f, v in fields if not (f.metadata.get("later") and v == f.default)}


def json_safe(value: Any) -> Any:
    """The same value with words for the numbers that JSON does not have: NaN and infinity."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
