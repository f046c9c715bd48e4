"""Checks that the parts of a spec share: numbers in their range, names that can be printed, spans of columns.

A spec may come with a downloaded file, and it decides how much memory its user's program takes.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping

from deploykit.errors import SpecError

__all__ = [
    "MAX_INPUT",
    "MOST_COLUMNS",
    "MOST_STRIDE",
    "SPACES",
    "check_name",
    "check_range",
    "check_spans",
    "check_text",
    "max_input_bytes",
]

MAX_INPUT = "DEPLOYKIT_MAX_INPUT_GIB"
"""The environment variable that allows larger inputs of networks, in GiB; without it :data:`INPUT_GIB`."""

INPUT_GIB = 2.0
MOST_STRIDE = 4096  # pixels; published networks have strides of up to 128
MOST_COLUMNS = 1 << 20  # of a row; 21,841 is the largest number of classes that has been published
MOST_TEXT = 1000  # characters of a name

NOT_PRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line ends and halves of surrogate pairs: a terminal obeys or refuses them."""

SPACES = "\t\r\n"
"""Class names have them that were read from a text file with the line ends of another system."""


def max_input_bytes() -> int:
    """Return how many bytes the input of a network may have as float32.

    Raises:
        SpecError: the environment variable :data:`MAX_INPUT` is no positive number.
    """
    text = os.environ.get(MAX_INPUT, "")
    try:
        gib = float(text or INPUT_GIB)
    except ValueError:
        gib = math.nan
    if not 0.0 < gib < math.inf:
        raise SpecError(f"expected a number of GiB over 0 in ${MAX_INPUT}, got {text!r}")
    return int(gib * (1 << 30))


def check_range(what: str, value: float, least: float, most: float) -> None:
    """Check ``least <= value <= most``, which NaN is not.

    Raises:
        SpecError: the value is outside; ``what`` is how the message calls it.
    """
    if not least <= value <= most:
        raise SpecError(f"{what} must lie in {least:,}..{most:,}, got {value:.6g}")


def check_text(what: str, text: str, *, allowed: str = "") -> None:
    """Check that a text can be printed; it may be empty, and have the characters in ``allowed``.

    Raises:
        SpecError: it has control characters or half a surrogate pair, or is too long.
    """
    if len(text) > MOST_TEXT:
        raise SpecError(f"{what} must have at most {MOST_TEXT} characters, got {len(text):,}")
    if found := next((c for c in NOT_PRINTED.findall(text) if c not in allowed), ""):
        raise SpecError(f"{what} must have no control characters, got {found!a} in {text[:80]!a}")


def check_name(what: str, text: str) -> None:
    """Check a name: a text that is not empty.

    Raises:
        SpecError: it is empty, or see :func:`check_text`.
    """
    check_text(what, text)
    if not text:
        raise SpecError(f"{what} must not be empty")


def check_spans(spans: Mapping[str, tuple[int, int] | None], widths: Mapping[str, Iterable[int]]) -> None:
    """Check the columns of a row: each span ``(start, stop)`` has at least one column, and no two have one in common.

    Args:
        spans: the spans by name; None: the row has none of that name.
        widths: name -> the allowed numbers of columns, of those spans that have a fixed one.

    Raises:
        SpecError: a span is empty, reversed, negative, beyond :data:`MOST_COLUMNS`, of another width, or overlaps.
    """
    given = {name: span for name, span in spans.items() if span is not None}
    for name, (start, stop) in given.items():
        if not 0 <= start < stop <= MOST_COLUMNS:
            raise SpecError(
                f"the columns of {name} must be [first, one after the last] in 0..{MOST_COLUMNS:,}, got "
                f"[{start:.6g}, {stop:.6g}]"
            )
        allowed = list(widths.get(name, ()))
        if allowed and stop - start not in allowed:
            expected = " or ".join(map(str, allowed))
            raise SpecError(
                f"{name} must have {expected} column{'s' * (allowed != [1])}, got {stop - start} [{start}, {stop}]"
            )
    ordered = sorted(given.items(), key=lambda item: item[1])
    for (first, a), (second, b) in itertools.pairwise(ordered):
        if b[0] < a[1]:
            raise SpecError(f"the columns of {first} {list(a)} and {second} {list(b)} must not overlap")
