"""Rendered scenes on the disk: a pool to train on, and a COCO data set to score a model on.

    python -m scripts.markers.dataset --out FOLDER [--scenes 300] [--seed 1] [--pasted FOLDER]

writes FOLDER/images/*.jpg and FOLDER/annotations.json for ``deploykit eval MODEL --data ... --images ...``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.markers.prints import CLASSES, CORNERS, Image, Points
from scripts.markers.scenes import Scene, Settings, pasted, render

ROOT = Path(__file__).resolve().parents[2]
APOLLO = ROOT / "deploykit" / "assets" / "apollo11_crew.jpg"


@dataclass(frozen=True)
class Pool:
    """Scenes of one size: images ``(N, S, S, 3)`` uint8 BGR, and of each scene labels and corners."""

    images: NDArray[np.uint8]
    labels: list[NDArray[np.int64]]
    corners: list[Points]


def photographs(folder: Path) -> list[Image]:
    """The images of a folder, in the order of their names."""
    read = [cv2.imread(str(file)) for file in sorted(folder.iterdir())]
    return [np.asarray(image, np.uint8) for image in read if image is not None]


def scenes(seed: int, count: int) -> Iterator[Scene]:
    """``count`` scenes; scene i of a seed is always the same."""
    photos = [np.asarray(cv2.imread(str(APOLLO)), np.uint8)]
    for i in range(count):
        yield render(np.random.default_rng((seed, i)), photos)


def pasted_scenes(seed: int, count: int, photos: Sequence[Image]) -> Iterator[Scene]:
    """``count`` whole photographs, one after the other, with codes pasted on them."""
    for i in range(count):
        yield pasted(np.random.default_rng((seed, i)), photos[i % len(photos)])


def pool(folder: Path, seed: int, count: int) -> Pool:
    """The pool in ``folder``, which is rendered if it is not there."""
    pixels, codes = folder / "images.npy", folder / "codes.npz"
    if not codes.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        side = Settings().side
        images = np.lib.format.open_memmap(pixels, "w+", np.uint8, (count, side, side, 3))
        found: dict[str, NDArray[Any]] = {}
        for i, scene in enumerate(scenes(seed, count)):
            images[i] = scene.image
            found[f"labels{i}"], found[f"corners{i}"] = scene.labels, scene.corners
        images.flush()
        np.savez(codes, allow_pickle=False, **found)
    known = np.load(codes)
    loaded = np.load(pixels, mmap_mode="r")
    numbers = range(len(loaded))
    return Pool(loaded, [known[f"labels{i}"] for i in numbers], [known[f"corners{i}"] for i in numbers])


def write_coco(folder: Path, made: Iterator[Scene]) -> Path:
    """Write scenes as a COCO data set; return its annotations file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, scene in enumerate(made, 1):
        h, w = scene.image.shape[:2]
        name = f"{i:04}.jpg"
        cv2.imwrite(str(folder / "images" / name), scene.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": i, "file_name": name, "height": h, "width": w})
        for label, corners in zip(scene.labels, scene.corners, strict=True):
            seen = corners[:, 2] > 0
            low = np.clip(corners[:, :2].min(0), 0, (w, h))
            high = np.clip(corners[:, :2].max(0), 0, (w, h))
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": int(label) + 1,
                "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
                "area": float(cv2.contourArea(np.ascontiguousarray(corners[:, :2]))),
                "iscrowd": 0,
                "keypoints": [round(float(v), 2) for v in (corners * seen[:, None]).ravel()],
                "num_keypoints": int(seen.sum()),
            })  # fmt: skip
    categories = [{"id": i, "name": name, "keypoints": list(CORNERS)} for i, name in enumerate(CLASSES, 1)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def main() -> None:
    """Write a data set as the command line asks for it."""
    parser = argparse.ArgumentParser(description="Write rendered scenes as a COCO data set.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="0 is that of training")
    parser.add_argument("--pasted", type=Path, metavar="FOLDER", help="codes pasted on the images of a folder instead")
    args = parser.parse_args()
    made = scenes(args.seed, args.scenes)
    if args.pasted:
        made = pasted_scenes(args.seed, args.scenes, photographs(args.pasted))
    print(write_coco(args.out, made))


if __name__ == "__main__":
    main()
