"""Read images from files, encoded bytes and arrays as BGR ``uint8``.

The header is read first (:mod:`deploykit.runtime.images.headers.image_header`): an image that declares too many pixels
is refused before one is decoded, and OpenCV turns nothing itself, because its versions differ in what they turn.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import DeviceError, ImageError, NotFoundError
from deploykit.runtime.arrays import Array
from deploykit.runtime.cuda import gpu_unavailable_reason
from deploykit.runtime.files import format_size, similar_names
from deploykit.runtime.images.decoder_messages import decoder_messages, jpeg_damage
from deploykit.runtime.images.gpu.choice import DECODE, asked_gpu
from deploykit.runtime.images.gpu.jpeg import decoded_jpeg
from deploykit.runtime.images.headers.camera import camera_file
from deploykit.runtime.images.headers.image_header import ImageHeader, read_header
from deploykit.runtime.images.headers.jpeg import damage_in, grey_tail
from deploykit.runtime.images.pixels import as_bgr, check_pixels, eight_bits, turned, with_channels, without_alpha
from deploykit.runtime.options import MAX_PIXELS

__all__ = [
    "RAW_SUFFIXES",
    "ImageSource",
    "decode_image",
    "decoding_gpu",
    "encoded_image",
    "file_bytes",
    "largest_file",
    "read_image",
]

ImageSource = str | os.PathLike[str] | bytes | Array

# OpenCV decodes only the thumbnail of these camera files, or nothing.
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".kdc", ".nef", ".orf", ".raf", ".rw2"}

UNREAD = {
    "RAW": "is a camera's RAW file, but a developed image is expected: convert it to PNG or JPEG",
    "HEIC": "is a HEIC image, which OpenCV does not read: convert it to JPEG or PNG",
}
"""What a camera wrote -> why it is not decoded."""
BYTES_PER_PIXEL = 8  # four channels of 16 bits without compression
HEADER_BYTES = 1 << 26  # metadata, thumbnails and a video that some cameras put into the file of an image
EXACT_DEPTH = {"PNG", "TIFF", "PNM", "PAM"}  # formats whose 16 bits OpenCV gives as they are
ALPHA_LAST = {"PNG", "WebP"}  # ... whose colours are the same with and without their alpha channel
TURNED_BY_OPENCV = {"TIFF"}
ON_GPU = {0xC0, 0xC1, 0xC2}  # frames of JPEG that a GPU may decode: baseline, extended, progressive; and no CMYK

_log = logging.getLogger(__name__)


def read_image(
    source: ImageSource, *, channels: int | None = 3, max_pixels: int = MAX_PIXELS, turn: bool = True
) -> Array:
    """Read an image as BGR ``uint8 (H, W, 3)``, or with the channels that it is stored with.

    Files and encoded bytes are turned upright by their EXIF orientation (an AVIF by its rotation and mirror), so
    results are in pixels of the upright image. Grey becomes BGR, an alpha channel is dropped, and 16 bits per channel
    become 8; what is lost is logged. Arrays must be BGR, as OpenCV returns them.

    Args:
        source: a path, encoded bytes or an array.
        channels: 1 or 3 for BGR; another number: the image must have exactly so many, ``uint8 (H, W, channels)``; None:
            as many as it is stored with.
        max_pixels: the most pixels that an encoded image may declare.
        turn: False keeps the pixels as they are stored.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: the image is empty, damaged or too large, OpenCV cannot read it, or it is of another kind.
    """
    if isinstance(source, np.ndarray):
        return as_bgr(source) if channels in (1, 3, None) else with_channels(source, channels)
    if isinstance(source, bytes):
        return decode_image(source, channels=channels, max_pixels=max_pixels, turn=turn)
    try:
        path = Path(source)
    except TypeError as e:
        raise ImageError(f"an image must be a path, encoded bytes or a BGR array, got {type(source).__name__}") from e
    data = encoded_image(path, max_pixels=max_pixels)
    return decode_image(data, str(path), channels=channels, max_pixels=max_pixels, turn=turn)


def encoded_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read the bytes of an image file without decoding them.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: the file cannot be read, is larger than any image of ``max_pixels``, is a device or a pipe, or is a
            camera's RAW file.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raise ImageError(f"{path} {UNREAD['RAW']}")
    return file_bytes(path, max_pixels=max_pixels)


def file_bytes(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read an image's file of any format; the errors are those of :func:`encoded_image`."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a device or a pipe may have no end
            raise ImageError(
                f"expected the file of an image, but {path} is {_kind_of(about.st_mode)}: give a file or a folder"
            )
        if about.st_size > largest_file(max_pixels):
            raise ImageError(
                f"{path} has {format_size(about.st_size)}, more than an image of {max_pixels:,} pixels takes: make it "
                "smaller, or allow more with --max-pixels (max_pixels=)"
            )
        return path.read_bytes()  # cv2.imread cannot open every name that the system allows
    except FileNotFoundError as e:
        raise NotFoundError(f"an image was expected at {path}, but there is no such file{similar_names(path)}") from e
    except (OSError, ValueError) as e:  # ValueError: an impossible file name
        raise ImageError(f"cannot read the image {path}: {getattr(e, 'strerror', None) or e}") from e


def largest_file(max_pixels: int) -> int:
    """Return the bytes of the largest file that an image of ``max_pixels`` may have."""
    return BYTES_PER_PIXEL * max_pixels + HEADER_BYTES


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def decode_image(
    data: bytes,
    name: str = "the encoded image",
    *,
    channels: int | None = 3,
    max_pixels: int = MAX_PIXELS,
    turn: bool = True,
) -> Array:
    """Decode the bytes of a JPEG, PNG, WebP, TIFF, BMP or other image; see :func:`read_image`.

    ``name`` stands for the image in messages.

    Raises:
        ImageError: there are no bytes, they declare too many pixels, they are damaged, or OpenCV cannot decode them.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    header = read_header(data)
    if (header is None or header.format == "TIFF") and (kind := camera_file(data)):
        raise ImageError(f"{name} {UNREAD[kind]}")
    if header is None:
        raise ImageError(_undecodable(data, name))
    check_pixels(header.size, name, max_pixels)
    if header.real:
        raise ImageError(
            f"{name} has floating-point values, whose range would be a guess: convert it to 8 or 16 bits per channel"
        )
    decoded = _decoded(data, name, header, _flags(header, channels))
    if decoded.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name} has values of type {decoded.dtype}: convert it to 8 or 16 bits per channel")
    image = eight_bits(decoded, name, header.most)
    if channels in (1, 3):
        image = without_alpha(image, name, alpha=header.alpha)
    if header.images != 1:
        count = f"{header.images} images" if header.images else "several images"
        _log.warning("%s holds %s (pages, or frames of an animation): only the first one is read", name, count)
    image = _turned(image, header, turn)
    return image if channels in (1, 3, None) else with_channels(image, channels)


def _decoded(data: bytes, name: str, header: ImageHeader, flags: int) -> Array:
    """Return what OpenCV decodes, once it is known to be whole as far as that can be told."""
    damage = "" if header.jpeg is None else damage_in(header.jpeg, data)
    image: Array = np.empty(0, np.uint8)
    on_gpu = None if damage or flags == cv2.IMREAD_UNCHANGED else _decoded_on_gpu(data, name, header)
    if on_gpu is not None and header.jpeg is not None:
        image = on_gpu
        damage = grey_tail(header.jpeg, data, image)
    elif not damage:
        try:
            with decoder_messages() as messages:
                decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as e:  # for example more pixels than OpenCV's limit
            raise ImageError(f"OpenCV cannot decode {name}: {e.err}") from e
        if decoded is None:
            raise ImageError(_undecodable(data, name))
        image = decoded
        damage = "" if header.jpeg is None else grey_tail(header.jpeg, data, image) or jpeg_damage(messages)
    if damage:
        raise ImageError(
            f"{name} is not a complete image, it is damaged: {damage} ({len(data):,} bytes): copy it again"
        )
    return image


def decoding_gpu() -> int | None:
    """Return the number of the GPU that decodes JPEG files and videos; None: the CPU does.

    Raises:
        UsageError: ``DEPLOYKIT_DECODE`` is not ``cpu``, ``gpu`` or ``gpu:N``.
        DeviceError: it asks for a GPU, and there is none.
    """
    gpu = asked_gpu()
    if gpu is not None and (reason := gpu_unavailable_reason()):
        raise DeviceError(f"{DECODE} asks for an NVIDIA GPU, but {reason}: leave it out, or set it to cpu")
    return gpu


def _decoded_on_gpu(data: bytes, name: str, header: ImageHeader) -> Array | None:
    """Return what a GPU decodes of a JPEG, where that is asked for; None: OpenCV decodes it."""
    gpu = decoding_gpu()
    if gpu is None or header.jpeg is None:
        return None
    is_known = len(header.jpeg.components) in (1, 3) and header.jpeg.process in ON_GPU
    image = decoded_jpeg(data, header.size, gpu) if is_known else None
    if image is None:
        _log.warning("%s is decoded on the CPU: the GPU's decoder does not take it", name)
    return image


def _undecodable(data: bytes, name: str) -> str:
    return (
        f"{name} is not a complete image that OpenCV can read ({len(data)} bytes, starting {data[:4].hex(' ')}): "
        "convert it to JPEG or PNG, or copy it again"
    )


def _flags(header: ImageHeader, channels: int | None) -> int:
    if channels not in (1, 3) or (header.alpha and header.format in ALPHA_LAST):
        return cv2.IMREAD_UNCHANGED  # which turns nothing either
    depth = cv2.IMREAD_ANYDEPTH if header.bits == 16 and header.format in EXACT_DEPTH else 0
    return cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | depth


def _turned(image: Array, header: ImageHeader, upright: bool) -> Array:
    """Return the image upright, or as stored, from what OpenCV decoded."""
    orientation = header.orientation
    if orientation == 1:
        return image
    is_upright = header.format in TURNED_BY_OPENCV or image.shape[:2] != header.size
    if is_upright == upright:
        return image
    if is_upright:  # back: only the quarter turns are not their own inverse
        orientation = {6: 8, 8: 6}.get(orientation, orientation)
    return turned(image, orientation)
