"""How images reach a network of another project: which input takes them, in which layout, and what the others get.

Everything that runs or measures a network here gives it one input of float images ``(batch, channels, height, width)``.
A network that takes them with the channels last or as bytes, or that takes more than images, is fed through this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.session import Session, TensorInfo

__all__ = ["LAST", "FedSession", "ImageInput", "image_input"]

CHANNELS = (1, 3, 4)
LAST = (0, 2, 3, 1)  # the order of axes that a network with the channels last takes
FIRST = (0, 3, 1, 2)  # and back


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images, and the values of all others.

    ``info`` is the input as it is fed: float32, channels first. ``last``: the network wants the channels last.
    ``dtype``: what the network wants, by its numpy name. ``others``: name -> value.
    """

    info: TensorInfo
    last: bool = False
    dtype: str = "float32"
    others: Mapping[str, Array] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the network takes just this input as it is fed."""
        return not self.last and self.dtype == "float32" and not self.others

    def notes(self) -> list[str]:
        """What a user should know of it, a sentence each."""
        found = []
        if self.last:
            found.append(f"the input {self.info.name!r} has the channels last")
        if self.dtype != "float32":
            found.append(f"the input {self.info.name!r} is {self.dtype}")
        return [*found, *(f"the input {name!r} is {_shown(value)} in all runs" for name, value in self.others.items())]


def image_input(inputs: Sequence[TensorInfo], given: Mapping[str, Any] | None = None) -> ImageInput:
    """Find the input of images.

    Args:
        inputs: the inputs of a network.
        given: the values of those that take no images: name -> numbers, in as many as the input has.

    Raises:
        UsageError: no input takes images, or more than one; a value is missing, does not fit, or is of no input.
    """
    given = dict(given or {})
    by_name = {info.name: info for info in inputs}
    if unknown := [name for name in given if name not in by_name]:
        raise UsageError(f"there is no input {unknown[0]!r}: the inputs are {_listed(inputs)}")
    free = [info for info in inputs if info.name not in given]
    images = [info for info in free if _takes_images(info)]
    if len(images) != 1:
        count = "no input that takes" if not images else "several inputs that may take"
        raise UsageError(
            f"there is {count} images, (batch, channels, height, width) or with the channels last: the inputs are "
            f"{_listed(inputs)}; give the values of those that take none (--input NAME=NUMBER,NUMBER)"
        )
    if missing := [info for info in free if info not in images]:
        raise UsageError(
            f"the network takes {_listed(missing)} beside its images: give its value with --input "
            f"{missing[0].name}=NUMBER,NUMBER (inputs= in Python)"
        )
    info, last = images[0], _channels_last(images[0])
    shape = tuple(info.shape[axis] for axis in FIRST) if last else info.shape
    fed = TensorInfo(info.name, shape, "float32")
    others = {name: _value(by_name[name], numbers) for name, numbers in given.items()}
    return ImageInput(fed, last, info.dtype, others)


def _takes_images(info: TensorInfo) -> bool:
    if len(info.shape) != 4 or not ("float" in info.dtype or info.dtype == "uint8"):
        return False
    return info.shape[1] in (*CHANNELS, None) or _channels_last(info) or (info.shape[3] or 99) > max(CHANNELS)


def _channels_last(info: TensorInfo) -> bool:
    return info.shape[3] in CHANNELS and info.shape[1] not in CHANNELS


def _value(info: TensorInfo, numbers: Any) -> Array:
    """The value of an input, in its type and shape; a free batch is 1."""
    found = np.asarray(numbers)
    fixed = [side for side in info.shape if side is not None]
    free = len(info.shape) - len(fixed)
    try:
        if free == 0:
            found = found.reshape([side or 0 for side in info.shape])
        elif free == 1:
            found = found.reshape([-1 if side is None else side for side in info.shape])
        elif found.ndim != len(info.shape):
            found = found.reshape([*[1] * (len(info.shape) - 1), -1])
        return found.astype(np.dtype(info.dtype))
    except (TypeError, ValueError) as e:
        raise UsageError(f"the input {info.name!r} is {info}, and {_shown(found)} does not fit: {e}") from e


def _listed(inputs: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{info.name} {info}" for info in inputs) or "none"


def _shown(value: Array) -> str:
    return str(value.tolist()) if value.size <= 8 else f"{value.dtype} {value.shape}"


class FedSession(Session):
    """A session whose one input is float images with the channels first; ``inner`` is closed with it."""

    def __init__(self, inner: Session, image: ImageInput) -> None:
        self._inner, self._image = inner, image
        self.inputs, self.outputs = (image.info,), inner.outputs
        self.metadata, self.providers, self.notes = inner.metadata, inner.providers, inner.notes
        self.threads, self.threads_from = inner.threads, inner.threads_from

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`Session.run`."""
        images, kinds = inputs[self._image.info.name], {info.name: info for info in self._inner.inputs}
        fed = images.transpose(LAST) if self._image.last else images
        if self._image.dtype == "uint8":
            fed = np.clip(fed, 0, 255)
        own = kinds[self._image.info.name]
        values = {own.name: np.ascontiguousarray(fed.astype(np.dtype(own.dtype), copy=False))}
        for name, value in self._image.others.items():
            free = kinds[name].shape[:1] == (None,) and len(value) == 1
            values[name] = value.repeat(len(images), 0) if free else value
        return self._inner.run(values)

    def limit_time(self, seconds: float | None) -> None:
        """See :meth:`Session.limit_time`."""
        self._inner.limit_time(seconds)
        self.time_limit = seconds

    def close(self) -> None:
        """See :meth:`Session.close`."""
        self._inner.close()
