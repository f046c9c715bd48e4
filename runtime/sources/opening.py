"""Which kind of source something is, and opening it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal, cast

from deploykit.atomic import temporary_folder
from deploykit.errors import NotFoundError, UsageError, os_errors_as_output_errors
from deploykit.numerals import typed_number
from deploykit.runtime.files import exists, is_folder, similar_names
from deploykit.runtime.images.folders import VIDEO_SUFFIXES, list_images, natural_order
from deploykit.runtime.images.in_memory import AnyImage, is_image
from deploykit.runtime.sources.addresses import Address, is_address
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.live import Live
from deploykit.runtime.sources.names import LIST_SUFFIX, entries_of, fixed_part, is_pattern, matches
from deploykit.runtime.sources.video import Video
from deploykit.runtime.sources.web import content_at, fetch_video, is_finished

__all__ = ["Kind", "joined", "kind_of", "open_entries", "open_images", "open_sources", "refuse_many"]

IMAGES = "a path, encoded bytes, an open binary file, a BGR array, a Pillow image, a tensor"

Kind = Literal["image", "folder", "video", "camera", "stream", "pattern", "list"]


def kind_of(source: str | os.PathLike[str] | int) -> Kind:
    """Return the kind of a source.

    A number is a camera and a name with ``*``, ``?`` or ``[`` a pattern, unless a file has that name. For everything
    else the file system and the suffix decide; an address without a known suffix counts as that of an image.
    """
    if isinstance(source, int):
        return "camera"
    if is_address(source):
        kind = Address(str(source)).kind
        return "image" if kind == "unknown" else kind
    text, path = os.fspath(source), Path(source)
    if is_folder(path):
        return "folder"
    if typed_number(text) is not None and not exists(path):
        return "camera"
    if is_pattern(text):
        return "pattern"
    suffix = path.suffix.lower()
    return "video" if suffix in VIDEO_SUFFIXES else "list" if suffix == LIST_SUFFIX else "image"


def refuse_many(source: object) -> None:
    """Check that a source is not one of many images.

    Raises:
        UsageError: it is a folder, a video, a camera, a stream, a pattern or a list of files.
    """
    kind = kind_of(source) if isinstance(source, (str, os.PathLike, int)) else "image"
    if kind != "image":
        word = os.fspath(source) if isinstance(source, os.PathLike) else source
        raise UsageError(
            f"a call takes one image, or a list of images, but {word} is a {kind}: iterate over model.stream({word!r})"
        )


def open_images(source: AnyImage | Sequence[AnyImage]) -> Images:
    """Return one image, or a list of images, as a source.

    Raises:
        UsageError: it is something else, or one of them is a folder, a video, a camera, a pattern or a list of files.
    """
    refuse_many(source)
    items = _items_of(source)
    for item in items:
        refuse_many(item)
    return _images(items, keep_files=is_image(source))


def open_sources(
    source: AnyImage | int | Sequence[AnyImage | int], *, raw: bool = False, recursive: bool = False
) -> list[Images | Video]:
    """Open anything that :meth:`deploykit.Predictor.stream` accepts, as objects with ``frames()``.

    Images that follow each other are one object, so that they can share a batch.

    Args:
        source: an image, a folder, a pattern, a list of files (``.txt``), a video, a camera number, the address of an
            image, a video or a live stream, or a list of these.
        raw: take the RAW files of a folder too.
        recursive: take the images of a folder's sub-folders too.

    Raises:
        NotFoundError: the file, folder or camera does not exist, or no file matches the pattern.
        ImageError: a folder or a list holds no image, or a video cannot be opened.
        UsageError: the source is of another type.
    """
    if isinstance(source, (str, os.PathLike, int)):
        return _open_named(source, raw, recursive)
    opened: list[Images | Video] = []
    for single, group in groupby(_items_of(source), key=_is_single):
        if single:
            opened.append(_images(list(group), keep_files=is_image(source)))
        else:
            opened += [each for item in group for each in open_sources(item, raw=raw, recursive=recursive)]
    return opened


def joined(sources: Iterable[Images | Video]) -> list[Images | Video]:
    """Return sources with those images as one that follow each other and were named one by one."""
    done: list[Images | Video] = []
    for each in sources:
        last = done[-1] if done else None
        if isinstance(last, Images) and isinstance(each, Images) and last.named_singly and each.named_singly:
            done[-1] = Images(last.items + each.items)
        else:
            done.append(each)
    return done


def _items_of(source: object) -> list[AnyImage | int]:
    """Return one image, or the items of a list, whose types are checked."""
    if is_image(source):
        return [source]
    if not isinstance(source, Sequence):
        raise UsageError(f"a source must be {IMAGES}, a camera number or a list, got {type(source).__name__}")
    unknown = [type(item).__name__ for item in source if not (is_image(item) or isinstance(item, int))]
    if unknown:
        raise UsageError(f"a list of images may hold {IMAGES}, got {unknown[0]}")
    return list(source)


def _is_single(item: AnyImage | int) -> bool:
    if is_address(item):
        return Address(cast("str", item)).kind == "image"
    return not isinstance(item, (str, os.PathLike, int)) or kind_of(item) == "image"


def _images(items: Sequence[AnyImage | int], *, keep_files: bool) -> Images:
    found = (Address(cast("str", item)) if is_address(item) else cast("AnyImage", item) for item in items)
    return Images(tuple(found), keep_files=keep_files)


def _check_exists(image: AnyImage) -> None:
    if isinstance(image, (str, os.PathLike)) and not exists(path := Path(image)):
        raise NotFoundError(
            f"an image, video or folder was expected at {path}, which does not exist{similar_names(path)}"
        )


def _open_named(source: str | os.PathLike[str] | int, raw: bool, recursive: bool) -> list[Images | Video]:
    if is_address(source):
        return [_open_address(Address(str(source)))]
    kind = kind_of(source)
    if isinstance(source, int) or kind == "camera":
        return [Live(source if isinstance(source, int) else int(os.fspath(source)))]
    path = Path(source)
    if kind == "folder":
        images = sorted(list_images(path, raw=raw, recursive=recursive), key=natural_order)
        return [Images(tuple(images), folder=path, root=path if recursive else None)]
    if kind == "pattern":
        pattern = os.fspath(source)
        return _open_files(matches(pattern), root=fixed_part(pattern) if "**" in path.parts else None)
    _check_exists(path)
    if kind == "list":
        return open_entries(entries_of(path))
    return [Video(path)] if kind == "video" else [Images((path,))]


def _open_address(address: Address) -> Images | Video:
    kind = address.kind
    if kind == "unknown":
        content = content_at(address)
        kind = "video" if content == "video" else "stream" if content in ("stream", "playlist") else "image"
    if kind == "image":
        return Images((address,))
    if kind == "stream":
        return Video(address) if address.is_playlist and is_finished(address) else Live(address)
    with temporary_folder() as folder:
        place = folder / f"video{address.suffix}"
        with os_errors_as_output_errors(place), place.open("wb") as file:
            fetch_video(address, file)
        return Video(place, name=address.name)  # which stays open when its file has no name any more


def open_entries(entries: Iterable[Path | str]) -> list[Images | Video]:
    """Open the entries of a list: files, and addresses.

    Raises:
        ImageError, NotFoundError, FetchError, UsageError: one of them cannot be opened.
    """
    opened: list[Images | Video] = []
    for text, group in groupby(entries, key=lambda entry: isinstance(entry, str)):
        if text:
            opened += [_open_address(Address(cast("str", entry))) for entry in group]
        else:
            opened += _open_files([cast("Path", entry) for entry in group])
    return joined(opened)


def _open_files(files: Sequence[Path], root: Path | None = None) -> list[Images | Video]:
    """Open files: images that follow each other as one object, and each video by itself."""
    opened: list[Images | Video] = []
    for video, group in groupby(files, key=lambda file: file.suffix.lower() in VIDEO_SUFFIXES):
        same = tuple(group)
        opened += [Video(file) for file in same] if video else [Images(same, root=root)]
    return opened
