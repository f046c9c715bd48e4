"""Annotated images for the network of cell_model.py, whose every object is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2

from deploykit.spec import KeypointSpec, ModelSpec
from tests.cell_model import BLUE, CELL, RED, SIDE, cell_spec, planted

Block = tuple[int, int, tuple[int, int, int]]

BLOCKS: tuple[tuple[Block, ...], ...] = (
    ((1, 2, RED), (4, 4, RED), (6, 1, BLUE)),
    ((0, 0, BLUE), (7, 7, BLUE)),
    (),
    ((3, 5, RED),),
)
RED_ID, BLUE_ID = 7, 3  # sparse, and in another order than the model's labels


@dataclass
class Folder:
    """A folder of images and the annotation file that lists them; ``save`` writes what ``coco`` holds now."""

    path: Path
    coco: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.path / "annotations.json"

    @property
    def images(self) -> Path:
        return self.path / "images"

    def save(self) -> Folder:
        self.data.write_text(json.dumps(self.coco))
        return self


def write_folder(path: Path, images: Sequence[Sequence[Block]] = BLOCKS, *, scale: int = 8, wide: int = 1) -> Folder:
    """One PNG an image, with an annotation for each block: its cell, and the cell's centre as the keypoint."""
    (path / "images").mkdir(parents=True)
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": BLUE_ID, "name": "Blue", "keypoints": ["centre"]},
            {"id": RED_ID, "name": "red", "keypoints": ["centre"]},
        ],
    }
    side = CELL * scale
    for number, blocks in enumerate(images):
        name, image_id = f"{number:012}.png", 1000 - number  # numbers that do not follow the order
        image = planted(*blocks, scale=scale, wide=wide)
        (path / "images" / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
        size = {"height": SIDE * scale // wide, "width": SIDE * scale}
        coco["images"].append({"id": image_id, "file_name": name, **size})
        for column, row, colour in blocks:
            x, y = column * side, row * side
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]),  # from 0, which the metric libraries cannot take
                    "image_id": image_id,
                    "category_id": RED_ID if colour == RED else BLUE_ID,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "keypoints": [x + side / 2, y + side / 2, 2],
                    "num_keypoints": 1,
                }
            )
    return Folder(path, coco).save()


def pose_spec(*, batch: int = 1, dynamic: bool = False) -> ModelSpec:
    """The spec of the cells with the constant that the similarity of keypoints needs."""
    return replace(cell_spec(batch=batch, dynamic=dynamic), keypoints=KeypointSpec(("centre",), sigmas=(0.1,)))
