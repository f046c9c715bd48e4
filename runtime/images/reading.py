"""Images from files, encoded bytes and arrays, as BGR ``uint8``."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import ImageError, NotFoundError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import close_matches

__all__ = ["RAW_SUFFIXES", "ImageSource", "as_bgr", "decode_image", "encoded_image", "read_image"]

ImageSource = str | os.PathLike[str] | bytes | Array

# Of a camera's raw file OpenCV decodes the thumbnail, or nothing.
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".kdc", ".nef", ".orf", ".raf", ".rw2"}


def read_image(source: ImageSource) -> Array:
    """An image as BGR ``uint8 (H, W, 3)``.

    Files and encoded bytes are turned upright by their EXIF orientation, as people see them: results are in the
    pixels of the upright image. Grey becomes BGR, an alpha channel is dropped, 16 bits a channel become 8.
    Arrays are BGR as OpenCV gives them; see :func:`as_bgr`.

    Raises:
        NotFoundError: there is no such file.
        ImageError: empty, not an image that OpenCV reads, or an array of another kind.
    """
    if isinstance(source, np.ndarray):
        return as_bgr(source)
    if isinstance(source, bytes):
        return decode_image(source)
    try:
        path = Path(source)
    except TypeError as e:
        raise ImageError(f"an image is a path, encoded bytes or a BGR array, got {type(source).__name__}") from e
    return decode_image(encoded_image(path), str(path))


def encoded_image(path: Path) -> bytes:
    """The bytes of an image's file, not decoded yet.

    Raises:
        NotFoundError: there is no such file.
        ImageError: it cannot be read, or is a camera's raw file.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raise ImageError(f"{path} is a camera's raw file; only developed images are read: convert it to PNG or JPEG")
    try:
        return path.read_bytes()  # and not cv2.imread, which does not open every name that the system allows
    except FileNotFoundError as e:
        raise NotFoundError(f"an image was expected at {path}, but there is no such file{close_matches(path)}") from e
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        raise ImageError(f"cannot read the image {path}: {getattr(e, 'strerror', None) or e}") from e


def decode_image(data: bytes, name: str = "the encoded image") -> Array:
    """Decode JPEG, PNG, WebP, TIFF, BMP ... bytes to BGR ``uint8 (H, W, 3)``; ``name`` is for the message.

    Raises:
        ImageError: no bytes, or bytes that OpenCV does not decode (an image that is cut off included).
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:  # for example more pixels than OpenCV's limit
        raise ImageError(f"OpenCV does not decode {name}: {e.err}") from e
    if image is None or _is_cut_off_jpeg(data):
        start = data[:4].hex(" ")
        raise ImageError(
            f"{name} is not a whole image of a kind that OpenCV reads ({len(data)} bytes, starting {start}): "
            "convert it to JPEG or PNG, or copy it again"
        )
    return image


def _is_cut_off_jpeg(data: bytes) -> bool:
    """Whether a JPEG's end marker is missing. OpenCV 5 refuses such a file, OpenCV 4 gives an image that ends grey."""
    if data[:2] != b"\xff\xd8":
        return False
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":  # up to the start of the scan,
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")  # because a thumbnail has an end marker too
    return data.rfind(b"\xff\xd9", place) < 0


def as_bgr(image: Array) -> Array:
    """An array as BGR ``uint8 (H, W, 3)``: grey ``(H, W)`` or ``(H, W, 1)`` and BGRA ``(H, W, 4)`` are converted.

    Raises:
        ImageError: not uint8 (whose range would be a guess), empty, or of another shape.
    """
    if image.dtype != np.uint8:
        raise ImageError(f"an image array must be uint8 (0 to 255), got {image.dtype}: scale and convert it first")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image array must be (height, width, 3) in BGR order, got {image.shape}")
    if 0 in image.shape:
        raise ImageError(f"the image array is empty: its shape is {image.shape}")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[:, :, :3])
