"""Whole numbers as people type them."""

from __future__ import annotations

__all__ = ["typed_number"]

MOST = 9  # digits: no number that is typed has more, and Python's int() refuses thousands of them with its own error


def typed_number(text: str) -> int | None:
    """Return the number that a text of at most nine decimal digits is; None: it is something else.

    Signs, spaces and the digits of other scripts are something else.
    """
    return int(text) if 0 < len(text) <= MOST and text.isascii() and text.isdecimal() else None
