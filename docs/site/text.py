"""Plain text as Markdown."""

from __future__ import annotations

import re

__all__ = ["as_markdown"]


def as_markdown(text: str, up: str) -> str:
    """Return text with what is special in Markdown escaped, options as code, and pages that it names as links.

    Args:
        text: as a terminal shows it.
        up: the way from its page to the folder of the pages, such as ``../``.
    """
    escaped = re.sub(r"([\\\\*_|<>\[\]`])", r"\\\1", text)
    options = re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", escaped)
    return re.sub(r"docs/((?:[\w-]+/)*[\w-]+\.md)", rf"[\1]({up}\1)", options)
