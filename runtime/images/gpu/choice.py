"""Whether images and videos are decoded on a GPU."""

from __future__ import annotations

import os

from deploykit.errors import UsageError
from deploykit.numerals import typed_number

__all__ = ["DECODE", "EXTRA", "asked_gpu"]

DECODE = "DEPLOYKIT_DECODE"
"""The environment variable that says where JPEG files and videos are decoded: ``cpu``, ``gpu`` or ``gpu:N``."""

EXTRA = "gpu-decode"


def asked_gpu() -> int | None:
    """Return the number of the GPU that is to decode; None: the CPU is.

    Raises:
        UsageError: :data:`DECODE` holds something else.
    """
    asked = os.environ.get(DECODE, "")
    if asked in ("", "cpu"):
        return None
    kind, _, number = asked.partition(":")
    index = typed_number(number) if number else 0
    if kind != "gpu" or index is None or asked.endswith(":"):
        raise UsageError(f"{DECODE} must be cpu, gpu or gpu:N, where N is the number of a GPU; got {asked!r}")
    return index
