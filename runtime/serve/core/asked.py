"""What a request asks for: options of the prediction, from text (an address, a form) or from JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from deploykit.errors import UsageError
from deploykit.numerals import typed_number
from deploykit.runtime.serve.core.model import ServedModel

__all__ = ["PARAMETERS", "asked_options"]

MOST_CLASSES = 1000


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise ValueError
    return int(value)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[str(value).lower()]


def _classes(value: Any) -> tuple[int | str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(type(each) in (int, str) for each in items) or len(items) > MOST_CLASSES:
        raise ValueError
    words = (str(each).strip() for each in items)
    return tuple(word if (number := typed_number(word)) is None else number for word in words)


def _tile(value: Any) -> int | tuple[int, int]:
    sides = [_whole(each) for each in (value.split(",") if isinstance(value, str) else [value])]
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


PARAMETERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "conf": (_number, {"type": "number", "minimum": 0, "maximum": 1}, "keep objects with a higher score"),
    "iou": (_number, {"type": "number", "minimum": 0, "maximum": 1}, "suppress objects that overlap by more"),
    "max_det": (_whole, {"type": "integer", "minimum": 1}, "keep at most this many objects"),
    "classes": (_classes, {"type": "string"}, "keep these classes, by name or number, separated by commas"),
    "agnostic": (_switch, {"type": "boolean"}, "let objects of different classes suppress each other"),
    "multi_label": (_switch, {"type": "boolean"}, "give an object for every class over the threshold"),
    "top": (_whole, {"type": "integer", "minimum": 1}, "how many classes of an image to give"),
    "tile": (_tile, {"type": "string"}, "side of a tile in pixels, or height,width"),
    "overlap": (_whole, {"type": "integer", "minimum": 0}, "pixels that are dropped at the edges of a tile"),
}
"""Option -> what reads it, its JSON Schema, and what it means; see :class:`deploykit.PredictOptions`."""


def asked_options(given: Mapping[str, Any], model: ServedModel) -> dict[str, Any]:
    """Return the options of a prediction that a request gives; empty ones and null count as left out.

    Raises:
        UsageError: an option is unknown, not of this model's task, or not of its type.
    """
    found = {}
    for name, value in given.items():
        if name not in PARAMETERS or name not in model.takes:
            known = ", ".join(each for each in PARAMETERS if each in model.takes) or "none"
            raise UsageError(f"{name[:50]!r} is no option of this model; it has {known}")
        if value is None or value == "":
            continue
        read, schema, _ = PARAMETERS[name]
        try:
            found[name] = read(value)
        except (ValueError, TypeError, KeyError, OverflowError) as e:
            raise UsageError(f"{name} must be of type {schema['type']}, got {str(value)[:50]!r}") from e
    return found
