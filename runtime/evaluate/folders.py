"""Images and their ground truth in folders: one folder per class, or two folders with files of the same names.

And images whose EXIF orientation turns them against their annotations. An annotation tool that ignores EXIF gives
boxes for the pixels as stored, and pycocotools never looks at an image. An image that would be turned by a quarter
tells which pixels were meant, because its width and height change places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

from deploykit.errors import DataError, NotFoundError, UsageError
from deploykit.runtime.datasets.yolo import EVALUATED, SPLITS
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.images.folders import IMAGE_SUFFIXES, list_images
from deploykit.runtime.images.headers.image_header import ImageHeader, read_header
from deploykit.runtime.images.reading import RAW_SUFFIXES

__all__ = [
    "class_folders",
    "existing_folder",
    "first_of",
    "pairs_of",
    "split_folder",
    "stored_size",
    "unturned_images",
    "upright_size",
]

FIRST_BYTES = 1 << 16  # in most JPEG files these hold the EXIF block and the size

SizeOf = Callable[[Path], "tuple[int, int] | None"]

T = TypeVar("T")


def existing_folder(path: Path, what: str) -> Path:
    """Return ``path`` if it is a folder.

    Raises:
        NotFoundError: it is not a folder; ``what`` names its expected contents.
    """
    if not path.is_dir():
        raise NotFoundError(f"expected a folder with {what} at {path}, which is not a folder")
    return path


def class_folders(root: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return every image with its class; each class has a folder, which has the name or the number of the class.

    Raises:
        DataError: there is no folder, or one belongs to no class.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    if not folders:
        raise DataError(f"{root} has no folders: classification takes one folder of images per class")
    names = {_plain(name): number for number, name in enumerate(classes)}
    numbered = all(p.name.isdecimal() and int(p.name) < max(len(classes), 1) for p in folders)
    labels = {p: int(p.name) if numbered else names.get(_plain(p.name)) for p in folders}
    unknown = [p.name for p, label in labels.items() if label is None]
    if unknown:
        raise DataError(
            f"the folder {unknown[0]!r} ({len(unknown)} of {len(folders)} in {root}) is not one of the model's "
            f"{len(classes)} classes ({', '.join(classes[:3])}, ...)"
        )
    return [(image, cast(int, labels[p])) for p in folders for image in list_images(p)]


def split_folder(root: Path, split: str | None) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a split, with a note, where ``root`` holds splits (``train``, ``val``, ...), else ``root``.

    Raises:
        UsageError: a split is asked for that ``root`` has not.
    """
    folders = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    splits = {
        name: next(folders[s] for s in spellings if s in folders)
        for name, spellings in SPLITS.items()
        if any(s in folders for s in spellings)
    }
    known = {s for spellings in SPLITS.values() for s in spellings}
    if not splits or not set(folders) <= known:
        splits = {}
    if split is not None and split not in splits:
        known_here = f"only {', '.join(splits)}" if splits else "and no others"
        raise UsageError(f"{root} has no split {split!r}, {known_here}")
    if not splits:
        return root, ()
    chosen = split or next(name for name in EVALUATED if name in splits)
    return splits[chosen], () if split else (f"the split {splits[chosen].name} of {root} was taken",)


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ")


def pairs_of(task: str, data: Data, truths: str, *, raw: bool = False) -> list[tuple[Path, Path]]:
    """Pair each image of one folder with the file of the same stem in the other.

    Args:
        task: the evaluated task.
        data: the two folders.
        truths: the name of the ground truth files in messages.
        raw: images may be RAW files.

    Raises:
        UsageError: no folder of images is given. NotFoundError: a folder does not exist. DataError: a file is missing.
    """
    if data.images is None:
        raise UsageError(
            f"the task {task} needs --images, the folder of images, besides --data, the folder of {truths}"
        )
    images, folder = existing_folder(data.images, "images"), existing_folder(data.truth, "label maps or targets")
    suffixes = IMAGE_SUFFIXES | (RAW_SUFFIXES if raw else set())
    known = {p.stem: p for p in folder.iterdir() if p.suffix.lower() in suffixes}
    found = list_images(images, raw=raw)
    missing = [image.name for image in found if image.stem not in known]
    if missing:
        told = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{folder} has no file of the same name for {len(missing)} of the images in {images}: {told}")
    return [(image, known[image.stem]) for image in found]


def first_of(cases: Sequence[T], limit: int | None) -> tuple[Sequence[T], tuple[str, ...]]:
    """Return the first ``limit`` cases, and a note if there are more."""
    chosen = cases[:limit]
    left_out = len(chosen) < len(cases)
    return chosen, (f"only the first {len(chosen)} of {len(cases)} images were evaluated",) if left_out else ()


def unturned_images(paths: Sequence[Path], size_of: SizeOf, what: str) -> tuple[frozenset[Path], tuple[str, ...]]:
    """Return the images that are to be used as stored, and a note on them.

    An image of which the annotations have the stored size, and not the upright one, is used as stored. Where the two
    sizes are equal (turned by a half, mirrored, or square), it is treated as the others are, if these agree.

    Args:
        paths: the images.
        size_of: the (height, width) that the annotations of an image give it; None: unknown.
        what: the name of the annotations in the note.
    """
    stored: list[Path] = []
    unclear: list[Path] = []
    turned = False
    for path in paths:
        header = _header(path)
        if header is None or header.orientation == 1:
            continue
        size = size_of(path)
        if size is None or header.size == header.upright_size:
            unclear.append(path)
        elif size == header.size:
            stored.append(path)
        elif size == header.upright_size:
            turned = True
    if not stored:
        return frozenset(), ()
    told = ", ".join(path.name for path in stored[:3]) + (", ..." if len(stored) > 3 else "")
    note = (
        f"the {what} of {len(stored)} image{'' if len(stored) == 1 else 's'} ({told}) fit the pixels as stored and not "
        "as turned by EXIF: they are evaluated as stored"
    )
    if turned or not unclear:
        return frozenset(stored), (note,)
    return frozenset(stored + unclear), (f"{note}, and so are {len(unclear)} others whose orientation no size tells",)


def stored_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) of an image as stored; None if its header cannot be read."""
    header = _header(path)
    return None if header is None else header.size


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return the (height, width) of an image turned upright; None if its header cannot be read."""
    header = _header(path)
    return None if header is None else header.upright_size


def _header(path: Path) -> ImageHeader | None:
    """Return the header of an image file; None if it cannot be read, which is reported when the image is."""
    if path.suffix.lower() in RAW_SUFFIXES or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(FIRST_BYTES)
            found = read_header(data)
            if found is None or found.format != "JPEG":  # other formats may have their EXIF block at the end
                found = read_header(data + file.read())
    except OSError:
        return None
    return found
