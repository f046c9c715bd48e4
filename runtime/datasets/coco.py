"""COCO annotations (JSON), validated before any computation, and the mapping of the model's labels to category ids.

Format: https://cocodataset.org/#format-data. Only the fields that the metrics need are kept. Annotations get new
ids, because a file may repeat or omit them, and the metric libraries read 0 as "not matched".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import ArtefactError, DataError
from deploykit.runtime.files import existing_file
from deploykit.strict_json import JsonError, read_json

__all__ = ["Category", "CategoryMap", "CocoData", "Image", "match_keypoints", "match_labels", "read_coco"]


MOST = 2**53  # the metric libraries read numbers as float64
MOST_BYTES = 1 << 35  # the largest public annotations have a few GB, and they are the user's own


@dataclass(frozen=True)
class Image:
    """One listed image: its id, file name and, if the file has it, (height, width)."""

    id: int
    file_name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Category:
    """One category: its id, its name and the names of its keypoints (empty: none, or unnamed)."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CocoData:
    """The contents of an annotation file, in its own order.

    Each annotation has ``id`` (from 1), ``image_id``, ``category_id``, ``bbox`` ([x, y, w, h] in pixels), ``area`` and
    ``iscrowd``, and, if the file has them, ``keypoints`` ([x, y, v] * K) and ``num_keypoints``, and ``segmentation``
    (polygons or run lengths) unchanged. ``notes``: what the file
    leaves out, and the values used instead.
    """

    path: Path
    images: tuple[Image, ...]
    categories: tuple[Category, ...]
    annotations: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    def objects(self, image_ids: Iterable[int], category_ids: Iterable[int], *, keypoints: bool) -> list[int]:
        """Return the category of every object that counts: no crowd and, for ``keypoints``, a labelled keypoint."""
        chosen, categories = set(image_ids), set(category_ids)
        return [
            a["category_id"]
            for a in self.annotations
            if a["image_id"] in chosen
            and a["category_id"] in categories
            and not a["iscrowd"]
            and (a.get("num_keypoints") or not keypoints)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of an annotation file in COCO's format."""
        sizes = ({} if i.size is None else {"height": i.size[0], "width": i.size[1]} for i in self.images)
        return {
            "images": [
                {"id": i.id, "file_name": i.file_name, **size} for i, size in zip(self.images, sizes, strict=True)
            ],
            "annotations": list(self.annotations),
            "categories": [
                {"id": c.id, "name": c.name, **({"keypoints": list(c.keypoints)} if c.keypoints else {})}
                for c in self.categories
            ],
        }

    def keypoint_counts(self, category_ids: Iterable[int]) -> set[int]:
        """Return the numbers of keypoints in the annotations of these categories; empty if there are none."""
        wanted = set(category_ids)
        return {len(a["keypoints"]) // 3 for a in self.annotations if "keypoints" in a and a["category_id"] in wanted}


@dataclass(frozen=True)
class CategoryMap:
    """The category id of each of the model's labels (None: not in the annotations), and notes on the mapping."""

    ids: tuple[int | None, ...]
    by: str
    notes: tuple[str, ...] = ()

    @property
    def category_ids(self) -> list[int]:
        """The evaluated categories, in label order."""
        return [i for i in self.ids if i is not None]


def read_coco(path: str | os.PathLike[str]) -> CocoData:
    """Read and check an annotation file.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is not JSON or not in COCO's format; the message names the first wrong entry.
    """
    file = _file(path)
    try:
        data = read_json(file, most=MOST_BYTES, constants=True)
    except OSError as e:
        raise DataError(f"cannot read the annotations {file}: {e.strerror or e}") from e
    except JsonError as e:
        raise DataError(f"expected annotations as JSON, but {file} does not parse: {e}") from e
    missing = _missing_lists(data)
    if missing:
        raise DataError(
            f"{file} is not an annotation file in COCO's format: expected an object with the lists images, "
            f"annotations and categories; {missing}"
        )
    return _Reader(file).read(data)


def _file(path: str | os.PathLike[str]) -> Path:
    try:
        return existing_file(path, "an annotation file")
    except ArtefactError as e:  # a folder
        raise DataError(str(e)) from e


def _missing_lists(data: Any) -> str:
    if not isinstance(data, dict):
        return f"it holds a {type(data).__name__}" + (" (detections, perhaps?)" if isinstance(data, list) else "")
    absent = [key for key in ("images", "annotations", "categories") if not isinstance(data.get(key), list)]
    return f"it has no {' and no '.join(absent)}" if absent else ""


class _Reader:
    """Reads the three lists of one file; every error names the file and the entry."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._without_area = 0

    def read(self, data: Mapping[str, Any]) -> CocoData:
        images = tuple(self._image(e, f"images[{i}]") for i, e in enumerate(data["images"]))
        categories = tuple(self._category(e, f"categories[{i}]") for i, e in enumerate(data["categories"]))
        for what, entries in (("images", images), ("categories", categories)):
            if not entries:
                raise DataError(f"{self._file}: the list {what} is empty")
            if len({entry.id for entry in entries}) < len(entries):
                raise DataError(f"{self._file}: two {what} share an id")
        if len({category.name for category in categories}) < len(categories):
            raise DataError(f"{self._file}: two categories share a name")
        known = {p.id for p in images}, {c.id for c in categories}
        annotations = tuple(
            self._annotation(e, f"annotations[{i}]", i + 1, *known) for i, e in enumerate(data["annotations"])
        )
        notes = []
        if self._without_area:
            notes.append(
                f"{self._without_area} annotations have no area: width times height of their box is used instead"
            )
        return CocoData(self._file, images, categories, annotations, tuple(notes))

    def _image(self, entry: Any, where: str) -> Image:
        size = None
        name = self._value(entry, "file_name", where, str)
        if "height" in entry and "width" in entry:
            size = (self._value(entry, "height", where, int), self._value(entry, "width", where, int))
        return Image(self._value(entry, "id", where, int), name, size)

    def _category(self, entry: Any, where: str) -> Category:
        names = self._value(entry, "keypoints", where, list) if isinstance(entry, dict) and "keypoints" in entry else []
        name = self._value(entry, "name", where, str)
        return Category(self._value(entry, "id", where, int), name, tuple(str(n) for n in names))

    def _annotation(
        self, entry: Any, where: str, number: int, images: set[int], categories: set[int]
    ) -> dict[str, Any]:
        image, category = (self._value(entry, key, where, int) for key in ("image_id", "category_id"))
        if image not in images or category not in categories:
            what = f"image {image}" if image not in images else f"category {category}"
            raise DataError(f"{self._file}: {where} refers to {what}, which the file does not list")
        box = self._numbers(entry, "bbox", where)
        if len(box) != 4 or min(box[2:]) < 0:
            raise DataError(f"{self._file}: {where}.bbox must be [x, y, width, height], got {box}")
        area = entry.get("area")
        if not _is_number(area):
            self._without_area += 1
            area = box[2] * box[3]
        found = {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": float(area),
            "iscrowd": int(entry.get("iscrowd") == 1),
        }
        if isinstance(entry.get("segmentation"), (list, dict)) and entry["segmentation"]:
            if not _all_finite(entry["segmentation"]):
                raise DataError(f"{self._file}: {where}.segmentation must have finite numbers")
            found["segmentation"] = entry["segmentation"]
        if "keypoints" in entry:
            points = self._numbers(entry, "keypoints", where)
            if len(points) % 3:
                raise DataError(
                    f"{self._file}: {where}.keypoints must be x, y, v per keypoint, got {len(points)} numbers"
                )
            found["keypoints"] = points
            found["num_keypoints"] = sum(v > 0 for v in points[2::3])
        return found

    def _value(self, entry: Any, key: str, where: str, kind: type) -> Any:
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"{self._file}: {where}.{key} must be of type {kind.__name__}, got {_shown(value)}")
        if isinstance(value, int) and abs(value) > MOST:
            raise DataError(f"{self._file}: {where}.{key} must be at most {MOST}, got {_shown(value)}")
        return value

    def _numbers(self, entry: Any, key: str, where: str) -> list[float]:
        values = self._value(entry, key, where, list)
        if not all(_is_number(v) for v in values):
            raise DataError(f"{self._file}: {where}.{key} must be finite numbers, got {_shown(values)}")
        return [float(v) for v in values]


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= MOST
    return isinstance(value, float) and math.isfinite(value)


def _all_finite(value: Any) -> bool:
    """Return whether all numbers in lists and objects are finite."""
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if not isinstance(value, list):
        return not isinstance(value, float) or math.isfinite(value)
    try:
        return math.isfinite(sum(value, 0.0))  # a sum is, if all of its terms are
    except OverflowError:  # a whole number that no float holds
        return False
    except TypeError:  # lists, or texts, among them
        return all(map(_all_finite, value))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def match_labels(classes: tuple[str, ...], count: int, categories: tuple[Category, ...]) -> CategoryMap:
    """Map each label of a model to its category: by name, else by position.

    The match is by name if the model has every category, or the annotations have every class; case, ``_`` and ``-`` are
    ignored. Classes that only one side has are left out, with a note. The match is by position (categories by id), with
    a note, if both have the same number and no common name has another position.

    Args:
        classes: the model's class names; empty: none are known.
        count: the number of classes; 0: unknown.
        categories: the categories of the annotations.

    Raises:
        DataError: neither match is possible, or the classes of the model are unknown.
    """
    if not count:
        raise DataError("the model does not name its classes: pass a spec that does (--spec FILE)")
    ordered = sorted(categories, key=lambda c: c.id)
    names, theirs = [_plain(c) for c in classes], [_plain(c.name) for c in ordered]
    ids = {name: c.id for name, c in zip(theirs, ordered, strict=True)}
    unique = len(set(names)) == len(names) and len(ids) == len(ordered)
    if classes and unique and (set(names) <= set(theirs) or set(theirs) <= set(names)):
        return CategoryMap(tuple(ids.get(name) for name in names), "name", _only_one_side(names, ordered, classes))
    moved = [n for n in set(names) & set(theirs) if names.index(n) != theirs.index(n)]
    if count == len(ordered) and not moved:
        both = zip(classes, names, ordered, strict=False)
        pairs = [f"{a!r} is {c.name!r}" for a, plain, c in both if plain != _plain(c.name)]
        told = f": {_some(pairs)}" if pairs else " (the model names no classes)"
        note = f"classes and categories were matched by position, because their names differ{told}"
        return CategoryMap(tuple(c.id for c in ordered), "position", (note,))
    raise DataError(
        f"the model's classes do not fit the annotations' categories: the model has {count} "
        f"({_some(classes) or 'without names'}), the annotations {len(ordered)} ({_some([c.name for c in ordered])}); "
        "expected the same names, or one side's among the other's"
    )


def _only_one_side(names: list[str], categories: list[Category], classes: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    lacking = [c.name for c in categories if _plain(c.name) not in names]
    if lacking:
        shared = len(categories) - len(lacking)
        notes.append(
            f"the metrics are over the {shared} of {len(categories)} categories that the model knows; it does not "
            f"know {_some(lacking)}"
        )
    known = {_plain(c.name) for c in categories}
    extra = [c for c in classes if _plain(c) not in known]
    if extra:
        notes.append(f"what the model finds of {_some(extra)} does not count: the annotations have no such category")
    return tuple(notes)


def match_keypoints(names: tuple[str, ...], data: CocoData, labels: CategoryMap) -> tuple[list[int], tuple[str, ...]]:
    """Return the model's keypoint for each of the annotations', in their order, and notes on the match.

    The match is by name if both have the same names, else by position.

    Raises:
        DataError: the annotations have no keypoints or another number of them.
    """
    chosen = [c for c in data.categories if c.id in labels.category_ids]
    counts = {len(c.keypoints) for c in chosen if c.keypoints} | data.keypoint_counts(labels.category_ids)
    if not counts:
        raise DataError(f"{data.path} has no keypoints: the task keypoints needs annotations with them")
    if counts != {len(names)}:
        found = " or ".join(str(n) for n in sorted(counts))
        raise DataError(f"the model has {len(names)} keypoints, the annotations in {data.path} have {found}")
    own = [_plain(n) for n in names]
    orders = {tuple(_plain(n) for n in c.keypoints) for c in chosen if c.keypoints}
    if orders == {tuple(own)}:
        return list(range(len(own))), ()
    (theirs, *others) = orders or {()}
    if not others and len(set(own)) == len(own) and sorted(theirs) == sorted(own):
        return [own.index(n) for n in theirs], ("the annotations have the keypoints in another order: matched by name",)
    return list(range(len(own))), ("keypoints were matched by position: their names differ or are not given",)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()


def _some(names: Iterable[str]) -> str:
    """Return up to five names and the number of the others."""
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
