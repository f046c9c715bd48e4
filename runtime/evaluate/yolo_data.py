"""YOLO data sets as COCO annotations, which everything that is scored is read as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, UsageError
from deploykit.runtime.datasets.coco import Category, CocoData, Image, read_coco
from deploykit.runtime.datasets.labels import Label, read_labels
from deploykit.runtime.datasets.yolo import EVALUATED, SPLITS, YoloDataset, is_yolo, label_file, read_yolo
from deploykit.runtime.evaluate.folders import upright_size
from deploykit.runtime.evaluate.meter import Data

__all__ = ["annotations_of", "coco_from_yolo"]


def annotations_of(data: Data, split: str | None) -> tuple[CocoData, Path]:
    """Return the annotations of an evaluation, and the folder that their file names are relative to.

    Raises:
        NotFoundError, DataError: see :func:`read_coco` and :func:`coco_from_yolo`.
        UsageError: a folder of images or a split is given where there is none, or no folder where one is needed.
    """
    if is_yolo(data.truth):
        if data.images is not None:
            raise UsageError(f"{data.truth} names its images itself: leave --images out")
        dataset = read_yolo(data.truth)
        return coco_from_yolo(dataset, split), dataset.root
    if split is not None:
        raise UsageError(f"--split is for a YOLO data set (data.yaml) or a folder of splits, not for {data.truth}")
    found = read_coco(data.truth)
    if data.images is None:
        raise UsageError("--images is missing: the folder with the images that the annotations list")
    return found, data.images


def coco_from_yolo(dataset: YoloDataset, split: str | None = None) -> CocoData:
    """Return the labels of a split as COCO annotations, in pixels of the upright images.

    Category ids are the classes' numbers from 1, image ids count from 1, and file names are relative to the data set's
    root where they lie in it. An outline becomes a polygon with its area; the area of a box is its width times height.
    An image without a label file, or with an empty one, has no objects.

    Args:
        dataset: the data set.
        split: ``train``, ``val`` or ``test``; None: the first that there is of val, test, train, with a note.

    Raises:
        DataError: a label file is wrong, an image has no size that can be read, or no image has labels.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    chosen = dataset.split(split) if split else dataset.split(*EVALUATED)
    images: list[Image] = []
    annotations: list[dict[str, Any]] = []
    without = 0
    paths = dataset.images(chosen)
    for number, path in enumerate(paths, start=1):
        labels = label_file(path)
        size = upright_size(path) if path.is_file() else None
        images.append(Image(number, _name(path, dataset.root), size))
        if not labels.is_file():
            without += 1
            continue
        found = read_labels(labels, len(dataset.names), dataset.kpt_shape)
        if found and size is None and path.is_file():
            raise DataError(f"{path} has labels in shares of its size, which cannot be read from its header")
        for label in found if size else ():
            annotations.append(_annotation(len(annotations) + 1, number, label, size or (0, 0)))
    if without == len(paths):
        raise DataError(f"no image of the split {chosen} has labels: expected {label_file(paths[0])} for {paths[0]}")
    notes = [] if split else [f"the split {chosen} of {dataset.file.name} was taken"]
    if without:
        notes.append(f"{without} of {len(paths)} images have no label file: they count as images without objects")
    if posed := [a["num_keypoints"] for a in annotations if "keypoints" in a]:
        if unlabelled := posed.count(0):
            notes.append(f"{unlabelled} of {len(posed)} objects have no labelled keypoint: they count for boxes only")
        notes.append(
            "YOLO labels have no areas: OKS uses the area of each box, which is larger than that of COCO's masks"
        )
    categories = tuple(Category(i, name, dataset.keypoints) for i, name in enumerate(dataset.names, start=1))
    return CocoData(dataset.file, tuple(images), categories, tuple(annotations), tuple(notes))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())


def _annotation(number: int, image: int, label: Label, size: tuple[int, int]) -> dict[str, Any]:
    wide = np.array([size[1], size[0]], np.float64)
    centre, sides = label.box[:2] * wide, label.box[2:] * wide
    found: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": label.label + 1,
        "bbox": [*(centre - sides / 2).tolist(), *sides.tolist()],
        "area": float(sides.prod()),
        "iscrowd": 0,
    }
    if label.outline is not None:
        outline = label.outline * wide
        found["segmentation"] = [outline.reshape(-1).tolist()]
        x, y = outline.T
        found["area"] = float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)  # the shoelace formula
    if label.keypoints is not None:
        points = label.keypoints * (*wide, 1.0)
        found["keypoints"] = points.reshape(-1).tolist()
        found["num_keypoints"] = int((points[:, 2] > 0).sum())
    return found
