"""What time grows with: the network's input, the image, the batch, objects, threads and workers.

    python benchmarks/cost.py [--model yolov5n --rounds 20 --json benchmarks/results/cost.json]

Weights are random. A row is measured in turn with the other rows of its table, so that rows compare. *Workers* are
those of a stream (``workers=``), which opens the network with one thread for each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from interleaved import interleaved
from measured import Row, Table, medians, show
from pre_post import COCO, _answer, _rows

import deploykit
from deploykit import export_onnx
from deploykit.models.create.random_weights import create_checkpoint
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.session import open_session
from deploykit.spec import InputSpec, ModelSpec

PHOTO = Path(__file__).resolve().parents[1] / "deploykit" / "assets" / "apollo11_crew.jpg"
OBJECTS, BATCHES, MEGAPIXELS = (0, 10, 50, 100, 300), (1, 2, 4, 8), (0.3, 1, 2, 8, 24)
Runs = dict[Any, dict[str, Callable[[], object]]]
FOLDER = 16  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov5n")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 480, 640, 960, 1280], metavar="PX")
    parser.add_argument("--img", type=int, default=640, help="input of all tables but the first")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = create_checkpoint(args.model, folder / f"{args.model}.pt")

        def exported(size: int, **options: Any) -> Path:
            file = folder / f"{size}{''.join(options.values())}.onnx"
            if not file.exists():
                export_onnx(weights, img=size, out=file, check=False, **options)
            return file

        single, free = exported(args.img), exported(args.img, dynamic="batch")
        tables = [
            sizes({size: exported(size) for size in args.sizes}, args),
            image_sizes(single, args),
            batches(free, args),
            objects(args),
            threads(single, args),
            workers(single, folder, args),
        ]
    how = f"{args.model}, random weights; medians of {args.rounds} rounds, load {load:.1f} before."
    show(tables, "What time grows with", "cost.py", how, args.json)


def jpeg(megapixels: float = 0.0) -> bytes:
    """The photo, or the photo scaled to so many pixels."""
    image = read_image(PHOTO)
    if megapixels:
        factor = (megapixels * 1e6 / (image.shape[0] * image.shape[1])) ** 0.5
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def noise(count: int, size: int) -> Array:
    return np.random.default_rng(0).random((count, 3, size, size), np.float32)


def table(title: str, label: str, runs: Mapping[Any, Mapping[str, Callable[[], object]]], rounds: int) -> Table:
    """A row a case and a column a measurement, all of them in turn."""
    flat = {f"{case} {column}": run for case, columns in runs.items() for column, run in columns.items()}
    found = medians(interleaved(flat, rounds))
    columns = list(next(iter(runs.values())))
    rows = (Row((str(case),), {column: found[f"{case} {column}"] for column in columns}) for case in runs)
    return Table(title, (label,), dict.fromkeys(columns, "{:.2f}"), tuple(rows))


def sizes(files: Mapping[int, Path], args: argparse.Namespace) -> Table:
    data = jpeg()
    runs: Runs = {}
    for size, file in files.items():
        session, blob = open_session(file), {"images": noise(1, size)}
        runs[size] = {"network": partial(session.run, blob), "end to end": partial(deploykit.load(file), data)}
    return table("input of the network, ms", "px", runs, args.rounds)


def image_sizes(file: Path, args: argparse.Namespace) -> Table:
    predictor = deploykit.load(file)
    runs: Runs = {}
    for megapixels in MEGAPIXELS:
        data = jpeg(megapixels)
        whole = partial(predictor, data)
        decode = partial(cv2.imdecode, np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        runs[megapixels] = {"cv2.imdecode alone": decode, "end to end": whole}
    return table(f"JPEG to objects at {args.img}, ms", "megapixels of the image", runs, args.rounds)


def batches(file: Path, args: argparse.Namespace) -> Table:
    session = open_session(file)
    runs: Runs = {size: {"network": partial(session.run, {"images": noise(size, args.img)})} for size in BATCHES}
    found = table(f"batch at {args.img}, ms of one image", "images", runs, args.rounds)
    rows = tuple(
        Row(row.labels, {"network": round(row.values["network"] / size, 4)})
        for size, row in zip(BATCHES, found.rows, strict=True)
    )
    return Table(found.title, found.labels, found.columns, rows)


def objects(args: argparse.Namespace) -> Table:
    """The network is a function that returns ready rows, with so many boxes that do not overlap much."""
    spec = ModelSpec("detect", InputSpec(size=(640, 640)), COCO, tuple(map(str, range(80))))
    image = read_image(PHOTO)
    runs = {}
    for count in OBJECTS:
        rows = _rows(25200, COCO, count)[None]
        predictor: Predictor[Any] = Predictor(FakeSession(partial(_answer, rows), spec=spec))
        runs[count] = {"image to result": partial(predictor, image)}
    return table("decoded image to result without the network, 25,200 rows, ms", "candidates", runs, args.rounds)


def threads(file: Path, args: argparse.Namespace) -> Table:
    blob = {"images": noise(1, args.img)}
    runs: Runs = {}
    for count in counts():
        runs[count] = {"network": partial(open_session(file, threads=count).run, blob)}
    return table(f"network at {args.img}, ms", "threads", runs, args.rounds)


def workers(file: Path, folder: Path, args: argparse.Namespace) -> Table:
    photos = folder / "photos"
    photos.mkdir()
    for number in range(FOLDER):
        (photos / f"{number}.jpg").write_bytes(jpeg())
    runs: Runs = {}
    for count in counts():
        predictor = deploykit.load(file, workers=count)
        runs[count] = {"folder": partial(exhaust, predictor, photos)}
    return table(f"a folder of {FOLDER} images at {args.img}, ms", "workers", runs, max(3, args.rounds // 4))


def exhaust(predictor: Any, source: Path) -> None:
    for _ in predictor.stream(source):
        pass


def counts() -> list[int]:
    """1, 2, 4, ... and all cores."""
    cores = os.cpu_count() or 1
    return sorted({1 << power for power in range(cores.bit_length()) if 1 << power <= cores} | {cores})


if __name__ == "__main__":
    main()
