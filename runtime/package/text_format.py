"""Protobuf's text format, in which Triton reads a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

__all__ = ["Field", "Message", "Word", "text_of"]


class Word(str):
    """A value that is written without quotes, such as ``TYPE_FP32``."""

    __slots__ = ()


Field: TypeAlias = Union[str, int, bool, "Message", Sequence["Field"]]
Message: TypeAlias = Mapping[str, Field]
"""Name of a field -> its value; a sequence is a repeated field, and None is not allowed."""


def text_of(message: Message, indent: str = "") -> str:
    """Return a message as text, one field a line; a list of numbers or words is one line.

    A field of a map is a repeated message of ``key`` and ``value``.
    """
    lines = []
    for name, value in message.items():
        if isinstance(value, Mapping):
            lines.append(_block(name, value, indent))
        elif isinstance(value, (str, int)):
            lines.append(f"{indent}{name}: {_scalar(value)}\n")
        elif any(isinstance(each, Mapping) for each in value):
            lines += [_block(name, each, indent) for each in value if isinstance(each, Mapping)]
        else:
            items = ", ".join(_scalar(each) for each in value if isinstance(each, (str, int)))
            lines.append(f"{indent}{name}: [{items}]\n")
    return "".join(lines)


def _block(name: str, message: Message, indent: str) -> str:
    return f"{indent}{name} {{\n{text_of(message, f'{indent}  ')}{indent}}}\n"


def _scalar(value: str | int) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    """Escape what a quoted text cannot hold as it is: quotes, backslashes, and what is no printable ASCII."""
    if character in '"\\':
        return f"\\{character}"
    if " " <= character <= "~":
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode())
