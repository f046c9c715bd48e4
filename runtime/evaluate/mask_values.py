"""What the values of a label map mean: which value is which class, and which one is ignored."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, UsageError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.headers.image_header import read_header
from deploykit.runtime.images.pixels import check_pixels
from deploykit.runtime.images.reading import encoded_image
from deploykit.runtime.options import EvalOptions

__all__ = ["IGNORED", "MaskValues", "read_label_map"]

IGNORED = 255  # the value of pixels that do not count, in PASCAL VOC, Cityscapes and others
LARGEST = 2**16 - 1
GREY_MODES = ("L", "P", "I", "I;16", "I;16B", "1")


@dataclass(frozen=True)
class MaskValues:
    """The meaning of the values in label maps.

    Attributes:
        classes: the value of each class, in the order of the network's classes.
        ignored: the value of pixels that do not count; None: all pixels count.
        said: whether the caller said what 255 means, so that nothing about it is a guess.
    """

    classes: tuple[int, ...]
    ignored: int | None
    said: bool = False

    @staticmethod
    def of(options: EvalOptions, classes: int, names: Sequence[str] = ()) -> MaskValues:
        """Return the meaning that the options give to the values, for a network with so many classes.

        Without options the values are those in the names of the classes (``mask 0``, ``mask 255``, as a U-Net's weights
        state them), else 0, 1, 2, ...; and 255 is ignored unless it is a class.

        Raises:
            UsageError: the values are repeated or out of range, or their number is not that of the classes.
        """
        typed, ignored = options.mask_values, options.ignore_label
        named = [re.fullmatch(r"mask (\d+)", name) for name in names]
        if typed is None and len(named) == classes and all(named):
            typed = tuple(int(match[1]) for match in named if match)
        values = tuple(range(classes)) if typed is None else tuple(typed)
        if len(values) != classes:
            raise UsageError(
                f"--mask-values must give a value for each of the network's {classes} classes, got {len(values)} values"
            )
        numbers = [*values, *([ignored] if isinstance(ignored, int) else [])]
        if len(set(values)) < len(values) or not all(0 <= number <= LARGEST for number in numbers):
            raise UsageError(f"the values of label maps must be different numbers from 0 to {LARGEST}, got {numbers}")
        said = typed is not None or ignored is not None
        if ignored is None:
            ignored = IGNORED if IGNORED not in values else "none"
        return MaskValues(values, None if ignored == "none" else int(ignored), said)

    @property
    def described(self) -> str:
        """The values in words."""
        told = ", ".join(map(str, self.classes[:8])) + (", ..." if len(self.classes) > 8 else "")
        if self.classes == tuple(range(len(self.classes))):
            told = f"0 to {len(self.classes) - 1}"
        return told + ("; no value is ignored" if self.ignored is None else f"; {self.ignored} is ignored")

    def labels(self, found: Array, file: Path) -> Array:
        """Return the class of each pixel, ``int64 (H, W)``; an ignored pixel has the number of classes.

        Raises:
            DataError: the label map has a value that is no class and is not ignored; the message names each and counts
                its pixels.
        """
        table = np.full(LARGEST + 1, -1, np.int64)
        table[list(self.classes)] = np.arange(len(self.classes))
        if self.ignored is not None:
            table[self.ignored] = len(self.classes)
        inside = found if found.size and found.min() >= 0 and found.max() <= LARGEST else np.clip(found, 0, LARGEST)
        labels: Array = table[inside]
        wrong = (labels < 0) | (inside != found)
        if wrong.any():
            raise DataError(self._unknown(found[wrong], file))
        return labels

    def _unknown(self, values: Array, file: Path) -> str:
        numbers, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts)
        told = ", ".join(f"{numbers[i]} ({counts[i]:,} pixel{'' if counts[i] == 1 else 's'})" for i in order[:4])
        told += f" and {len(order) - 4} more" if len(order) > 4 else ""
        lossy = "; JPEG changes the values, a label map needs PNG" if file.suffix.lower() in (".jpg", ".jpeg") else ""
        return (
            f"{file} has the label{'s' * (len(order) != 1)} {told}, but the network has {len(self.classes)} classes "
            f"({self.described}): pass --mask-values with the value of each class, or --ignore-label{lossy}"
        )


def read_label_map(file: Path, max_pixels: int) -> tuple[Array, bool]:
    """Read a label map ``(H, W)``: grey values, or the indices of a palette; and whether it was saved as colours.

    OpenCV turns the indices of a palette into colours, so Pillow reads these files. Grey values that were saved as
    three equal channels are taken as what they are.

    Raises:
        DataError: the file cannot be read, or has colours instead of labels.
        ImageError: it has more than ``max_pixels``, or is no file.
    """
    image: Any = import_extra("PIL.Image", "eval")
    data = encoded_image(file, max_pixels=max_pixels)
    header = read_header(data)
    if header is not None:
        check_pixels(header.size, str(file), max_pixels)
    try:
        with warnings.catch_warnings(), image.open(BytesIO(data)) as opened:
            warnings.simplefilter("ignore")  # about large images: the limit is checked above
            mode, pixels = opened.mode, np.array(opened)
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as e:
        raise DataError(f"cannot read the label map {file}: {e}") from e
    if mode in GREY_MODES:
        return pixels.astype(np.int64), False
    if mode == "RGB" and (pixels == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.int64), True
    colours = f" with {len(np.unique(pixels.reshape(-1, 3), axis=0)):,} colours" if mode == "RGB" else ""
    raise DataError(
        f"a label map must have one channel or a palette, whose values are the classes, but {file} is {mode}{colours}: "
        "save the number of the class in each pixel, as a grey PNG"
    )
