"""Read images from files, encoded bytes and arrays as BGR ``uint8``."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import ImageError, NotFoundError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import similar_names

__all__ = ["RAW_SUFFIXES", "ImageSource", "as_bgr", "decode_image", "encoded_image", "read_image"]

ImageSource = str | os.PathLike[str] | bytes | Array

# OpenCV decodes only the thumbnail of these camera files, or nothing.
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".kdc", ".nef", ".orf", ".raf", ".rw2"}


def read_image(source: ImageSource) -> Array:
    """Read an image as BGR ``uint8 (H, W, 3)``.

    Files and encoded bytes are turned upright by their EXIF orientation, so results are in pixels of the upright
    image. Grey becomes BGR, an alpha channel is dropped, and 16 bits per channel become 8. Arrays must be BGR, as
    OpenCV returns them; see :func:`as_bgr`.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: the image is empty, OpenCV cannot read it, or the array is of another kind.
    """
    if isinstance(source, np.ndarray):
        return as_bgr(source)
    if isinstance(source, bytes):
        return decode_image(source)
    try:
        path = Path(source)
    except TypeError as e:
        raise ImageError(f"an image must be a path, encoded bytes or a BGR array, got {type(source).__name__}") from e
    return decode_image(encoded_image(path), str(path))


def encoded_image(path: Path) -> bytes:
    """Read the bytes of an image file without decoding them.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: the file cannot be read, or is a camera's RAW file.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raise ImageError(f"{path} is a camera's RAW file, but a developed image is expected: convert it to PNG or JPEG")
    try:
        return path.read_bytes()  # cv2.imread cannot open every name that the system allows
    except FileNotFoundError as e:
        raise NotFoundError(f"an image was expected at {path}, but there is no such file{similar_names(path)}") from e
    except (OSError, ValueError) as e:  # ValueError: an impossible file name
        raise ImageError(f"cannot read the image {path}: {getattr(e, 'strerror', None) or e}") from e


def decode_image(data: bytes, name: str = "the encoded image") -> Array:
    """Decode the bytes of a JPEG, PNG, WebP, TIFF, BMP or other image to BGR ``uint8 (H, W, 3)``.

    ``name`` stands for the image in the message.

    Raises:
        ImageError: there are no bytes, or OpenCV cannot decode them (the image may be truncated).
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:  # for example more pixels than OpenCV's limit
        raise ImageError(f"OpenCV cannot decode {name}: {e.err}") from e
    if image is None or _is_truncated_jpeg(data):
        start = data[:4].hex(" ")
        raise ImageError(
            f"{name} is not a complete image that OpenCV can read ({len(data)} bytes, starting {start}): "
            "convert it to JPEG or PNG, or copy it again"
        )
    return image


def _is_truncated_jpeg(data: bytes) -> bool:
    """Return whether a JPEG lacks its end marker: OpenCV 5 refuses such a file, OpenCV 4 fills it with grey."""
    if data[:2] != b"\xff\xd8":
        return False
    position = 2  # moves to the start of the scan, because a thumbnail before it has an end marker too
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.rfind(b"\xff\xd9", position) < 0


def as_bgr(image: Array) -> Array:
    """Convert an array to BGR ``uint8 (H, W, 3)``: grey ``(H, W)`` or ``(H, W, 1)``, BGR, or BGRA ``(H, W, 4)``.

    Raises:
        ImageError: the array is not uint8 (its range would be a guess), is empty, or has another shape.
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
