"""The same objects drawn by deploykit and by supervision, side by side, and how long both take.

    python benchmarks/drawing.py [--out docs/images] [--rounds 30]

The scenes are made up and drawn by this script, but for the photograph of the package (NASA, public domain). Their
objects are known, so that nothing depends on a network. supervision draws with its box and label annotators, with
``smart_position`` and with the sizes that it recommends for the resolution; pip install supervision. Both run in one
process on the same OpenCV. ``--out`` writes the images of docs/drawing.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from interleaved import interleaved

import deploykit
from deploykit.coco_classes import COCO_CLASSES
from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.label_map import draw_label_map
from deploykit.runtime.drawing.panel import draw_lines
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.machine import processor_name
from deploykit.runtime.results.detection import Result

PHOTOGRAPH = Path(deploykit.__file__).parent / "assets" / "apollo11_crew.jpg"
FACES, CERTAINTY = [[126, 160, 175, 229], [410, 167, 460, 237], [268, 75, 313, 139]], [0.87, 0.86, 0.85]
VOC_NAMES = {0: "background", 5: "bottle", 9: "chair", 15: "person", 20: "tv monitor"}


def main() -> None:
    """Draw, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the images of docs/drawing.md into this folder")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    supervision: Any = import_module("supervision")
    print(f"{processor_name()}, OpenCV {cv2.__version__}, supervision {supervision.__version__}\n")
    print("| scene | objects | image | deploykit / supervision, time per image |\n|---|---|---|---|")
    for name, result in scenes().items():
        ways = ways_of(result, supervision)
        times = interleaved(ways, args.rounds, warmup=3)
        ours, theirs = (median(times[way]) for way in ways)
        height, width = result.size
        print(f"| {name} | {len(result)} | {width}x{height} | {ours / theirs:.2f} |")
        if args.out:
            drawn = {way: draw() for way, draw in ways.items()}
            cv2.imwrite(str(args.out / f"drawing-{name}.jpg"), captioned(drawn), [cv2.IMWRITE_JPEG_QUALITY, 88])
    if args.out:
        cv2.imwrite(str(args.out / "palette.jpg"), circles(), [cv2.IMWRITE_JPEG_QUALITY, 88])


def ways_of(result: Result, supervision: Any) -> dict[str, Callable[[], Array]]:
    """Return both ways to draw a result on its image."""
    found = result.to_supervision()
    height, width = result.size
    boxes = supervision.BoxAnnotator(thickness=supervision.calculate_optimal_line_thickness((width, height)))
    labels = supervision.LabelAnnotator(
        text_scale=supervision.calculate_optimal_text_scale((width, height)), text_padding=3, smart_position=True
    )
    texts = [f"{each.name} {each.score:.2f}" for each in result]

    def theirs() -> Array:
        assert result.image is not None
        canvas = boxes.annotate(result.image.copy(), found)
        drawn: Array = labels.annotate(canvas, found, labels=texts)
        return drawn

    return {"deploykit": partial(result.draw), f"supervision {supervision.__version__}": theirs}


def scenes() -> dict[str, Result]:
    """Return the scenes, each with its image."""
    photograph = read_image(PHOTOGRAPH)
    crew = _result(photograph, FACES, [0] * 3, ("face",), CERTAINTY)  # found by a trained YOLOv7-lite-e
    return {"crew": crew, "street": street(), "crowd": crowd()}


def _result(
    image: Array,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    classes: tuple[str, ...],
    scores: Sequence[float] | None = None,
) -> Result:
    scores = np.linspace(0.95, 0.3, len(boxes)).tolist() if scores is None else scores
    return Result(
        np.array(boxes), np.array(scores), np.array(labels), classes=classes, size=image.shape[:2], image=image
    )


def street() -> Result:
    """A street of COCO's classes: a bus, cars, persons who hide one another, things that they carry, traffic lights."""
    image = _gradient((540, 960), (225, 190, 150), (235, 225, 215))
    rng = np.random.default_rng(3)
    for x in range(0, 960, 80):
        top = int(rng.integers(60, 200))
        cv2.rectangle(image, (x, top), (x + 78, 330), tuple(int(v) for v in rng.integers(90, 190, 3)), cv2.FILLED)
        for y in range(top + 15, 310, 35):
            cv2.rectangle(image, (x + 12, y), (x + 30, y + 18), (120, 105, 90), cv2.FILLED)
            cv2.rectangle(image, (x + 45, y), (x + 63, y + 18), (120, 105, 90), cv2.FILLED)
    image[330:] = _gradient((210, 960), (105, 105, 108), (70, 70, 74))
    things = [
        (5, (330, 190, 700, 430)), (7, (30, 250, 260, 420)), (2, (690, 320, 930, 440)), (2, (250, 345, 400, 425)),
        (0, (380, 270, 440, 480)), (0, (425, 280, 485, 490)), (0, (470, 265, 530, 475)), (0, (515, 290, 570, 480)),
        (0, (120, 320, 175, 500)), (24, (395, 320, 425, 365)), (26, (478, 400, 505, 440)), (26, (150, 410, 180, 445)),
        (9, (640, 100, 662, 160)), (9, (300, 110, 322, 170)), (1, (760, 400, 880, 500)), (0, (790, 330, 850, 480)),
        (16, (580, 440, 650, 500)), (12, (900, 360, 925, 450)), (11, (250, 200, 285, 235)),
    ]  # fmt: skip
    for label, (x1, y1, x2, y2) in things:
        tone = tuple(int(v) for v in rng.integers(30, 200, 3))
        if label == 0:
            cv2.circle(image, ((x1 + x2) // 2, y1 + 18), 16, (150, 175, 215), cv2.FILLED, cv2.LINE_AA)
            cv2.rectangle(image, (x1 + 6, y1 + 34), (x2 - 6, (y1 + 2 * y2) // 3), tone, cv2.FILLED)
            cv2.rectangle(image, (x1 + 14, (y1 + 2 * y2) // 3), (x2 - 14, y2), (60, 50, 45), cv2.FILLED)
        else:
            cv2.rectangle(image, (x1, y1), (x2, y2), tone, cv2.FILLED)
    return _result(image, [box for _, box in things], [label for label, _ in things], COCO_CLASSES)


def crowd() -> Result:
    """Faces, small and many to the back, large and few in front."""
    image = _gradient((540, 960), (215, 190, 160), (90, 120, 90))
    rng = np.random.default_rng(5)
    boxes = []
    for row in range(9):
        side = 10 + 5.5 * row
        for x in np.arange(rng.uniform(0, side), 960 - side, 2.1 * side):
            left, top = x + rng.uniform(-0.3, 0.3) * side, 150 + row * (18 + 2.6 * row) + rng.uniform(-0.2, 0.2) * side
            middle = (round(left + side / 2), round(top + 0.6 * side))
            tone = tuple(int(v) for v in rng.integers(20, 220, 3))
            cv2.ellipse(image, (middle[0], round(top + 2.2 * side)), (round(side), round(side)), 0, 180, 360, tone, -1)
            skin = tuple(int(v * rng.uniform(0.5, 1)) for v in (165, 190, 230))
            cv2.ellipse(image, middle, (round(side / 2), round(0.6 * side)), 0, 0, 360, skin, cv2.FILLED, cv2.LINE_AA)
            boxes.append([max(left, 0), top, left + side, min(top + 1.25 * side, 540)])
    return _result(image, boxes[::-1], [0] * len(boxes), ("face",))


def circles() -> Array:
    """A made-up label map over the photograph, with its legend."""
    image = cv2.resize(read_image(PHOTOGRAPH), (700, 549), interpolation=cv2.INTER_CUBIC)
    labels = np.zeros(image.shape[:2], np.int32)
    for label, x, y, radius in ((15, 140, 275, 126), (20, 560, 275, 126), (5, 350, 247, 140), (9, 350, 494, 70)):
        cv2.circle(labels, (x, y), radius, label, cv2.FILLED)
    return draw_label_map(image, labels, [VOC_NAMES.get(label, str(label)) for label in range(21)])


def _gradient(size: tuple[int, int], top: Sequence[int], bottom: Sequence[int]) -> Array:
    share = np.linspace(0, 1, size[0])[:, None, None]
    return np.broadcast_to(np.array(top) * (1 - share) + np.array(bottom) * share, (*size, 3)).astype(np.uint8).copy()


def captioned(drawn: dict[str, Array]) -> Array:
    """Return the images under one another, each with its name on a strip above it."""
    parts = []
    for name, image in drawn.items():
        strip = draw_lines(np.full((26, image.shape[1], 3), 255, np.uint8), [name])
        parts += [strip, image]
    return np.vstack(parts)


if __name__ == "__main__":
    main()
