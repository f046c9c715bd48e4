"""Frames, and sources whose images are known one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from deploykit.errors import DeployError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.in_memory import AnyImage, name_of, read_any_image
from deploykit.runtime.images.reading import RAW_SUFFIXES, decoding_gpu
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.web import fetch_image

__all__ = ["Frame", "Images", "Item", "Read", "Skip"]

Item = AnyImage | Address
"""An image, or the address of one."""

Read = Callable[..., Array]
"""Returns the image of an item; called with ``name`` and ``turn``."""

Skip = Callable[[DeployError], None]
"""Called with the error of an unreadable image, which is then skipped."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a source: BGR ``uint8 (H, W, 3)``, the name of its file or video, and its frame number from 0.

    ``read_ms``: what reading it took, or waiting for it. ``time``: when a live frame came, in seconds since the epoch.
    """

    image: Array
    name: str
    number: int | None
    read_ms: float
    keep: bool
    time: float | None = None


@dataclass(frozen=True)
class Images:
    """Images in files, in memory or at addresses, in order.

    ``keep_files``: whether results keep the images that were read from files. A list of results does not: it would
    fill the memory, and a file can be read again. A stream does. ``folder``: the folder of the images, if they were
    not named one by one. ``root``: the folder whose sub-folders the files of results keep. ``unturned``: files that are
    read as stored, not turned by their EXIF orientation. ``names``: of the results, one for each image; empty: the
    files' own, and ``image0`` for an image without a file.
    """

    items: tuple[Item, ...]
    keep_files: bool = True
    folder: Path | None = None
    root: Path | None = None
    unturned: frozenset[Path] = frozenset()
    names: tuple[str, ...] = ()
    live = False

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", tuple(_names(self.items)))

    @property
    def total(self) -> int:
        """The number of images."""
        return len(self.items)

    @property
    def named_singly(self) -> bool:
        """Whether these are files and addresses that were not found in a folder."""
        found = self.folder or self.root
        return found is None and all(isinstance(item, (str, os.PathLike, Address)) for item in self.items)

    def part(self, start: int, stop: int) -> Images:
        """Return the images from number ``start`` up to ``stop``, under their names."""
        return replace(self, items=self.items[start:stop], names=self.names[start:stop])

    def frames(self, skip: Skip | None = None, *, read: Read = read_any_image) -> Iterator[Frame]:
        """Read the images one by one; ``read`` is :func:`read_any_image`, perhaps with arguments of its own.

        Raises:
            ImageError, NotFoundError, FetchError: an image cannot be read, and ``skip`` is None.
            UsageError, DeviceError: a GPU is to decode them, and there is none.
        """
        for load in self.loads(read):
            try:
                frame = load()
            except DeployError as e:
                if skip is None:
                    raise
                skip(e)
                continue
            yield frame

    def loads(self, read: Read = read_any_image) -> Iterator[Callable[[], Frame]]:
        """Yield a function for each image that reads it. Several threads may call them where :attr:`apart` says so.

        Raises:
            UsageError, DeviceError: a GPU is to decode them, and there is none.
        """
        decoding_gpu()  # what is wrong with the choice is not the images' fault
        return (partial(self._frame, item, name, read) for item, name in zip(self.items, self.names, strict=True))

    @property
    def apart(self) -> bool:
        """Whether no image has to do with another one while it is read: files, bytes and arrays. An open file has a
        position, and an image of Pillow loads its pixels when they are asked for."""
        return all(isinstance(item, (str, os.PathLike, bytes, np.ndarray)) for item in self.items)

    @property
    def fetched(self) -> bool:
        """Whether images come from addresses."""
        return any(isinstance(item, Address) for item in self.items)

    def _frame(self, item: Item, name: str, read: Read) -> Frame:
        in_file = isinstance(item, (str, os.PathLike))
        start = time.perf_counter()
        image = read(
            fetch_image(item) if isinstance(item, Address) else item,
            name=name,
            turn=not (in_file and item in self.unturned),
        )
        ms = (time.perf_counter() - start) * 1e3
        again = in_file and Path(name).suffix.lower() not in RAW_SUFFIXES  # which take long to develop
        return Frame(image, name, None, ms, keep=self.keep_files or not again)


def _names(items: Sequence[Item]) -> Iterator[str]:
    """Yield the names of results. Addresses that differ only in what is not shown are numbered."""
    known: dict[str, list[str]] = {}
    for number, item in enumerate(items):
        if not isinstance(item, Address):
            yield name_of(item, number)
            continue
        same = known.setdefault(item.name, [])
        if item.text not in same:
            same.append(item.text)
        place = same.index(item.text)
        yield f"{item.name}#{place + 1}" if place else item.name
