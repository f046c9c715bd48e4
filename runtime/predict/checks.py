"""Checks of a network's input, its batch and its images before a prediction."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import ImageError, SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.reading import ImageSource, decode_image, encoded_image
from deploykit.runtime.session import Session, TensorInfo
from deploykit.spec import InputSpec

__all__ = ["checked_batch", "checked_input", "image_of_channels"]


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
    if batch < 1 or info.shape[0] not in (None, batch):
        raise UsageError(f"this network takes a batch of {info.shape[0] or 'at least 1'}, got {batch}")
    return batch


def image_of_channels(source: ImageSource, channels: int) -> Array:
    """Return an image with ``channels`` channels, ``uint8 (H, W, C)``, as stored in the file or the array.

    Raises:
        ImageError: it has another number of channels.
    """
    if isinstance(source, np.ndarray):
        image = source
    else:
        data = source if isinstance(source, bytes) else encoded_image(Path(source))
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        image = decode_image(data) if decoded is None else decoded  # raises the error of a broken file
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise ImageError(
            f"this network takes uint8 images of {channels} channels (height, width, {channels}), got {image.dtype} "
            f"{image.shape}: use a PNG or TIFF file for four channels, or an array"
        )
    return image
