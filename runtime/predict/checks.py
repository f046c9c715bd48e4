"""Checks of a network's input and its batch before a prediction, and of whether a predictor can be copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.session import Session, TensorInfo
from deploykit.spec import InputSpec

__all__ = ["checked_batch", "checked_input", "checked_reopening"]

T = TypeVar("T")


def checked_input(session: Session, want: InputSpec) -> TensorInfo:
    """Return the network's only input after checking it against the spec.

    Raises:
        SpecError: the input does not match the spec.
    """
    if [info.name for info in session.inputs] != [want.name]:
        found = ", ".join(repr(info.name) for info in session.inputs)
        raise SpecError(f"the spec says that the only input is {want.name!r}, but the network has {found}")
    (info,) = session.inputs
    expected = (want.batch, want.channels, *want.size)
    if len(info.shape) != 4 or any(got not in (None, side) for got, side in zip(info.shape, expected, strict=True)):
        raise SpecError(f"the spec says that input {want.name!r} is {expected}, but the network takes {info}")
    if info.dtype not in ("float32", "float16"):
        raise SpecError(f"input {want.name!r} must be float32 or float16, but the network takes {info}")
    return info


def checked_batch(info: TensorInfo, batch: int) -> int:
    """Return ``batch`` if a network with this input accepts it.

    Raises:
        UsageError: the network does not accept it.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    if info.shape[0] not in (None, batch):
        raise UsageError(
            f"this model has a fixed batch of {info.shape[0]}, got {batch}: "
            f"export it with --batch {batch} or --dynamic batch"
        )
    return batch


def checked_reopening(reopen: Callable[[], T] | None) -> Callable[[], T]:
    """Return what opens a predictor again.

    Raises:
        UsageError: nothing does.
    """
    if reopen is None:
        raise UsageError(
            "this predictor was made around an open session, which is memory of its process, and can be neither "
            "pickled nor copied: deploykit.load(path) makes one that opens itself again"
        )
    return reopen
