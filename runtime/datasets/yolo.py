"""YOLO data sets: ``data.yaml``, the images of its splits and their label files.

The format is that of YOLOv5 to YOLOv7 and of the ultralytics package, as their documentation describes it (facts only;
the code is ours): ``path``, ``train``, ``val`` and ``test`` name folders of images, lists of images or several of both;
``names`` and ``nc`` the classes, ``kpt_shape`` the keypoints. What the file asks to be downloaded or run is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import DataError, NotFoundError
from deploykit.runtime.files import existing_file, exists, is_folder, similar_names
from deploykit.runtime.images.folders import IMAGE_SUFFIXES

__all__ = ["CALIBRATED", "EVALUATED", "SPLITS", "YoloDataset", "is_yolo", "label_file", "read_yolo"]

MOST_BYTES = 1 << 20  # of data.yaml: a thousand names take some 20 kB
FILES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The names of a split in data sets, by its usual name."""
EVALUATED = ("val", "test", "train")
"""The split to evaluate: the first of these that a data set has."""
CALIBRATED = ("train", "val", "test")
"""The split to measure ranges on: not the one that accuracy is measured on, if there is another."""


@dataclass(frozen=True)
class YoloDataset:
    """A data set that a ``data.yaml`` describes.

    Attributes:
        file: the ``data.yaml``.
        root: the folder that its paths are relative to.
        splits: the folders and list files of each split, as they are on disk.
        names: the names of the classes.
        kpt_shape: number of keypoints and of values per keypoint (2 or 3); None: there are no keypoints.
        keypoints: the names of the keypoints; empty: not named.
    """

    file: Path
    root: Path
    splits: Mapping[str, tuple[Path, ...]]
    names: tuple[str, ...]
    kpt_shape: tuple[int, int] | None = None
    keypoints: tuple[str, ...] = ()

    def split(self, *wanted: str) -> str:
        """Return the first of the ``wanted`` splits that the data set has.

        Raises:
            DataError: it has none of them; the message lists those that it has.
        """
        found = next((name for name in wanted if self.splits.get(name)), None)
        if found is None:
            raise DataError(f"{self.file} has no split {' or '.join(wanted)}, only {', '.join(self.splits)}")
        return found

    def images(self, split: str) -> list[Path]:
        """Return the images of a split, in the order of their names; of a list file, in its own order.

        Raises:
            DataError, NotFoundError: the split is not there, or has no image.
        """
        found: dict[Path, None] = {}
        for place in self.splits[self.split(split)]:
            found |= dict.fromkeys(_in_folder(place) if is_folder(place) else _in_list(place))
        if not found:
            raise DataError(f"the split {split} of {self.file} has no images ({_shown(self.splits[split])})")
        return list(found)


def is_yolo(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a YOLO data set: a YAML file, or a folder with its ``data.yaml``."""
    place = Path(path).expanduser()
    return place.suffix.lower() in (".yaml", ".yml") or any(exists(place / name) for name in FILES)


def read_yolo(path: str | os.PathLike[str]) -> YoloDataset:
    """Read a ``data.yaml``, or that of a folder.

    Raises:
        NotFoundError: there is no such file, or a folder of it is missing. DataError: it describes no data set.
    """
    place = Path(path).expanduser()
    if is_folder(place):
        place = next((place / name for name in FILES if exists(place / name)), place / FILES[0])
    file = existing_file(place, "the data.yaml of a data set")
    data = _mapping(file)
    names = _names(file, data)
    asked = {name: _entries(file, data, spellings) for name, spellings in SPLITS.items()}
    root, splits = _places(file, data.get("path"), {name: e for name, e in asked.items() if e})
    shape = _kpt_shape(file, data.get("kpt_shape"))
    return YoloDataset(file, root, splits, names, shape, _keypoint_names(data.get("kpt_names"), shape))


def label_file(image: Path) -> Path:
    """Return where the labels of an image are: its last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _mapping(file: Path) -> dict[str, Any]:
    import yaml

    if file.stat().st_size > MOST_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; the data.yaml of a data set has at most {MOST_BYTES}")
    try:
        # the base loader builds strings, lists and dictionaries only; a class that is called "no" stays a string
        data = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise DataError(f"expected YAML in {file}, which does not parse: {' '.join(str(e).split())}") from e
    if not isinstance(data, dict):
        raise DataError(f"{file} does not describe a data set: expected names, train and val, found no mapping")
    return data


def _names(file: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
    names = data.get("names")
    if isinstance(names, list) and names and all(isinstance(n, str) for n in names):
        found = tuple(names)
    elif isinstance(names, dict) and names:
        numbers = sorted(-1 if (number := _number(k)) is None else number for k in names)
        if numbers != list(range(len(names))) or not all(isinstance(n, str) for n in names.values()):
            raise DataError(f"{file}: names must have the numbers 0 to {len(names) - 1}, each once, with a text each")
        found = tuple(name for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    elif names is None and _number(data.get("nc")):
        found = tuple(str(i) for i in range(_number(data["nc"]) or 0))
    else:
        raise DataError(f"{file} does not describe a data set: it has no names (a list, or number: name)")
    if (count := _number(data.get("nc"))) is not None and count != len(found):
        raise DataError(f"{file}: nc is {count}, but there are {len(found)} names")
    if len(set(found)) < len(found):
        raise DataError(f"{file}: two classes are called {next(n for n in found if found.count(n) > 1)!r}")
    return found


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 7 else None


def _entries(file: Path, data: Mapping[str, Any], spellings: Iterable[str]) -> list[str]:
    value: Any = next((data[name] for name in spellings if data.get(name)), [])
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{file}: a split must be a path or a list of paths, got {value!r}")
    return entries


def _places(file: Path, stated: Any, splits: Mapping[str, list[str]]) -> tuple[Path, dict[str, tuple[Path, ...]]]:
    """Find the folder that the paths are relative to: where the file says, from its own folder or from here."""
    if not splits:
        raise DataError(f"{file} does not describe a data set: it has no train, val or test")
    told = Path(stated).expanduser() if isinstance(stated, str) and stated else Path()
    roots = list(dict.fromkeys([file.parent / told, Path.cwd() / told, file.parent]))
    for root in roots:
        found = {name: [_existing(root, entry) for entry in entries] for name, entries in splits.items()}
        there = {name: tuple(p for p in paths if p) for name, paths in found.items() if all(paths)}
        if there:
            return root, there
    name, entries = next(iter(splits.items()))
    tried = ", ".join(str(root / entries[0]) for root in roots)
    near = similar_names(roots[0] / entries[0])
    raise NotFoundError(f"{file} names {entries[0]} for its split {name}, and nothing is there (tried {tried}){near}")


def _existing(root: Path, entry: str) -> Path | None:
    """Return the place of an entry; ``../train/images`` may mean ``train/images``, as one labelling service writes."""
    tries = [entry, *([entry[3:]] if entry.startswith("../") else [])]
    return next((path for path in (root / Path(e).expanduser() for e in tries) if exists(path)), None)


def _in_folder(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _in_list(file: Path) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"expected a list of images, one per line, in {file}: {e}") from e
    return [file.parent / Path(line.strip()) for line in lines if line.strip()]


def _kpt_shape(file: Path, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    numbers = [_number(v) for v in value] if isinstance(value, list) else []
    if len(numbers) != 2 or not numbers[0] or numbers[1] not in (2, 3):
        raise DataError(f"{file}: kpt_shape must be [keypoints, 2 or 3], got {value!r}")
    return numbers[0], numbers[1]


def _keypoint_names(value: Any, shape: tuple[int, int] | None) -> tuple[str, ...]:
    """Return the names of the keypoints of the first class: others of the same set have the same."""
    if isinstance(value, dict) and value:
        value = next(iter(value.values()))
    fits = isinstance(value, list) and shape is not None and len(value) == shape[0]
    return tuple(map(str, value)) if fits else ()


def _shown(places: Iterable[Path]) -> str:
    return ", ".join(map(str, places))
