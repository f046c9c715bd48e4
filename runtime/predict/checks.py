"""What a predictor asks of a network's input and of images, and what it says where they do not fit."""

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


def image_of_channels(source: ImageSource, channels: int) -> Array:
    """An image of so many channels, ``uint8 (H, W, C)``, as the file or the array has it.

    Raises:
        ImageError: it has others.
    """
    if isinstance(source, np.ndarray):
        image = source
    else:
        data = source if isinstance(source, bytes) else encoded_image(Path(source))
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        image = decode_image(data) if decoded is None else decoded  # which says what is wrong
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise ImageError(
            f"this network takes uint8 images of {channels} channels (height, width, {channels}), got {image.dtype} "
            f"{image.shape}: a PNG or TIFF file can have four, an array any number"
        )
    return image
