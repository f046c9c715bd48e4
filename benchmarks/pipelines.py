"""How long commands take with several workers, beside one image after the other.

    python benchmarks/pipelines.py [--minutes 4] [--json benchmarks/results/pipelines.json]
    python benchmarks/pipelines.py MODEL --images FOLDER [--video FILE] [--data JSON] [--batch 4] [--neighbours 0 1]

Interleaved: every round runs all numbers of workers of a job, in another order, each in a fresh process, which predicts
one image before its clock starts. The times are those of the whole command after that: opening the model, reading,
network, drawing, encoding and writing. ``1`` is one image after the other, with all cores for the network. Printed are
medians over the rounds, of the time, of the processor's time and of the peak of memory, and their ratios to it.
``least`` is what no order of the same work can go below: the processor's time of the last number of workers, on all
cores at once.
``--neighbours`` keeps so many other processes busy meanwhile, a table each. Rounds end when a job has had its share of
the minutes; every job has one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ONE, LEAST = "1", "least"
IMAGES, FRAMES = 24, 40
MEASURED = {"seconds": "s", "processor": "s of the processor", "peak": "MB at the peak"}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model to run (default: one is made, and all that it needs)")
    parser.add_argument("--images", metavar="FOLDER", help="images to predict")
    parser.add_argument("--video", metavar="FILE", help="a video to predict")
    parser.add_argument("--data", metavar="JSON", help="annotations of the images, to evaluate")
    parser.add_argument("--batch", type=int, help="predict in batches too; the network's batch is dynamic")
    parser.add_argument("--workers", nargs="+", default=[ONE, "auto"], help="numbers of workers; 1 is always measured")
    parser.add_argument("--rounds", type=int, default=5, help="the most rounds")
    parser.add_argument("--minutes", type=float, default=4.0, help="for all jobs together")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1], metavar="N", help="busy processes beside")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measured(args.run, args.model, args.images)))
        return
    if (args.model is None) != (args.images is None):
        parser.error("a model needs --images, and they need a model; without both, they are made")
    from measured import show

    start, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        about = "the given model"
        if args.model is None:
            about = make_all(args, Path(name))
        tables, rounds = compared(args, start + 60 * args.minutes)
        ran = f"{min(rounds)}" if min(rounds) == max(rounds) else f"{min(rounds)} to {max(rounds)}"
        how = f"{about}, {chosen(args)}; medians of rounds, whose number is {ran}; load {load:.1f} before."
        show(tables, "Several workers", "pipelines.py", how, args.json)


def make_all(args: argparse.Namespace, folder: Path) -> str:
    """Make what a run needs, put it into the arguments, and say what it is."""
    import cv2
    import numpy as np

    from deploykit import export_onnx
    from deploykit.models.create.random_weights import create_checkpoint
    from deploykit.runtime.images.reading import read_image
    from deploykit.runtime.images.video_writer import Mp4Writer

    photo = read_image(Path(__file__).resolve().parents[1] / "deploykit" / "assets" / "apollo11_crew.jpg")
    chance = np.random.default_rng(0)

    def crop(width: int, height: int) -> Any:
        top, left = (int(chance.integers(0, side // 2)) for side in photo.shape[:2])
        part = photo[top : top + photo.shape[0] // 2, left : left + photo.shape[1] // 2]
        return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)

    images, annotations = [], []
    (folder / "images").mkdir()
    for number in range(IMAGES):
        name = f"{number:02}.jpg"
        cv2.imwrite(str(folder / "images" / name), crop(640, 480))
        images.append({"id": number, "file_name": name, "width": 640, "height": 480})
        box = [*map(float, chance.integers(10, 200, 4))]
        kind = int(chance.integers(1, 81))
        shape = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": number, "category_id": kind, **shape})
    with Mp4Writer(folder / "film.mp4", 25) as writer:
        for _ in range(FRAMES):
            writer.write(crop(1280, 720))
    weights, model = create_checkpoint("yolov5n", folder / "yolov5n.pt"), folder / "yolov5n.onnx"
    spec = export_onnx(weights, out=model, dynamic="shape", check=False).spec
    categories = [{"id": number, "name": name} for number, name in enumerate(spec.classes, 1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(data))
    args.model, args.images = str(model), str(folder / "images")
    args.video, args.data = str(folder / "film.mp4"), str(folder / "data.json")
    args.batch = args.batch or 4
    return f"yolov5n, random weights, dynamic shape; {IMAGES} images of 640 x 480, {FRAMES} frames of 1280 x 720"


def chosen(args: argparse.Namespace) -> str:
    """What auto is here."""
    import onnxruntime  # noqa: F401  # so that its version is told

    from deploykit.runtime.pipeline.workers import plan_workers

    count, compute = plan_workers(args.model, "auto", {"device": "cpu"})
    return f"auto is {count} workers, of a network with {compute.get('threads') or 'its own number of'} threads"


def jobs(args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the commands, without the number of workers and the folder that is written to."""
    found = {
        "folder, drawn": ["predict", args.model, args.images, "--out"],
        "folder, JSON": ["predict", args.model, args.images, "--json"],
    }
    if args.batch:
        found[f"folder, JSON, batch {args.batch}"] = [*found["folder, JSON"], "--batch", str(args.batch)]
    if args.video:
        found["video, drawn"] = ["predict", args.model, args.video, "--out"]
    if args.data:
        found["eval"] = ["eval", args.model, "--data", args.data, "--images", args.images, "--json"]
    return found


def compared(args: argparse.Namespace, end: float) -> tuple[list[Any], list[int]]:
    """Measure all jobs beside each number of neighbours until ``end``; return tables, and rounds of each job."""
    from measured import Row, Table, medians

    from deploykit.runtime.cores import usable_cores

    cores, _ = usable_cores()
    variants = list(dict.fromkeys([ONE, *args.workers]))
    left = len(args.neighbours) * len(jobs(args))
    tables: list[Table] = []
    rounds: list[int] = []
    for count in args.neighbours:
        rows: dict[str, list[Row]] = {key: [] for key in MEASURED}
        with neighbours(count):
            for name, words in jobs(args).items():
                share = time.monotonic() + (end - time.monotonic()) / left
                found = rounds_of(words, variants, args, share)
                left -= 1
                rounds.append(len(found[ONE]))
                middle = {key: medians({v: [one[key] for one in ran] for v, ran in found.items()}) for key in rows}
                middle["seconds"][LEAST] = round(middle["processor"][variants[-1]] / cores, 4)
                for key, lines in rows.items():
                    lines.append(Row((name,), middle[key]))
        beside = f"beside {count} busy process{'es' * (count != 1)}, " if count else ""
        for key, unit in MEASURED.items():
            columns = dict.fromkeys(variants, "{:.0f}" if key == "peak" else "{:.2f}")
            if key == "seconds":
                columns[LEAST] = "{:.2f}"
            tables.append(Table(f"a command by workers, {beside}{unit}", ("",), columns, tuple(rows[key]), ONE))
    return tables, rounds


def rounds_of(
    words: list[str], variants: list[str], args: argparse.Namespace, end: float
) -> dict[str, list[dict[str, float]]]:
    """Run one job in rounds, until the last one or ``end``; one round at least."""
    chance = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for number in range(args.rounds):
        if number and time.monotonic() >= end:
            break
        for variant in chance.sample(variants, len(variants)):
            with tempfile.TemporaryDirectory() as folder:
                own = [*words, folder] if words[-1] == "--out" else words
                command = [sys.executable, __file__, args.model, "--images", args.images, "--run", *own]
                done = subprocess.run([*command, "--workers", variant], stdout=subprocess.PIPE, text=True, check=True)
                found[variant].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def measured(words: list[str], model: str, images: str) -> dict[str, float]:
    """Run one command in this process, after an image that loads what is loaded once."""
    from deploykit.cli import main as deploykit
    from deploykit.runtime.machine import peak_memory

    first = next(path for path in sorted(Path(images).iterdir()) if path.is_file())
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        assert deploykit(["predict", model, str(first)]) == 0
        before, start = time.process_time(), time.perf_counter()
        assert deploykit(words) == 0
        seconds, after = time.perf_counter() - start, time.process_time()
    return {
        "seconds": seconds,
        "processor": after - before,
        "peak": (peak_memory() or 0) / 1e6,
    }


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep so many processes busy while the context lasts."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


if __name__ == "__main__":
    main()
