"""Images of other libraries as BGR ``uint8`` arrays: Pillow's, tensors, open files. None of them is imported here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import numpy as np

from deploykit.errors import ImageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.pixels import as_bgr, check_pixels, eight_bits, turned, with_channels, without_alpha
from deploykit.runtime.images.reading import ImageSource, decode_image, largest_file, read_image
from deploykit.runtime.options import MAX_PIXELS

__all__ = ["AnyImage", "BinaryFile", "PillowImage", "Tensor", "is_image", "name_of", "read_any_image"]

ORIENTATION = 274  # EXIF's tag
CHANNELS = (1, 3, 4)
ROUNDING = 1e-6  # by which values of a tensor may leave 0 to 1
CHUNK = 1 << 20


class PillowImage(Protocol):
    """An image of Pillow: ``PIL.Image.Image``."""

    @property
    def mode(self) -> str:
        """How its pixels are stored, such as ``RGB``."""

    def getexif(self) -> Any:
        """Return its EXIF tags."""

    def getbands(self) -> tuple[str, ...]:
        """Return the names of its channels."""


class Tensor(Protocol):
    """A tensor of torch, or of another library that has ``__dlpack__``."""

    def __dlpack__(self) -> Any:
        """Return its memory for another library."""

    def dim(self) -> int:
        """Return the number of its axes."""


class BinaryFile(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes:
        """Return at most ``size`` bytes; none at its end."""


AnyImage = ImageSource | bytearray | memoryview | PillowImage | Tensor | BinaryFile
"""What counts as one image: a path, encoded bytes, a BGR array, Pillow's image, a tensor, an open binary file."""


def is_image(source: object) -> TypeGuard[AnyImage]:
    """Return whether ``source`` is one image by its type; a path may still be that of a folder or a video."""
    plain = isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray))
    return plain or _is_pillow(source) or _is_tensor(source) or _is_file(source)


def name_of(source: AnyImage, number: int) -> str:
    """Return the name of an image's result: its file, or ``image0`` for the first image that has none."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    named = getattr(source, "filename", "") if _is_pillow(source) else getattr(source, "name", "")
    return named if isinstance(named, str) and named and not named.startswith("<") else f"image{number}"


def read_any_image(
    source: AnyImage, *, name: str = "the image", channels: int | None = 3, max_pixels: int = MAX_PIXELS,
    turn: bool = True,
) -> Array:  # fmt: skip
    """Return any image as BGR ``uint8 (H, W, 3)``; see :func:`deploykit.runtime.images.reading.read_image`.

    Pillow's images, of any mode, become what the same file gives: palettes, grey and CMYK are converted, an alpha
    channel is dropped, 16 bits become 8, and EXIF's orientation is obeyed. A tensor must be RGB ``(C, H, W)`` with 1, 3
    or 4 channels, or grey ``(H, W)``, ``uint8`` (0 to 255) or floating-point (0 to 1), as torchvision makes them. An
    open file is read from its position to its end.

    Raises:
        NotFoundError, ImageError: as for ``read_image``; or a tensor or an image has values or a shape whose meaning
            would be a guess.
    """
    if _is_pillow(source):
        return _fitting(_of_pillow(source, name, max_pixels, turn=turn, keep_alpha=channels not in (1, 3)), channels)
    if _is_tensor(source):
        return _fitting(_of_tensor(source, max_pixels), channels)
    if _is_file(source):
        data = _content(source, name, max_pixels)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        return read_image(source, channels=channels, max_pixels=max_pixels, turn=turn)  # type: ignore[arg-type]  # a path or an array
    return decode_image(data, name, channels=channels, max_pixels=max_pixels, turn=turn)


def _fitting(image: Array, channels: int | None) -> Array:
    if channels is None:
        return image
    return as_bgr(image) if channels in (1, 3) else with_channels(image, channels)


def _comes_from(source: object, module: str) -> bool:
    return any(base.__module__.partition(".")[0] == module for base in type(source).__mro__)


def _is_pillow(source: object) -> bool:
    return _comes_from(source, "PIL") and hasattr(source, "getexif")


def _is_tensor(source: object) -> bool:
    return not isinstance(source, np.ndarray) and (_comes_from(source, "torch") or hasattr(source, "__dlpack__"))


def _is_file(source: object) -> bool:
    return not isinstance(source, (str, os.PathLike)) and callable(getattr(source, "read", None))


def _of_pillow(image: Any, name: str, max_pixels: int, *, turn: bool, keep_alpha: bool) -> Array:
    """Return the pixels of Pillow's image in BGR order, with 3 channels or, if asked, its alpha channel."""
    check_pixels((image.size[1], image.size[0]), name, max_pixels)
    try:
        image.load()  # before its EXIF: Pillow turns a TIFF then, and forgets its orientation
        orientation = image.getexif().get(ORIENTATION, 1)
        pixels, alpha = _pillow_pixels(image, name)
    except (OSError, SyntaxError, ValueError, RuntimeError) as e:  # what Pillow raises for damaged files
        raise ImageError(f"Pillow cannot decode {name}: {e}") from e
    pixels = eight_bits(pixels, name)
    if pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    if not (keep_alpha and alpha):
        pixels = without_alpha(pixels, name, alpha=alpha)
    return turned(pixels, orientation) if turn else pixels


def _pillow_pixels(image: Any, name: str) -> tuple[Array, bool]:
    """Return grey ``(H, W)``, RGB or RGBA pixels of 8 or 16 bits, and whether the last channel is alpha."""
    mode = image.mode
    if mode == "F":
        raise ImageError(
            f"{name} has floating-point values (Pillow's mode F), whose range would be a guess: scale them to 0 to 255 "
            "and convert the image to mode L, which only cuts them off"
        )
    if mode == "I":  # 32 bits, which Pillow uses for some files of 16
        values = np.asarray(image)
        if image.format not in ("PNG", "PPM") or values.min() < 0 or values.max() >= 2**16:
            raise ImageError(
                f"{name} has integers of 32 bits (Pillow's mode I), whose range would be a guess: scale them to 0 to "
                "255 and convert the image to mode L, which only cuts them off"
            )
        return values.astype(np.uint16), False
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), False
    transparent = mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in getattr(image, "info", {})
    wanted = "RGBA" if transparent else "L" if mode in ("1", "L") else "RGB"
    if mode == "La":
        image = image.convert("LA")
    return np.asarray(image if mode == wanted else image.convert(wanted)), transparent


def _of_tensor(tensor: Any, max_pixels: int) -> Array:
    values = _numpy(tensor)
    told = f"a tensor of shape {values.shape} and type {values.dtype}"
    if values.ndim == 4:
        raise ImageError(f"{told} is a batch: pass its images one by one, or as a list (list(tensor))")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ImageError(f"a tensor must be RGB (channels, height, width) or grey (height, width), got {told}")
    if values.ndim == 3:
        first, last = values.shape[0] in CHANNELS, values.shape[2] in CHANNELS
        if first == last:
            what = "may have its channels first or last" if first else "has no axis of 1, 3 or 4 channels at its front"
            raise ImageError(f"{told} {what}: pass an array in BGR order (height, width, 3) instead")
        if not first:
            raise ImageError(
                f"{told} has its channels last, but a tensor must have them first: tensor.permute(2, 0, 1)"
            )
        values = values.transpose(1, 2, 0)
    check_pixels((values.shape[0], values.shape[1]), "a tensor", max_pixels)
    if np.issubdtype(values.dtype, np.floating):
        least, most = float(values.min()), float(values.max())
        if not (least >= -ROUNDING and most <= 1 + ROUNDING):
            raise ImageError(
                f"a floating-point tensor must have values from 0 to 1, but this one has {least:g} to {most:g}: pass "
                "it before it is normalised, or as uint8 (0 to 255)"
            )
        values = np.rint(np.clip(values.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"a tensor must be uint8 (0 to 255) or floating-point (0 to 1), got {told}")
    if values.ndim == 3 and values.shape[2] > 1:
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return np.ascontiguousarray(values)


def _numpy(tensor: Any) -> Array:
    """Return a tensor's values in this machine's memory."""
    steps: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("detach", lambda t: t.detach()),
        ("cpu", lambda t: t.cpu()),
        ("is_floating_point", lambda t: t.float() if t.is_floating_point() else t),  # numpy has no bfloat16
        ("numpy", lambda t: t.numpy()),
    )
    try:
        for method, step in steps:
            if hasattr(tensor, method):
                tensor = step(tensor)
        return np.asarray(tensor if isinstance(tensor, np.ndarray) else np.from_dlpack(tensor))
    except Exception as e:  # whatever another library raises
        raise ImageError(f"the values of this {type(tensor).__name__} cannot be read: {e}") from e


def _content(file: Any, name: str, max_pixels: int) -> bytes:
    """Return the rest of an open file."""
    most = largest_file(max_pixels)
    parts: list[bytes] = []
    size = 0
    try:
        while part := file.read(CHUNK):
            if not isinstance(part, bytes):
                raise ImageError(f"{name} is open as text, but an image is bytes: open it with mode 'rb'")
            size += len(part)
            if size > most:
                raise ImageError(
                    f"{name} has more than the {most:,} bytes that an image of {max_pixels:,} pixels takes"
                )
            parts.append(part)
    except (OSError, ValueError) as e:  # ValueError: it is closed
        raise ImageError(f"cannot read the open file {name}: {e}") from e
    if not parts:
        raise ImageError(f"{name} gives no bytes: it is empty, or was read to its end before (file.seek(0))")
    return b"".join(parts)
