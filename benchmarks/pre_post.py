"""What a prediction costs besides the network: image to blob, and rows to results. NMS alone is in nms.py.

    python benchmarks/pre_post.py [--rounds 50] [--json benchmarks/results/pre_post.json]

Every round runs each variant once, one after the other, so that a busy machine slows all of them alike; printed are
the fastest and the median round. The image is decoded already, the network is a function that returns ready rows.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import PIL
from interleaved import interleaved
from measured import Row, Table, medians, show
from PIL import Image

from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.pillow_resize import resample
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.native.library import cpu_library
from deploykit.runtime.postprocess import pose_fusion
from deploykit.runtime.postprocess.detections import decode_poses, to_source
from deploykit.runtime.postprocess.masks import assembled, pasted
from deploykit.runtime.postprocess.nms import Kept, nms, numpy_nms
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.results.detection import Result
from deploykit.spec import COCO_KEYPOINTS, Fit, InputSpec, ModelSpec, PoseObjectRows, RawDetections, Thresholds

FULL_HD = (1080, 1920)
POSE = RawDetections(cls=(5, 6), keypoints=(6, 57))
COCO = RawDetections(cls=(5, 85))
KAPAO = PoseObjectRows(cls=(5, 23), coords=(23, 57))


def main() -> None:
    """Run the groups and print one table each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="how often each variant runs (default 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    rounds, load, frame = args.rounds, os.getloadavg()[0], _image()
    tables = [
        _against(
            "1080p frame to a float32 blob of 576 x 960, ms", rounds, _preprocessing(frame, InputSpec(size=(576, 960)))
        ),
        _against("1080p frame to 256 x 455, bicubic, the bytes of Pillow, ms", rounds, _resampling(frame)),
        _alone("decoded 1080p frame to Result, without the network, ms", rounds, _everything(frame)),
        _crowds(rounds),
        _masks(rounds),
    ]
    how = f"{rounds} rounds, {cv2.getNumThreads()} threads, Pillow {PIL.__version__}, load {load:.1f} before."
    show(tables, "Image to blob, rows to results", "pre_post.py", how, args.json)


def _image() -> Array:
    noise = np.random.default_rng(0).integers(0, 256, (*FULL_HD, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 0)


def _resampling(frame: Array) -> dict[str, Callable[[], object]]:
    image = Image.fromarray(frame)
    return {
        "resample": lambda: resample(frame, (256, 455), "bicubic"),
        "Pillow": lambda: image.resize((455, 256), Image.Resampling.BICUBIC),
        "cv2.resize, INTER_AREA (other bytes)": lambda: cv2.resize(frame, (455, 256), interpolation=cv2.INTER_AREA),
    }


def _preprocessing(frame: Array, spec: InputSpec) -> dict[str, Callable[[], object]]:
    letterbox = Letterbox.fit(FULL_HD, spec.size, Fit())
    out = np.empty((1, 3, *spec.size), np.float32)

    (height, width), (left, top) = letterbox.resized, letterbox.pad
    borders = (top, spec.size[0] - height - top, left, spec.size[1] - width - left)

    def canvas() -> Array:
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.copyMakeBorder(small, *borders, cv2.BORDER_CONSTANT, value=(114, 114, 114))

    def numpy() -> Array:
        return np.ascontiguousarray(canvas()[:, :, ::-1].transpose(2, 0, 1))[None].astype(np.float32) / np.float32(255)

    def opencv_dnn() -> Array:
        return np.asarray(cv2.dnn.blobFromImage(canvas(), 1 / 255, swapRB=True))

    def ours() -> Array:
        return to_nchw([letterbox.apply(frame)], spec, out)

    assert np.array_equal(ours(), numpy()), "the fast way must give the same values"
    return {"deploykit": ours, "cv2 + numpy": numpy, "cv2 + cv2.dnn.blobFromImage": opencv_dnn}


def _rows(count: int, layout: RawDetections, candidates: int) -> Array:
    """Random boxes on a 960 canvas, of which ``candidates`` score over 0.25; few overlap, which is the slow case."""
    rng = np.random.default_rng(candidates)
    rows = rng.random((count, layout.columns), dtype=np.float32) * 900
    rows[:, 2:4] = 20 + rng.random((count, 2)) * 100
    rows[:, 4] = rng.random(count) * 0.2
    rows[:, slice(*layout.cls)] = rng.random((count, layout.cls[1] - layout.cls[0]))
    chosen = rng.permutation(count)[:candidates]
    rows[chosen, 4] = 0.5 + rng.random(candidates) * 0.5
    rows[chosen, layout.cls[0]] = 0.9
    if layout.keypoints is not None:
        seen = slice(layout.keypoints[0] + 2, layout.keypoints[1], 3)
        rows[:, seen] = rng.random(rows[:, seen].shape)
    return rows


def _everything(frame: Array) -> dict[str, Callable[[], object]]:
    pose = ModelSpec("keypoints", InputSpec(size=(960, 960)), POSE, ("person",), COCO_KEYPOINTS)
    coco = ModelSpec("detect", InputSpec(size=(640, 640)), COCO, tuple(map(str, range(80))))
    variants: dict[str, Callable[[], object]] = {}
    for name, spec, layout, count in (("pose at 960", pose, POSE, 57375), ("COCO at 640", coco, COCO, 25200)):
        for candidates in (50, 500, 3000):
            rows = _rows(count, layout, candidates)[None]
            predictor: Predictor[Result] = Predictor(FakeSession(partial(_answer, rows), spec=spec))
            variants[f"{name}, {candidates} candidates"] = partial(predictor, frame)
    return variants


def _crowds(rounds: int) -> Table:
    """KaPao's rows at 1280 px to poses in source pixels: persons and keypoints chosen, and fused."""
    box = Letterbox.fit((720, 1280), (1280, 1280), Fit())

    def poses(choose: Callable[..., Kept], rows: Array) -> object:
        with patch.object(pose_fusion, "nms", choose):
            found = decode_poses({"output": rows[None]}, 0, KAPAO, Thresholds(iou=0.65, pre_nms_topk=30_000))
        return to_source(found, box)

    lines = []
    for people, each in ((0, 0), (5, 8), (20, 8), (60, 3), (60, 8)):
        rows = _crowd(people, each)
        variants: dict[str, Callable[[], object]] = {"numpy": partial(poses, numpy_nms, rows)}
        if cpu_library() is not None:
            variants["native"] = partial(poses, nms, rows)
        lines.append(Row((str(people), str(people * each * 18)), medians(interleaved(variants, rounds))))
    title = "KaPao at 1280, 102,000 rows to poses, ms"
    return Table(title, ("people", "candidates"), dict.fromkeys(variants, "{:.2f}"), tuple(lines), "numpy")


def _crowd(people: int, each: int) -> Array:
    """Rows of people here and there, each with ``each`` rows that find it, and as many for each of 17 keypoints."""
    rng = np.random.default_rng(people)
    count = 102_000
    rows = rng.random((count, KAPAO.columns), dtype=np.float32) * 0.15
    rows[:, :4] = rng.random((count, 4)) * (1280, 1280, 40, 40)
    places = rng.permutation(count)[: people * each * 18].reshape(people, 18, each)
    for those in places:
        centre, height = rng.uniform(100, 1180, 2), rng.uniform(100, 300)
        points = centre + rng.uniform(-0.5, 0.5, (17, 2)) * (0.4 * height, height)
        for kind, where in enumerate(those):
            middle, size = (points[kind - 1], (0.12, 0.12)) if kind else (centre, (0.4, 1.0))
            rows[where, :2] = middle + rng.normal(0, 0.01 * height, (each, 2))
            rows[where, 2:4] = np.array(size) * height * rng.uniform(0.9, 1.1, (each, 2))
            rows[where, 4], rows[where, 5 + kind] = rng.uniform(0.3, 0.95, each), 0.95
            rows[where, 23:] = (points + rng.normal(0, 0.02 * height, (each, 17, 2))).reshape(each, 34)
    return rows


def _masks(rounds: int) -> Table:
    """Masks of a hundred objects at the image's size; the floor makes an empty result and fills the boxes."""
    lines = []
    for size in ((640, 640), FULL_HD):
        rng = np.random.default_rng(0)
        box = Letterbox.fit(size, (640, 640), Fit(), auto=False)
        boxes = rng.uniform((box.pad[0], box.pad[1]), (640 - box.pad[0], 640 - box.pad[1]), (100, 2))
        sides = rng.uniform(20, 120, (100, 2))
        boxes = box.to_source(np.concatenate((boxes - sides / 2, boxes + sides / 2), 1).astype(np.float32))
        prototypes = cv2.resize(rng.normal(size=(20, 20, 32)), (160, 160)).transpose(2, 0, 1).astype(np.float32, "C")
        coefficients = rng.normal(size=(100, 32)).astype(np.float32)
        small = cv2.resize(rng.random((7, 7, 100)), (28, 28)).transpose(2, 0, 1).astype(np.float32, "C")
        corners = np.rint(boxes).astype(int).clip(0, (size[1], size[0], size[1], size[0])).tolist()

        def filled(size: tuple[int, int] = size, corners: list[list[int]] = corners) -> Array:
            out = np.zeros((len(corners), *size), np.bool_)
            for mask, (x1, y1, x2, y2) in zip(out, corners, strict=True):
                mask[y1:y2, x1:x2] = True
            return out

        variants: dict[str, Callable[[], object]] = {
            "floor": filled,
            "prototypes": partial(assembled, coefficients, prototypes, boxes, box),
            "masks of 28 x 28": partial(pasted, small, boxes, size),
        }
        lines.append(Row((f"{size[1]} x {size[0]}",), medians(interleaved(variants, rounds))))
    return Table("masks of 100 objects, ms", ("image",), dict.fromkeys(variants, "{:.2f}"), tuple(lines), "floor")


def _answer(rows: Array, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"output": rows}


def _against(title: str, rounds: int, variants: dict[str, Callable[[], object]]) -> Table:
    """Ways to do the same, in columns, against the first of them."""
    times = interleaved(variants, rounds)
    rows = (
        Row(("fastest",), {name: round(min(values), 4) for name, values in times.items()}),
        Row(("median",), {name: round(float(np.median(values)), 4) for name, values in times.items()}),
    )
    return Table(title, ("",), dict.fromkeys(variants, "{:.2f}"), rows, next(iter(variants)))


def _alone(title: str, rounds: int, variants: dict[str, Callable[[], object]]) -> Table:
    """Different problems, in rows."""
    turned = _against(title, rounds, variants).rows
    rows = tuple(Row((name,), {row.labels[0]: row.values[name] for row in turned}) for name in variants)
    return Table(title, ("",), {"fastest": "{:.2f}", "median": "{:.2f}"}, rows)


if __name__ == "__main__":
    main()
