"""RAW images: the mosaic of a camera's sensor, and its four colours as channels for a network.

LibRaw reads the file (the extra ``raw``). Black level, white level and the order of the colours are those that LibRaw
reports for the file; none is assumed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import ArtefactError, DataError, ImageError, UsageError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import existing_file
from deploykit.runtime.images.headers.tiff import pixels_and_bytes
from deploykit.runtime.images.pixels import check_pixels
from deploykit.runtime.images.reading import RAW_SUFFIXES, file_bytes
from deploykit.runtime.options import MAX_PIXELS

__all__ = ["RawImage", "develop_raw", "is_raw", "pack", "read_raw", "unpack"]

RED, GREEN, BLUE = 0, 1, 2
MAX_PIXELS_PER_BYTE = 64  # no lossless format compresses nearly as much


@dataclass(frozen=True, eq=False)
class RawImage:
    """A mosaic and the meaning of its values.

    Attributes:
        mosaic: ``uint16 (H, W)``, the visible part of the sensor.
        pattern: the colours of the first 2 x 2 pixels, row by row: 0 red, 1 green, 2 blue; a Bayer pattern.
        black: the black level at these four pixels.
        white: the level at which the sensor saturates.
        white_balance: the factors for red, green and blue that make grey neutral; empty: the file has none.
        matrix: 3 x 3, from CIE XYZ to the camera's colours; empty: the file has none.
        flip: how LibRaw would rotate the image: 0 not, 3 by 180 degrees, 5 and 6 by 90.
        name: the file that the image was read from.
    """

    mosaic: Array
    pattern: tuple[int, int, int, int]
    black: tuple[int, int, int, int]
    white: int
    white_balance: tuple[float, ...] = ()
    matrix: tuple[tuple[float, ...], ...] = field(default=())
    flip: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.mosaic.ndim != 2 or self.mosaic.dtype != np.uint16 or not self.mosaic.size:
            raise DataError(
                f"a mosaic must be uint16 (H, W) and not empty, got {self.mosaic.dtype} {self.mosaic.shape}"
            )
        diagonals = {frozenset(self.pattern[::3]), frozenset(self.pattern[1:3])}
        if diagonals != {frozenset((RED, BLUE)), frozenset((GREEN,))}:
            raise DataError(
                f"a Bayer pattern must have two greens on one diagonal, red and blue on the other, got {self.pattern}"
            )
        if not 0 <= min(self.black) <= max(self.black) < self.white < 2**16:
            raise DataError(
                f"black levels must be below the white level, both in 16 bits; got {self.black} and {self.white}"
            )

    @property
    def letters(self) -> str:
        """The pattern in its usual notation: ``RGGB``."""
        return "".join("RGB"[colour] for colour in self.pattern)

    def planes(self) -> tuple[tuple[int, int], ...]:
        """Return the (row, column) of red, the green beside red, the green beside blue, and blue in a 2 x 2 cell."""
        red = divmod(self.pattern.index(RED), 2)
        return red, (red[0], 1 - red[1]), (1 - red[0], red[1]), (1 - red[0], 1 - red[1])

    def with_mosaic(self, mosaic: Array) -> RawImage:
        """Return the same camera's image with other values."""
        return replace(self, mosaic=mosaic)


def is_raw(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the suffix of a RAW image."""
    return Path(path).suffix.lower() in RAW_SUFFIXES


def read_raw(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> RawImage:
    """Read the mosaic of a RAW file, which may have at most ``max_pixels``.

    Raises:
        NotFoundError: the file does not exist.
        ImageError: the file is not a RAW image, or it has no mosaic, or the mosaic has no Bayer pattern.
        MissingDependencyError: rawpy is not installed.
    """
    with _opened(path, max_pixels) as (raw, file):
        return _image(raw, file)


def develop_raw(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Array:
    """Develop a RAW file as LibRaw does by default, with the camera's white balance: BGR ``uint8 (H, W, 3)``, upright.

    The errors are those of :func:`read_raw`; any pattern of colours is developed.
    """
    with _opened(path, max_pixels) as (raw, _):
        rgb: Array = raw.postprocess(use_camera_wb=True, output_bps=8)
        return np.ascontiguousarray(rgb[..., ::-1])


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], max_pixels: int) -> Iterator[tuple[Any, Path]]:
    """Open a RAW file whose size is checked, with LibRaw."""
    rawpy: Any = import_extra("rawpy", "raw")
    try:
        file = existing_file(path, "a RAW image")
    except ArtefactError as e:  # a folder, a pipe
        raise ImageError(str(e)) from e
    data = file_bytes(file, max_pixels=max_pixels)
    pixels, present = pixels_and_bytes(data)
    if pixels > max_pixels:
        raise ImageError(
            f"{file} declares {pixels:,} pixels, more than the {max_pixels:,} that are allowed (max_pixels)"
        )
    if present < pixels // MAX_PIXELS_PER_BYTE:  # LibRaw fills missing pixels with arbitrary memory
        raise ImageError(f"{file} declares {pixels:,} pixels but holds only {present:,} bytes of them: copy it again")
    try:
        with rawpy.imread(str(file)) as raw:
            check_pixels((raw.sizes.raw_height, raw.sizes.raw_width), str(file), max_pixels)
            yield raw, file
    except rawpy.LibRawError as e:
        reason = e.args[0].decode() if e.args and isinstance(e.args[0], bytes) else str(e)
        raise ImageError(f"{file} is not a RAW image that LibRaw can read ({reason})") from e
    except NotImplementedError as e:  # of rawpy, for a pattern of colours that it does not know
        raise ImageError(f"{file} has a mosaic with a pattern that is not known ({e}): it cannot be read") from e


def _image(raw: Any, file: Path) -> RawImage:
    if raw.raw_image_visible is None or raw.raw_image_visible.ndim != 2:
        raise ImageError(f"{file} has no mosaic: it is demosaiced already, or holds no image")
    mosaic = np.array(raw.raw_image_visible, np.uint16)
    numbers = raw.raw_colors_visible
    cell = numbers[:2, :2]
    names = raw.color_desc.decode()
    colours = tuple("RGB".find(names[n : n + 1] or "-") for n in cell.ravel().tolist()) if cell.shape == (2, 2) else ()
    rows, columns = (-(-side // 2) for side in numbers.shape)
    repeated = np.tile(cell, (rows, columns))[: numbers.shape[0], : numbers.shape[1]]
    if sorted(colours) != [RED, GREEN, GREEN, BLUE] or not np.array_equal(repeated, numbers):
        raise ImageError(
            f"expected a Bayer pattern, but the mosaic of {file} has another one ({names}): it cannot be packed"
        )
    levels = [int(raw.black_level_per_channel[number]) for number in cell.ravel()]
    balance = tuple(float(value) for value in raw.camera_whitebalance[:3])
    matrix = np.asarray(raw.rgb_xyz_matrix, np.float64)[:3]
    first, second, third, fourth = colours
    return RawImage(
        mosaic=mosaic,
        pattern=(first, second, third, fourth),
        black=(levels[0], levels[1], levels[2], levels[3]),
        white=int(raw.white_level),
        white_balance=balance if min(balance) > 0 else (),
        matrix=tuple(map(tuple, matrix.tolist())) if matrix.any() else (),
        flip=int(raw.sizes.flip),
        name=str(file),
    )


def pack(raw: RawImage) -> Array:
    """Pack the mosaic into ``float32 (4, ceil(H / 2), ceil(W / 2))``.

    The channels are red, the green beside red, the green beside blue, and blue. Values are ``(v - black) / (white -
    black)``: 0 to 1, or less than 0 from noise. An odd side is made even by repeating the row or column before the
    last one, which has the same colours.
    """
    height, width = raw.mosaic.shape
    even = np.pad(raw.mosaic, ((0, height % 2), (0, width % 2)), mode="reflect" if min(height, width) > 1 else "edge")
    out = np.empty((4, even.shape[0] // 2, even.shape[1] // 2), np.float32)
    for plane, (row, column), black in zip(out, raw.planes(), _levels(raw), strict=True):
        np.subtract(even[row::2, column::2], np.float32(black), out=plane)
        np.divide(plane, np.float32(raw.white - black), out=plane)
    return out


def unpack(planes: Array, like: RawImage) -> RawImage:
    """Turn four channels, as :func:`pack` made them of ``like``, back into a mosaic.

    The values are rounded, and clipped to the black and white levels.

    Raises:
        UsageError: the channels have another size.
    """
    height, width = like.mosaic.shape
    size = (-(-height // 2), -(-width // 2))
    if planes.shape != (4, *size):
        raise UsageError(f"this mosaic needs channels of {(4, *size)}, got {planes.shape}")
    even = np.empty((2 * size[0], 2 * size[1]), np.uint16)
    for plane, (row, column), black in zip(planes, like.planes(), _levels(like), strict=True):
        values = np.rint(plane.astype(np.float64) * (like.white - black) + black)
        even[row::2, column::2] = np.clip(np.nan_to_num(values, nan=black), black, like.white)
    return like.with_mosaic(np.ascontiguousarray(even[:height, :width]))


def _levels(raw: RawImage) -> list[int]:
    """Return the black level of each channel, in the order of :meth:`RawImage.planes`."""
    return [raw.black[2 * row + column] for row, column in raw.planes()]
