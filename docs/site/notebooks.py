"""Notebooks as pages: their text, code and the outputs that are committed; nothing is executed.

A notebook is JSON, and this reads the little of it that pages need, so that the site takes no further package.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["images_of", "page_of"]

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg"}


def page_of(file: Path) -> str:
    """Return a notebook as Markdown: code as blocks of Python, what it printed as blocks of text, and its images.

    Raises:
        ValueError: an output is an error or a warning, or of a kind that no page shows.
    """
    parts = []
    numbers = iter(range(1, 1000))
    for cell in _cells(file):
        text = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(_fenced("python", text))
        for output in cell["outputs"]:
            kind, content = _shown(output, file)
            image = kind in SUFFIXES
            parts.append(f"![]({file.stem}-{next(numbers)}{SUFFIXES[kind]})" if image else _fenced("text", content))
    return "\n\n".join(parts) + "\n"


def images_of(file: Path) -> dict[str, bytes]:
    """Return the images among a notebook's outputs, by the names that its page has for them."""
    shown = [_shown(output, file) for cell in _cells(file) for output in cell.get("outputs", ())]
    images = [(kind, content) for kind, content in shown if kind in SUFFIXES]
    return {
        f"{file.stem}-{number}{SUFFIXES[kind]}": base64.b64decode(content)
        for number, (kind, content) in enumerate(images, 1)
    }


def _cells(file: Path) -> Iterator[dict[str, Any]]:
    yield from json.loads(file.read_text(encoding="utf-8"))["cells"]


def _shown(output: dict[str, Any], file: Path) -> tuple[str, str]:
    """The kind of an output that a page shows, and its content: an image before text."""
    kind = output["output_type"]
    if kind == "stream" and output["name"] == "stdout":
        return "text/plain", _joined(output["text"])
    data = output.get("data", {})
    for found in (*SUFFIXES, "text/plain"):
        if found in data:
            return found, _joined(data[found])
    said = _joined(output.get("text", "")) or output.get("evalue", "")
    raise ValueError(f"{file.name} has an output that is no text on stdout and no image: {kind} {said}")


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _fenced(language: str, text: str) -> str:
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
