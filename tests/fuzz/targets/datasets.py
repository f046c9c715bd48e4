"""Data sets: COCO's annotations, the ``data.yaml`` of YOLO and its label files, and lists of files."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import yaml

from deploykit.runtime.datasets.coco import match_keypoints, match_labels, read_coco
from deploykit.runtime.datasets.labels import read_labels
from deploykit.runtime.datasets.yolo import label_file, read_yolo
from deploykit.runtime.sources.opening import open_sources
from tests.fuzz.mutate import changed_bytes, changed_json, json_text
from tests.fuzz.target import Files, Target

BOXES: tuple[dict[str, Any], ...] = (
    {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "keypoints": [1, 1, 2], "num_keypoints": 1},
    {"image_id": 2, "category_id": 7, "bbox": [0.5, 1, 4, 4], "segmentation": [[1, 1, 4, 1, 4, 4]]},
    {"image_id": 2, "category_id": 7, "bbox": [0, 0, 8, 8], "segmentation": {"size": [8, 8], "counts": [0, 64]}},
)
COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "red", "keypoints": ["nose"]}, {"id": 7, "name": "blue"}],
    "annotations": [{"id": 1 + place, "iscrowd": place // 2, **box} for place, box in enumerate(BOXES)],
}
YOLO: dict[str, Any] = {
    "path": ".", "train": "images", "val": ["images", "list.txt"], "nc": 2, "names": ["red", "blue"],
    "kpt_shape": [1, 3], "kpt_names": {0: ["nose"]},
}  # fmt: skip
NUMBERED = {**YOLO, "names": {0: "red", 1: "blue"}, "kpt_shape": None}
LABELS = "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.3 0.1 0.3 0.4\n0 0.5 0.5 0.2 0.2 0.5 0.5 2\n"
VALUES = (
    "0",
    "1",
    "-1",
    "0.5",
    "1.5",
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "",
    "x",
    "0x1",
    "١",
    "1_0",
    "\x00",
    "0.0 " * 400,
)


class Datasets(Target):
    """What ``eval`` and ``int8`` read before a model runs."""

    name, memory = "datasets", 128 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "images").mkdir()
        (folder / "labels").mkdir()
        cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((8, 8, 3), np.uint8))

    def make(self, random: Random) -> Files:
        kind = random.randrange(4)
        if kind == 0:
            return {"coco.json": json_text(random, changed_json(random, COCO))}
        if kind == 1:
            changed = changed_json(random, random.choice((YOLO, json.loads(json.dumps(NUMBERED)))))
            text = json.dumps(changed) if random.random() < 0.5 else yaml.safe_dump(changed, allow_unicode=True)
            data = text.encode("utf-8", "replace")
            return {"data.yaml": changed_bytes(random, data) if random.random() < 0.3 else data, "list.txt": b"a.png\n"}
        if kind == 2:
            lines = [line.split() for line in LABELS.splitlines()]
            for _ in range(random.randint(1, 3)):
                line = random.choice(lines)
                line[random.randrange(len(line))] = random.choice(VALUES)
            text = "\n".join(" ".join(line) for line in lines)
            data = text.encode()
            return {"a.txt": changed_bytes(random, data) if random.random() < 0.3 else data}
        names = "\n".join(
            random.choices(("images/a.png", "images", "/dev/zero", "", "#", "*.png", "\x00", "é", "a" * 300), k=4)
        )
        return {"list.txt": changed_bytes(random, names.encode()) if random.random() < 0.5 else names.encode()}

    def take(self, files: Files) -> None:
        path = self.written(files)
        if path.name == "coco.json":
            data = read_coco(path)
            labels = match_labels(("red", "blue"), 2, data.categories)
            match_keypoints(("nose",), data, labels)
            json.dumps(data.to_dict(), allow_nan=False)
        elif path.name == "data.yaml":
            found = read_yolo(path)
            for split in found.splits:
                for image in found.images(split):
                    label_file(image)
        elif path.name == "a.txt":
            for shape in (None, (1, 3), (1, 2)):
                read_labels(path, 2, shape)
        else:
            for source in open_sources(path):
                for _ in source.frames(skip=lambda error: None):
                    pass


TARGET = Datasets
