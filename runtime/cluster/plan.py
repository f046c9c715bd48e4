"""What a run does, decided before it begins: which images, in which parts, by which model and options.

The plan is a file of JSON lines in the output folder: the first line says what the results depend on, and there is one
for each part with its images. The same images, model and options give the same bytes. So a run that was stopped is
continued by planning it again: what has the same plan may go on, and what has another one is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deploykit.errors import NotFoundError, UsageError
from deploykit.runtime.results.base import SCHEMA
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Images
from deploykit.strict_json import JsonError, parse_json
from deploykit.version import __version__

__all__ = ["Item", "Plan", "difference", "items_of"]

VERSION = 1
LONGEST_LINE = 1 << 28  # bytes


@dataclass(frozen=True)
class Item:
    """One image of a run.

    Attributes:
        source: its absolute path, or its address.
        name: the name that its row has: the path as it was given, with escapes for what is no text.
        size: bytes of the file; None: it is an address.
        modified_ns: when the file was changed last, in nanoseconds since 1970; None: it is an address.
    """

    source: str | Address
    name: str
    size: int | None = None
    modified_ns: int | None = None

    def is_unchanged(self) -> bool:
        """Return whether the file is the one that was planned; an address counts as unchanged."""
        if isinstance(self.source, Address):
            return True
        try:
            found = Path(self.source).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.modified_ns)


def items_of(sources: Iterable[Images]) -> list[Item]:
    """Return the images of opened sources, in order; what is named twice is taken once.

    Raises:
        NotFoundError: a file is gone.
    """
    found: dict[str, Item] = {}
    for source in sources:
        for image, shown in zip(source.items, source.names, strict=True):
            name = os.fsencode(shown).decode("utf-8", "backslashreplace")
            if name in found:
                continue
            if isinstance(image, Address):
                found[name] = Item(image, name)
                continue
            place = Path(str(image)).absolute()
            try:
                about = place.stat()
            except OSError as e:
                raise NotFoundError(f"an image was expected at {shown}, but it cannot be read: {e.strerror}") from e
            found[name] = Item(str(place), name, about.st_size, about.st_mtime_ns)
    return list(found.values())


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        about: what the rows depend on, besides the images: names -> values that JSON has.
        items: the images.
        per_part: how many of them a part has; the last one has what is left.

    Raises:
        UsageError: there is no image, or parts of less than one.
    """

    about: Mapping[str, Any]
    items: Sequence[Item]
    per_part: int

    def __post_init__(self) -> None:
        if self.per_part < 1:
            raise UsageError(f"a part must have at least 1 image, got {self.per_part}")
        if not self.items:
            raise UsageError("there is no image to run the model on")

    @property
    def parts(self) -> int:
        """The number of parts."""
        return -(-len(self.items) // self.per_part)

    def part(self, number: int) -> Sequence[Item]:
        """Return the images of a part, which are numbered from 0."""
        return self.items[number * self.per_part : (number + 1) * self.per_part]

    @cached_property
    def data(self) -> bytes:
        """The bytes of the plan's file."""
        head = {
            "plan": VERSION, "deploykit": __version__, "schema": SCHEMA,
            **self.about, "images": len(self.items), "per_part": self.per_part,
        }  # fmt: skip
        lines = [head]
        for number in range(self.parts):
            part = self.part(number)
            columns = {"name": "names", "size": "bytes", "modified_ns": "modified_ns"}
            lines.append({title: [getattr(item, name) for item in part] for name, title in columns.items()})
        return "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of :attr:`data`."""
        return hashlib.sha256(self.data).hexdigest()


def difference(before: bytes, now: bytes) -> str:
    """Return how two plans differ, in words for a message: ``--conf was 0.25 and is 0.5``.

    Args:
        before: the bytes of the plan that a folder has.
        now: those of another one, of this version.
    """
    try:
        old, new = (_lines(data) for data in (before, now))
    except JsonError as e:
        return f"its plan is damaged ({e})"
    for name in dict.fromkeys([*new[0], *old[0]]):
        if name in ("images", "per_part") or old[0].get(name) == new[0].get(name):
            continue
        if name == "model":
            return "it is of another model, or this one has changed since"
        if name == "options":
            return _option(old[0].get(name), new[0].get(name))
        return f"{name} was {old[0].get(name)} and is {new[0].get(name)}"
    if old[0].get("per_part") != new[0].get("per_part"):
        return f"parts had {old[0].get('per_part')} images and now have {new[0].get('per_part')}"
    return _image(_images(old[1:]), _images(new[1:]))


def _lines(data: bytes) -> list[dict[str, Any]]:
    lines = [parse_json(line, most=LONGEST_LINE) for line in data.splitlines()]
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise JsonError("it is no plan")
    return lines


def _option(old: Any, new: Any) -> str:
    old, new = (value if isinstance(value, dict) else {} for value in (old, new))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            was, now = ("not given" if value.get(name) is None else value[name] for value in (old, new))
            return f"--{name.replace('_', '-')} was {was} and is {now}"
    return "its options are others"


def _images(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    found = {}
    for line in lines:
        columns = [line.get(title) for title in ("names", "bytes", "modified_ns")]
        if all(isinstance(column, list) for column in columns):
            found.update({str(name): about for name, *about in zip(*columns, strict=False)})
    return found


def _image(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    for name in old:
        if name not in new:
            return f"{name} was among the images and is not any more"
    for name, about in new.items():
        if name not in old:
            return f"{name} is new among the images"
        if old[name] != about:
            return f"{name} has changed since"
    return "its images are in another order"
