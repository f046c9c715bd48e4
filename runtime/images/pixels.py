"""Arrays of pixels as BGR ``uint8``: channels, bits, transparency, orientation."""

from __future__ import annotations

import logging

import cv2
import numpy as np

from deploykit.errors import ImageError
from deploykit.runtime.arrays import Array

__all__ = ["as_bgr", "check_pixels", "eight_bits", "turned", "with_channels", "without_alpha"]

DARK = 1 << 14  # 16-bit values of a sensor with 10, 12 or 14 bits stay below this
FULL_SCALE = 2**16 - 1

_log = logging.getLogger(__name__)


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Check the (height, width) that an image declares.

    Raises:
        ImageError: it has more pixels than allowed, or none.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ImageError(f"{name} declares {width:,}x{height:,} pixels (width x height): copy it again")
    if height * width > max_pixels:
        raise ImageError(
            f"{name} declares {width:,}x{height:,} pixels (width x height), more than the {max_pixels:,} that are "
            "allowed: make it smaller, or allow more with --max-pixels (max_pixels=)"
        )


def as_bgr(image: Array) -> Array:
    """Convert an array to BGR ``uint8 (H, W, 3)``: grey ``(H, W)`` or ``(H, W, 1)``, BGR, or BGRA ``(H, W, 4)``.

    Raises:
        ImageError: the array is not uint8 (its range would be a guess), is empty, or has another shape.
    """
    if image.dtype != np.uint8:
        raise ImageError(
            f"an image array must be uint8 (0 to 255), got {image.dtype}: scale it and convert it (values from 0 to 1: "
            "np.rint(255 * image).astype(np.uint8)); channels are in BGR order"
        )
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image array must be (height, width, 3) in BGR order, got {image.shape}")
    if 0 in image.shape:
        raise ImageError(f"the image array is empty: its shape is {image.shape}")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[:, :, :3])


def with_channels(image: Array, channels: int | None) -> Array:
    """Return the image if it is ``uint8 (H, W, channels)``.

    Raises:
        ImageError: it is not.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise ImageError(
            f"this network takes uint8 images of {channels} channels (height, width, {channels}), got {image.dtype} "
            f"{image.shape}: use a PNG or TIFF file for four channels, or an array"
        )
    return image


def eight_bits(image: Array, name: str, full_scale: int = FULL_SCALE) -> Array:
    """Return 16 bits per channel as 8, ``full_scale`` as 255; ``name`` stands for the image in a warning."""
    if image.dtype != np.uint16:
        return image
    largest = int(image.max())
    if full_scale != FULL_SCALE:
        return np.minimum(image.astype(np.uint32) * 255 // full_scale, 255).astype(np.uint8)
    if 0 < largest < DARK:
        _log.warning(
            "%s has 16 bits per channel, but no value above %d of 65535, so it is almost black: if its values have "
            "%d bits, multiply them by %d",
            name,
            largest,
            max(largest.bit_length(), 9),
            1 << 16 - max(largest.bit_length(), 9),
        )
    return (image >> 8).astype(np.uint8)


def without_alpha(image: Array, name: str, *, alpha: bool) -> Array:
    """Return the colours as BGR ``(H, W, 3)``; what was transparent is logged, for it may have any colour.

    ``alpha``: the image has an alpha channel, the fourth one unless it is dropped already.
    """
    transparent = alpha
    if alpha and image.ndim == 3 and image.shape[2] == 4:
        transparent = bool((image[..., 3] != 255).any())
        image = np.ascontiguousarray(image[..., :3])
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if transparent:
        _log.warning("%s has an alpha channel, which is dropped: its transparent pixels count as their colour", name)
    return image


def turned(image: Array, orientation: int) -> Array:
    """Return an image upright whose EXIF orientation is 1 to 8."""
    if orientation in (5, 7):
        image = cv2.transpose(image)
        return np.ascontiguousarray(image if orientation == 5 else image[::-1, ::-1])
    if orientation in (2, 4):
        return cv2.flip(image, int(orientation == 2))
    turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    return cv2.rotate(image, turns[orientation]) if orientation in turns else image
