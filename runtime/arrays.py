"""The type of the arrays that go in and out: any numpy array."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

__all__ = ["Array"]

Array = npt.NDArray[Any]
