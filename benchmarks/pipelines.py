"""How long commands take with several workers, beside one image after the other.

    python benchmarks/pipelines.py MODEL --images FOLDER [--video FILE] [--data JSON] [--batch 4] [--neighbours 1]

Interleaved: every round runs all numbers of workers of a job, in another order, each in a fresh process, which predicts
one image before its clock starts. The times are those of the whole command after that: opening the model, reading,
network, drawing, encoding and writing. ``1`` is one image after the other, with all cores for the network. Each round
gives a ratio to it, and the median over the rounds is printed: of the time, of the processor's time and of the peak of
memory. ``--neighbours`` keeps so many other processes busy meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ONE = "1"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="images to predict")
    parser.add_argument("--video", metavar="FILE", help="a video to predict")
    parser.add_argument("--data", metavar="JSON", help="annotations of the images, to evaluate")
    parser.add_argument("--batch", type=int, help="predict in batches too; the network's batch is dynamic")
    parser.add_argument("--workers", nargs="+", default=[ONE, "auto"], help="numbers of workers; 1 is always measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--neighbours", type=int, default=0, help="processes that are kept busy meanwhile")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measured(args.run, args.model, args.images)))
        return
    import onnxruntime

    from deploykit.runtime.machine import processor_name

    load = os.getloadavg()[0]
    print(
        f"{processor_name()}, ONNX Runtime {onnxruntime.__version__}, load {load:.1f}, {args.rounds} rounds,", end=" "
    )
    print(f"{args.neighbours} busy neighbours; ratios to one worker\n")
    print("| job | workers | time (least to most) | processor | memory |\n|---|---|---|---|---|")
    variants = list(dict.fromkeys([ONE, *args.workers]))
    with neighbours(args.neighbours):
        for name, words in jobs(args).items():
            for line in compared(name, words, variants, args):
                print(line, flush=True)


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


def compared(name: str, words: list[str], variants: list[str], args: argparse.Namespace) -> Iterator[str]:
    """Measure one job, and yield a line of the table for each number of workers."""
    chance = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for _ in range(args.rounds):
        for variant in chance.sample(variants, len(variants)):
            with tempfile.TemporaryDirectory() as folder:
                own = [*words, folder] if words[-1] == "--out" else words
                command = [sys.executable, __file__, args.model, "--images", args.images, "--run", *own]
                done = subprocess.run([*command, "--workers", variant], stdout=subprocess.PIPE, text=True, check=True)
                found[variant].append(json.loads(done.stdout.splitlines()[-1]))
    for variant in variants[1:]:
        ratios = {
            key: [a[key] / b[key] for a, b in zip(found[variant], found[ONE], strict=True)]
            for key in ("seconds", "processor", "peak")
        }
        time_, processor, peak = (statistics.median(values) for values in ratios.values())
        ends = f"{min(ratios['seconds']):.2f} to {max(ratios['seconds']):.2f}"
        yield f"| {name} | {variant} | {time_:.2f} ({ends}) | {processor:.2f} | {peak:.2f} |"


def measured(words: list[str], model: str, images: str) -> dict[str, float]:
    """Run one command in this process, after an image that loads what is loaded once."""
    from deploykit.cli import main as deploykit

    first = next(path for path in sorted(Path(images).iterdir()) if path.is_file())
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        assert deploykit(["predict", model, str(first)]) == 0
        before, start = os.times(), time.perf_counter()
        assert deploykit(words) == 0
        seconds, after = time.perf_counter() - start, os.times()
    return {
        "seconds": seconds,
        "processor": after.user + after.system - before.user - before.system,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
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
