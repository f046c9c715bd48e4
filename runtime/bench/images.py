"""The images of a benchmark, encoded and in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import ImageError, UsageError
from deploykit.runtime.bench.report import Encoded
from deploykit.runtime.images.reading import decode_image, encoded_image
from deploykit.runtime.options import MAX_PIXELS
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.opening import kind_of, open_sources

__all__ = ["Source", "encoded_images", "synthetic_image"]

Source = str | os.PathLike[str] | bytes

FULL_HD = (1080, 1920)
MOST_IMAGES, MOST_BYTES = 100, 256_000_000  # that are kept in memory


def encoded_images(source: Source | Sequence[Source] | None, max_pixels: int = MAX_PIXELS) -> Encoded:
    """The images of a source, read into memory and decoded once, so that one that is broken is found out before.

    Raises:
        UsageError: a video, a camera, or images that are decoded already.
        NotFoundError, ImageError: no such image, none at all, or one that cannot be read.
    """
    if source is None:
        return synthetic_image()
    sources = [source] if isinstance(source, (str, os.PathLike, bytes)) else list(source)
    items = [item for one in sources for item in _images_of(one)]
    if not items:
        raise ImageError("a benchmark needs at least one image, got an empty list")
    data: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    for item in items[:MOST_IMAGES]:
        encoded = item if isinstance(item, bytes) else encoded_image(item, max_pixels=max_pixels)
        if data and sum(map(len, data)) + len(encoded) > MOST_BYTES:
            break
        name = "an encoded image" if isinstance(item, bytes) else str(item)
        image = decode_image(encoded, name, channels=None, max_pixels=max_pixels)
        data.append(encoded)
        sizes.append((image.shape[0], image.shape[1]))
    names = tuple("bytes in memory" if isinstance(one, bytes) else os.fspath(one) for one in sources)
    return Encoded(names, tuple(data), tuple(sizes), left_out=len(items) - len(data))


def _images_of(source: Source) -> list[Path | bytes]:
    if isinstance(source, bytes):
        return [source]
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"a benchmark decodes its images: expected files, folders or encoded bytes, got {type(source).__name__}"
        )
    kind = kind_of(source)
    if kind in ("video", "camera", "stream"):
        raise UsageError(f"a benchmark runs on images, again and again, but {os.fspath(source)} is a {kind}")
    found: list[Path | bytes] = []
    for opened in open_sources(source):
        if not isinstance(opened, Images) or any(isinstance(item, Address) for item in opened.items):
            raise UsageError(
                f"a benchmark reads images from files, but {os.fspath(source)} holds a video or an address"
            )
        found += [Path(name) for name in opened.names]
    return found


def synthetic_image(channels: int = 3) -> Encoded:
    """A 1080p JPEG of about the bytes of a photograph: coloured noise in cells of several sizes, large ones stronger.

    With four channels it is a PNG, because JPEG has only three; the fourth is the first once more. In bytes all along,
    because floats would take memory of which the process keeps some, and that is measured too.
    """
    height, width = FULL_HD
    random = np.random.default_rng(0)
    image = np.full((height, width, 3), 114, np.uint8)
    for across, strength in ((4, 0.6), (16, 0.4), (64, 0.25), (256, 0.15), (width, 0.03)):
        cells = random.integers(0, 256, (across * 9 // 16, across, 3), np.uint8)
        cells = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.addWeighted(image, 1.0, cells, strength, -127.5 * strength, dst=image)
    if channels > 4:
        raise UsageError(f"no synthetic image has the {channels} channels that this network takes: give one (--source)")
    if channels == 4:
        done, data = cv2.imencode(".png", np.dstack((image, image[..., 0])), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    else:
        done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return Encoded(("synthetic frame (seed 0)",), (data.tobytes(),), (FULL_HD,), synthetic=True)
