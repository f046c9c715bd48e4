"""What predictors of every task have in common: where images come from, and how they share a run of the network."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, overload

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.reading import ImageSource
from deploykit.runtime.images.sources import Frame, Images, Skip, Video, kind_of, open_source
from deploykit.runtime.session import Session, TensorInfo
from deploykit.spec import InputSpec, ModelSpec

__all__ = ["OnCanvas", "SourcePredictor", "checked_batch", "input_as_said"]


class OnCanvas(Protocol):
    """A frame, ready for the network."""

    @property
    def canvas(self) -> Array:
        """``uint8 (H, W, C)``; those of one size can share a run."""
        ...


R = TypeVar("R")
P = TypeVar("P", bound=OnCanvas)


class SourcePredictor(ABC, Generic[R, P]):
    """Runs a network on whatever images come from; ``R`` is an image's result."""

    session: Session
    spec: ModelSpec
    batch: int
    takes_raw = False
    """Whether the network takes the mosaics of RAW files."""

    @abstractmethod
    def _prepare(self, frame: Frame) -> P:
        """Lay an image on the network's canvas."""

    @abstractmethod
    def _run(self, batch: list[P]) -> list[R]:
        """Run the network on images whose canvases are of one size."""

    @overload
    def __call__(self, source: str | os.PathLike[str] | int) -> R | Any: ...  # type: ignore[overload-overlap]  # a str is a sequence too
    @overload
    def __call__(self, source: bytes | Array) -> R: ...
    @overload
    def __call__(self, source: Sequence[ImageSource]) -> list[R]: ...
    def __call__(self, source: ImageSource | int | Sequence[ImageSource]) -> R | list[R] | Iterator[R] | Any:
        """Predict, in the form that follows from what is given.

        Args:
            source: an image (path, encoded bytes, or a BGR ``uint8 (H, W, 3)`` array) gives a result; a list
                of images gives a list; a folder, a video file or a camera's number gives an iterator, which reads
                as it goes.

        Raises:
            NotFoundError, ImageError: the source is missing or cannot be read.
            BackendError: the network failed.
        """
        results = self._results(open_source(source, raw=self.takes_raw), None)
        if isinstance(source, (bytes, np.ndarray)):
            return next(results)
        if isinstance(source, (str, os.PathLike, int)):
            return next(results) if kind_of(source) == "image" else results
        return list(results)

    def stream(
        self, source: ImageSource | int | Sequence[ImageSource] | Images | Video, *, skip: Skip | None = None
    ) -> Iterator[R]:
        """Predict on any source, always as an iterator that reads as it goes.

        Args:
            source: as for a call, or what :func:`deploykit.runtime.images.sources.open_source` gave.
            skip: told of each image that cannot be read, which is then left out; without it the error is raised.
        """
        return self._results(
            source if isinstance(source, (Images, Video)) else open_source(source, raw=self.takes_raw), skip
        )

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _results(self, source: Images | Video, skip: Skip | None) -> Iterator[R]:
        limit = 1 if source.live else self.batch  # a camera's frame does not wait for the next one
        waiting: list[P] = []
        for frame in self._frames(source, skip):
            prepared = self._prepare(frame)
            if waiting and prepared.canvas.shape != waiting[0].canvas.shape:
                yield from self._run(waiting)
                waiting = []
            waiting.append(prepared)
            if len(waiting) == limit:
                yield from self._run(waiting)
                waiting = []
        if waiting:
            yield from self._run(waiting)

    def _frames(self, source: Images | Video, skip: Skip | None) -> Iterator[Frame]:
        """The source's frames, as the network wants them."""
        return source.frames(skip)


def input_as_said(session: Session, want: InputSpec) -> TensorInfo:
    """The network's one input, which must be what the spec says.

    Raises:
        SpecError: it is not.
    """
    if [info.name for info in session.inputs] != [want.name]:
        found = ", ".join(repr(info.name) for info in session.inputs)
        raise SpecError(f"the spec says that the one input is {want.name!r}, the network has {found}")
    (info,) = session.inputs
    expected = (want.batch, want.channels, *want.size)
    if len(info.shape) != 4 or any(got not in (None, side) for got, side in zip(info.shape, expected, strict=True)):
        raise SpecError(f"the spec says that input {want.name!r} is {expected}, the network takes {info}")
    if info.dtype not in ("float32", "float16"):
        raise SpecError(f"input {want.name!r} must be float32 or float16, the network takes {info}")
    return info


def checked_batch(info: TensorInfo, batch: int) -> int:
    """``batch``, if a network with this input takes it.

    Raises:
        UsageError: it does not.
    """
    if batch < 1 or info.shape[0] not in (None, batch):
        raise UsageError(f"this network takes a batch of {info.shape[0] or 'at least 1'}, got {batch}")
    return batch
